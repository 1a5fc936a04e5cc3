"""How well scores tell anomalies from ordinary data: areas under ROC and precision-recall curves, with intervals."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.measurements import Measurement

Floats = NDArray[np.float64]


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the receiver operating characteristic: how probably an anomaly scores above another datum.

    Ties count one half (Mann and Whitney, 1947). A random score has 0.5.

    Args:
        labels: `(n,)`, 1 for anomalies, 0 for others.
        scores: `(n,)`, higher for the more anomalous.

    Raises:
        UsageError: If there is no datum of one kind, shapes differ, or a score is not finite.
    """
    return _auroc(*_checked(labels, scores))


def auprc(labels: ArrayLike, scores: ArrayLike, *, share: float | None = None) -> float:
    """Area under the precision-recall curve as average precision: anomalies are the positives.

    The sum of precision times rise of recall over thresholds, without interpolation; data of one score are above the
    threshold together. A random score has the share of anomalies: areas compare between equal shares alone.

    Args:
        labels: `(n,)`, 1 for anomalies, 0 for others.
        scores: `(n,)`, higher for the more anomalous.
        share: What share of the data anomalies are taken to be, each weighing accordingly; their own by default.

    Raises:
        UsageError: As `auroc`, or if the share is not between 0 and 1.
    """
    if share is not None and not 0 < share < 1:
        raise UsageError(f"share must lie between 0 and 1, got {share}")
    return _auprc(*_checked(labels, scores), share)


def detection_figures(
    labels: ArrayLike, scores: ArrayLike, *, num_resamples: int = 1000, seed: int = 0
) -> dict[str, Measurement]:
    """AUROC and AUPRC with 95 % percentile intervals of the bootstrap.

    Anomalies and ordinary data are resampled each by themselves, so that their numbers stay what the task says. The
    intervals are of the test data; models and detectors are taken as they are.

    Args:
        labels: `(n,)`, 1 for anomalies, 0 for others.
        scores: `(n,)`, higher for the more anomalous.
        num_resamples: Bootstrap resamples, at least 100.
        seed: Of the resampling.

    Raises:
        UsageError: As `auroc`; or with too few resamples.
    """
    if num_resamples < 100:
        raise UsageError(f"an interval needs at least 100 resamples, got {num_resamples}")
    kinds, values = _checked(labels, scores)
    anomalies, others = np.flatnonzero(kinds), np.flatnonzero(~kinds)
    rng = np.random.default_rng(seed)
    resampled = np.empty((num_resamples, 2))
    for number in range(num_resamples):
        chosen = np.concatenate([rng.choice(anomalies, len(anomalies)), rng.choice(others, len(others))])
        resampled[number] = _auroc(kinds[chosen], values[chosen]), _auprc(kinds[chosen], values[chosen])
    figures = {}
    for column, (name, function, meaning) in enumerate(
        (
            ("AUROC", _auroc, "area under the ROC curve"),
            ("AUPRC", _auprc, f"average precision, anomalies positive ({kinds.mean():.0%} of the data)"),
        )
    ):
        low, high = np.percentile(resampled[:, column], [2.5, 97.5])
        definition = f"{meaning}; percentile bootstrap, {num_resamples} resamples within each kind"
        figures[name] = Measurement(function(kinds, values), (float(low), float(high)), len(kinds), definition)
    return figures


def _auroc(kinds: NDArray[np.bool_], scores: Floats) -> float:
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # ties share their mean rank
    positives = int(kinds.sum())
    above = ranks[kinds].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (len(kinds) - positives)))


def _auprc(kinds: NDArray[np.bool_], scores: Floats, share: float | None = None) -> float:
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    found = np.cumsum(kinds[order])[last]
    false_alarms = last + 1 - found
    weight = 1.0 if share is None else share / (1 - share) * (~kinds).sum() / kinds.sum()
    precision, recall = weight * found / (weight * found + false_alarms), found / kinds.sum()
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.bool_], Floats]:
    kinds, values = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if kinds.ndim != 1 or kinds.shape != values.shape:
        raise UsageError(f"labels and scores must both have shape (n,), got {kinds.shape} and {values.shape}")
    if not np.isin(kinds, (0, 1)).all():
        raise UsageError("labels must be 1 for anomalies and 0 for others")
    if kinds.all() or not kinds.any():
        raise UsageError("labels must hold anomalies and ordinary data; one kind is missing")
    if not np.isfinite(values).all():
        raise UsageError("scores contain values that are not finite (nan or inf)")
    return kinds.astype(bool), values
