"""Several anomaly scores in one, by how improbable each is among ordinary data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from latent_ebm_text.errors import UsageError

Floats = NDArray[np.float64]
#: The share of ordinary data that the tails are fitted on, and the number that this takes.
_TAIL_SHARE, _MIN_TAIL = 0.1, 10
#: Limits of the shape of a tail: 0 is exponential, and from 0.5 on the variance is infinite.
_SHAPES = (1e-3, 0.49)


class TailProbabilities:
    """How probably ordinary data score as high, score by score, and the harmonic mean of these probabilities.

    The probability is the share of ordinary data, and beyond their 90 % quantile that of a generalised Pareto tail,
    fitted by its moments (Hosking and Wallis, 1987), so that scores above all that were seen still differ. The
    harmonic mean of p-values is led by the smallest ones, as suits scores that see different kinds of anomalies, and
    holds up where scores depend on each other (Wilson, 2019). All of it learns from ordinary data only.

    Args:
        reference: `(m, num_scores)`, scores of ordinary data that nothing was fitted on, higher for the anomalous.

    Raises:
        UsageError: If there are no ordinary data.
    """

    def __init__(self, reference: Floats) -> None:
        if reference.ndim != 2 or len(reference) < 1:
            raise UsageError(f"tail probabilities need scores of ordinary data (m, num_scores), got {reference.shape}")
        self.reference = np.sort(reference, axis=0)

    def p_values(self, scores: Floats) -> Floats:
        """The tail probabilities, of the shape of `scores`, `(n, num_scores)`."""
        columns = [_tail(known, column) for known, column in zip(self.reference.T, scores.T, strict=True)]
        return np.stack(columns, axis=1)

    def fused(self, scores: Floats) -> Floats:
        """Minus the log of the harmonic mean of the p-values, `(n,)` for scores `(n, num_scores)`."""
        return np.log((1.0 / self.p_values(scores)).mean(axis=1))


def _tail(reference: Floats, scores: Floats) -> Floats:
    """The tail probabilities of one score, among sorted scores of ordinary data."""
    num = len(reference)
    p_values = (1.0 + num - np.searchsorted(reference, scores, side="left")) / (num + 1.0)
    start = np.quantile(reference, 1 - _TAIL_SHARE)
    excess = reference[reference > start] - start
    if len(excess) < _MIN_TAIL:
        return np.asarray(p_values)
    mean, variance = excess.mean(), max(excess.var(), 1e-300)
    shape = np.clip(0.5 * (1 - mean**2 / variance), *_SHAPES)
    scale = max(mean * (1 - shape), 1e-300)  # the mean excess of a Pareto tail is scale / (1 - shape)
    beyond = np.maximum(scores - start, 0.0) / scale
    share = (1.0 + len(excess)) / (num + 1.0)
    extrapolated = np.maximum(share * (1 + shape * beyond) ** (-1 / shape), 1e-300)
    return np.where(scores > start, extrapolated, p_values)
