"""AUROC and AUPRC: by hand, by their definitions, and whether their intervals hold the truth."""

import numpy as np
import pytest

from latent_ebm_text.anomaly.metrics import _resampled_areas, auprc, auroc, detection_metrics
from latent_ebm_text.errors import UsageError

LABELS, SCORES = [0, 0, 1, 1, 0], [0.1, 0.4, 0.35, 0.8, 0.35]


def test_areas_by_hand() -> None:
    # Of six pairs four are in order, one is tied, one is not.
    assert auroc(LABELS, SCORES) == pytest.approx(4.5 / 6)
    # Thresholds 0.8, 0.4, 0.35: recall 1/2, 1/2, 1 at precision 1, 1/2, 2/4.
    assert auprc(LABELS, SCORES) == pytest.approx(0.5 * 1 + 0.5 * 0.5)
    assert auroc([0, 1], [0.0, 1.0]) == auprc([0, 1], [0.0, 1.0]) == 1.0
    assert auroc([0, 1, 1], [2.0, 2.0, 2.0]) == 0.5
    assert auprc([0, 1, 1], [2.0, 2.0, 2.0]) == pytest.approx(2 / 3)


def test_areas_are_what_their_definitions_say() -> None:
    rng = np.random.default_rng(0)
    for ties in (1, 10, 1000):
        labels, scores = rng.integers(2, size=200), rng.integers(ties, size=200) / ties
        anomalies, others = scores[labels == 1], scores[labels == 0]
        pairs = np.sign(anomalies[:, None] - others)
        assert auroc(labels, scores) == pytest.approx(((pairs + 1) / 2).mean())
        area, recall = 0.0, 0.0
        for threshold in np.unique(scores)[::-1]:
            found = (anomalies >= threshold).sum()
            precision = found / (found + (others >= threshold).sum())
            area += precision * (found / len(anomalies) - recall)
            recall = found / len(anomalies)
        assert auprc(labels, scores) == pytest.approx(area)


def test_the_share_of_anomalies_can_be_set() -> None:
    """As if there were more or fewer of the same anomalies."""
    rng = np.random.default_rng(0)
    ordinary, anomalies = rng.normal(size=300), rng.normal(1.0, size=300)
    labels, scores = [0] * 300 + [1] * 300, np.concatenate([ordinary, anomalies])
    for copies in (2, 5):
        more = auprc([0] * 300 + [1] * 300 * copies, np.concatenate([ordinary, *[anomalies] * copies]))
        assert auprc(labels, scores, share=copies / (copies + 1)) == pytest.approx(more)
    assert auprc(labels, scores, share=0.5) == pytest.approx(auprc(labels, scores))
    # Every anomaly after every other datum, the worst there is: 1 - (1 - p) / p * log(1 / (1 - p)) for many data.
    worst = auprc([0] * 4000 + [1] * 4000, np.arange(8000.0)[::-1], share=0.1)
    assert worst == pytest.approx(1 - 9 * np.log(1 / 0.9), abs=1e-3)
    with pytest.raises(UsageError, match="share must lie between 0 and 1, got 1"):
        auprc(labels, scores, share=1)


def test_resamples_have_the_areas_of_the_data_repeated() -> None:
    rng = np.random.default_rng(0)
    for ties in (1, 10, 1000):
        labels, scores = rng.integers(2, size=60), rng.integers(ties, size=60) / ties
        counts = rng.integers(4, size=60)
        order = np.argsort(-scores, kind="stable")
        ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
        repeated = np.repeat(labels, counts), np.repeat(scores, counts)
        found = _resampled_areas(labels[order].astype(bool), ends, counts[order])
        assert found == pytest.approx((auroc(*repeated), auprc(*repeated)))


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Gaussians one apart: the AUROC is Phi(1 / sqrt 2) = 0.7602."""
    rng, held = np.random.default_rng(0), 0
    for seed in range(60):
        scores = np.concatenate([rng.normal(size=80), rng.normal(1.0, size=80)])
        measured = detection_metrics([0] * 80 + [1] * 80, scores, num_resamples=200, seed=seed)["AUROC"]
        assert measured.interval_95[0] <= measured.value <= measured.interval_95[1]
        held += measured.interval_95[0] <= 0.7602 <= measured.interval_95[1]
    assert 50 <= held <= 60


def test_what_has_no_area() -> None:
    with pytest.raises(UsageError, match=r"must both have shape \(n,\), got \(2,\) and \(3,\)"):
        auroc([0, 1], [1.0, 2.0, 3.0])
    with pytest.raises(UsageError, match="one kind is missing"):
        auprc([1, 1], [1.0, 2.0])
    with pytest.raises(UsageError, match="1 for anomalies and 0 for ordinary data"):
        auprc([1, 2], [1.0, 2.0])
    with pytest.raises(UsageError, match="not finite"):
        auroc([0, 1], [1.0, float("nan")])
    with pytest.raises(UsageError, match="at least 100 resamples, got 9"):
        detection_metrics(LABELS, SCORES, num_resamples=9)
