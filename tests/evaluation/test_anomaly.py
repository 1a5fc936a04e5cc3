"""AUROC and AUPRC: by hand, against scikit-learn, and whether their intervals hold the truth."""

import numpy as np
import pytest

from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.anomaly import auprc, auroc, detection_figures

LABELS, SCORES = [0, 0, 1, 1, 0], [0.1, 0.4, 0.35, 0.8, 0.35]


def test_areas_by_hand() -> None:
    # Of six pairs four are in order, one is tied, one is not.
    assert auroc(LABELS, SCORES) == pytest.approx(4.5 / 6)
    # Thresholds 0.8, 0.4, 0.35: recall 1/2, 1/2, 1 at precision 1, 1/2, 2/4.
    assert auprc(LABELS, SCORES) == pytest.approx(0.5 * 1 + 0.5 * 0.5)
    assert auroc([0, 1], [0.0, 1.0]) == auprc([0, 1], [0.0, 1.0]) == 1.0
    assert auroc([0, 1, 1], [2.0, 2.0, 2.0]) == 0.5
    assert auprc([0, 1, 1], [2.0, 2.0, 2.0]) == pytest.approx(2 / 3)


def test_areas_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn comes with the extra `anomaly`")
    rng = np.random.default_rng(0)
    for ties in (1, 10, 1000):
        labels, scores = rng.integers(2, size=200), rng.integers(ties, size=200) / ties
        assert auroc(labels, scores) == pytest.approx(metrics.roc_auc_score(labels, scores))
        assert auprc(labels, scores) == pytest.approx(metrics.average_precision_score(labels, scores))


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


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Gaussians one apart: the AUROC is Phi(1 / sqrt 2) = 0.7602."""
    rng, held = np.random.default_rng(0), 0
    for seed in range(60):
        scores = np.concatenate([rng.normal(size=80), rng.normal(1.0, size=80)])
        measured = detection_figures([0] * 80 + [1] * 80, scores, num_resamples=200, seed=seed)["AUROC"]
        assert measured.interval_95[0] <= measured.value <= measured.interval_95[1]
        held += measured.interval_95[0] <= 0.7602 <= measured.interval_95[1]
    assert 50 <= held <= 60


def test_what_has_no_area() -> None:
    with pytest.raises(UsageError, match=r"must both have shape \(n,\), got \(2,\) and \(3,\)"):
        auroc([0, 1], [1.0, 2.0, 3.0])
    with pytest.raises(UsageError, match="one kind is missing"):
        auprc([1, 1], [1.0, 2.0])
    with pytest.raises(UsageError, match="1 for anomalies and 0 for others"):
        auprc([1, 2], [1.0, 2.0])
    with pytest.raises(UsageError, match="not finite"):
        auroc([0, 1], [1.0, float("nan")])
    with pytest.raises(UsageError, match="at least 100 resamples, got 9"):
        detection_figures(LABELS, SCORES, num_resamples=9)
