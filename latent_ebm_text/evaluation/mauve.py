"""MAUVE (Pillutla et al., 2021): how far the distribution of generated sentences is from that of real ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.bootstrap import percentile_interval
from latent_ebm_text.evaluation.estimates import Estimate

Floats = npt.NDArray[np.float64]

#: The scale `c` of the divergences and the mixtures of the frontier, as in the paper.
_SCALE, _NUM_MIXTURES = 5.0, 25
#: Share of the features' variance that is clustered, and starts of the clustering, as in the paper's implementation.
_VARIANCE, _NUM_STARTS = 0.9, 5
_NUM_RESAMPLES = 200
#: Sentences of each kind that it takes.
LEAST_SENTENCES = 20


def mauve(samples: npt.NDArray[Any], real: npt.NDArray[Any], features: str, *, seed: int = 0) -> Estimate:
    """The area under the divergence frontier of two sets of sentences, from 0 to 1, where the two are alike.

    The features of both are divided into clusters together, a tenth as many as the smaller set has rows; what is
    compared is how many sentences of each lie in each. The area depends on the features and on the number of
    sentences, and equal distributions do not reach 1: compare values of equal numbers, beside that of real sentences.

    Args:
        samples: `(n, dim)`, features of generated sentences.
        real: `(m, dim)`, the same features of real ones.
        features: What the features are, for the definition.
        seed: Seed of the clustering and of the resamples.

    Raises:
        UsageError: If there are fewer than 20 sentences of either kind.
    """
    if min(len(samples), len(real)) < LEAST_SENTENCES:
        raise UsageError(
            f"MAUVE needs {LEAST_SENTENCES} sentences of each kind at least, got {len(samples)} and {len(real)}"
        )
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import normalize

    num_clusters = min(len(samples), len(real)) // 10
    points = normalize(np.concatenate([samples, real]).astype(np.float64))
    points = PCA(n_components=_VARIANCE, svd_solver="full").fit_transform(points)
    clusters = KMeans(num_clusters, n_init=_NUM_STARTS, random_state=seed).fit_predict(points)
    counts = [np.bincount(part, minlength=num_clusters) for part in np.split(clusters, [len(samples)])]
    shares = [count / count.sum() for count in counts]
    value = frontier_area(*shares)
    rng = np.random.default_rng(seed)
    resamples = [
        [rng.multinomial(count.sum(), share) / count.sum() for count, share in zip(counts, shares, strict=True)]
        for _ in range(_NUM_RESAMPLES)
    ]
    low, high = percentile_interval([frontier_area(*pair) for pair in resamples])
    return Estimate(
        value,
        (min(low, value), max(high, value)),
        len(samples),
        f"MAUVE of generated against {len(real):,} real sentences on {features}, {num_clusters} clusters; 1 if they "
        f"are alike; interval: {_NUM_RESAMPLES} bootstrap resamples of the sentences, the clusters fixed, whose noise "
        "lowers the value",
        details={"num_clusters": num_clusters},
    )


def frontier_area(p: Floats, q: Floats) -> float:
    """The area under the divergence frontier of two discrete distributions `(clusters,)`, equations 1 to 3.

    The frontier is `(exp(-c KL(q | r)), exp(-c KL(p | r)))` over the mixtures `r` of both.
    """
    weights = np.linspace(1e-6, 1 - 1e-6, _NUM_MIXTURES)[:, None]
    mixtures = weights * p + (1 - weights) * q
    x, y = (np.exp(-_SCALE * _divergence(part, mixtures)) for part in (q, p))
    order = np.argsort(x, kind="stable")
    x, y = np.concatenate([[0.0], x[order], [1.0]]), np.concatenate([[1.0], y[order], [0.0]])
    return float(np.trapezoid(y, x))


def _divergence(p: Floats, mixtures: Floats) -> Floats:
    """`KL(p | r)` in nats for each row r."""
    present = p > 0
    return np.asarray((p[present] * np.log(p[present] / mixtures[:, present])).sum(axis=1))
