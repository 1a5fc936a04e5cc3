"""How well scores separate anomalies: areas under ROC and precision-recall curves, with intervals."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import metrics

from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.bootstrap import percentile_interval
from latent_ebm_text.evaluation.estimates import Estimate

Floats = NDArray[np.float64]


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the receiver operating characteristic: the probability that an anomaly scores above another datum.

    Ties count one half (Mann and Whitney, 1947). Random scores have 0.5.

    Args:
        labels: `(n,)`, 1 for anomalies and 0 for ordinary data.
        scores: `(n,)`, higher for the more anomalous.

    Raises:
        UsageError: If anomalies or ordinary data are missing, shapes differ, or a score is not finite.
    """
    kinds, values = _checked(labels, scores)
    return float(metrics.roc_auc_score(kinds, values))


def auprc(labels: ArrayLike, scores: ArrayLike, *, share: float | None = None) -> float:
    """Area under the precision-recall curve as average precision, with anomalies as the positives.

    This is the sum of precision times increase of recall over all thresholds, without interpolation; data with the
    same score exceed a threshold together. Random scores have the share of anomalies, so areas are comparable only
    between equal shares.

    Args:
        labels: `(n,)`, 1 for anomalies and 0 for ordinary data.
        scores: `(n,)`, higher for the more anomalous.
        share: The share of the data that anomalies are taken to be, by weighting them; by default their own share.

    Raises:
        UsageError: As `auroc`, or if the share is not between 0 and 1.
    """
    if share is not None and not 0 < share < 1:
        raise UsageError(f"share must lie between 0 and 1, got {share}")
    kinds, values = _checked(labels, scores)
    weights = None
    if share is not None:
        weights = np.where(kinds, share / kinds.sum(), (1 - share) / (~kinds).sum())
    return float(metrics.average_precision_score(kinds, values, sample_weight=weights))


def detection_metrics(
    labels: ArrayLike, scores: ArrayLike, *, num_resamples: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """AUROC and AUPRC with 95 % percentile intervals of the bootstrap.

    Anomalies and ordinary data are resampled separately, which keeps their numbers. The intervals cover the choice of
    the test data, not the training of models and detectors.

    Args:
        labels: `(n,)`, 1 for anomalies and 0 for ordinary data.
        scores: `(n,)`, higher for the more anomalous.
        num_resamples: Number of bootstrap resamples, at least 100.
        seed: Seed of the resampling.

    Raises:
        UsageError: As `auroc`, or with too few resamples.
    """
    if num_resamples < 100:
        raise UsageError(f"an interval needs at least 100 resamples, got {num_resamples}")
    kinds, values = _checked(labels, scores)
    anomalies, others = np.flatnonzero(kinds), np.flatnonzero(~kinds)
    rng = np.random.default_rng(seed)
    order = np.argsort(-values, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(values[order]) != 0, True))  # equal scores exceed a threshold together
    resampled = np.empty((num_resamples, 2))
    for number in range(num_resamples):
        chosen = np.concatenate([rng.choice(anomalies, len(anomalies)), rng.choice(others, len(others))])
        counts = np.bincount(chosen, minlength=len(kinds))[order]
        resampled[number] = _resampled_areas(kinds[order], ends, counts)
    metrics = {}
    for column, (name, value, meaning) in enumerate(
        (
            ("AUROC", auroc(kinds, values), "area under the ROC curve"),
            ("AUPRC", auprc(kinds, values), f"average precision, anomalies positive ({kinds.mean():.0%} of the data)"),
        )
    ):
        definition = f"{meaning}; percentile interval of {num_resamples} bootstrap resamples within each kind"
        metrics[name] = Estimate(value, percentile_interval(resampled[:, column]), len(kinds), definition)
    return metrics


def _resampled_areas(
    kinds: NDArray[np.bool_], ends: NDArray[np.int64], counts: NDArray[np.int64]
) -> tuple[float, float]:
    """AUROC and AUPRC of data that a resample holds `counts` times, sorted once for all resamples.

    scikit-learn takes milliseconds for every resample, which adds up to minutes for a table of detectors.

    Args:
        kinds: `(n,)`, whether a datum is an anomaly, from the highest score to the lowest.
        ends: Index of the last of every group of equal scores.
        counts: `(n,)`, in the same order.
    """
    found, false_alarms = np.cumsum(counts * kinds)[ends], np.cumsum(counts * ~kinds)[ends]
    gained = np.diff(found, prepend=0)
    pairs_in_order = np.diff(false_alarms, prepend=0) * (found - gained / 2)  # ties count one half
    precision = found / np.maximum(found + false_alarms, 1)
    area = pairs_in_order.sum() / (found[-1] * false_alarms[-1])
    return float(area), float((gained * precision).sum() / found[-1])


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.bool_], Floats]:
    try:
        kinds, values = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"scores must be numbers, got {type(scores).__name__}: {error}") from error
    if kinds.ndim != 1 or kinds.shape != values.shape:
        raise UsageError(f"labels and scores must both have shape (n,), got {kinds.shape} and {values.shape}")
    if not np.isin(kinds, (0, 1)).all():
        raise UsageError("labels must be 1 for anomalies and 0 for ordinary data")
    if kinds.all() or not kinds.any():
        raise UsageError("labels must hold anomalies and ordinary data; one kind is missing")
    if not np.isfinite(values).all():
        raise UsageError("scores contain values that are not finite (nan or inf)")
    return kinds.astype(bool), values
