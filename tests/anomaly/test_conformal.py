"""Guarantees by simulation: p-values, false discoveries, rates of alarms; and the fusion of scores."""

import numpy as np
import pytest

from latent_ebm_text.anomaly.conformal import AlarmStream, calibration_size, conformal_p_values, select_at_rate
from latent_ebm_text.anomaly.detectors import LatentEBMDetector
from latent_ebm_text.anomaly.fusion import TailProbabilities
from latent_ebm_text.errors import UsageError


def test_p_values_by_hand() -> None:
    p_values = conformal_p_values(np.array([1.0, 2.0, 2.0]), np.array([0.0, 2.0, 3.0]))
    np.testing.assert_allclose(p_values, [1.0, 3 / 4, 1 / 4])
    with pytest.raises(UsageError, match="need scores of ordinary data that nothing was fitted on, got none"):
        conformal_p_values(np.array([]), np.array([1.0]))


def test_p_values_of_ordinary_data_are_super_uniform() -> None:
    """Over 2,000 calibration sets of 50, whatever the distribution, ties included."""
    rng = np.random.default_rng(0)
    for draw in (rng.standard_cauchy, lambda size: rng.integers(0, 5, size).astype(float)):
        p_values = np.concatenate([conformal_p_values(draw(size=50), draw(size=5)) for _ in range(2000)])
        for level in (0.02, 0.05, 0.1, 0.3, 0.5, 0.9):
            error = 3 * np.sqrt(level / 2000)  # five data that share a calibration set count as one at worst
            assert (p_values <= level).mean() <= level + error


@pytest.mark.filterwarnings("ignore:1000 ordinary data calibrate:UserWarning")  # of single anomalies
@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_false_discoveries_stay_within_the_rate(share: float) -> None:
    """A detector fitted on 100 different sets: on average at most 10 % of what it calls anomalous is ordinary."""
    rng, num_test = np.random.default_rng(1), 500
    found, proportions = [], []
    for _ in range(100):
        detector = LatentEBMDetector(lambda data: np.abs(data)).fit(rng.normal(size=1000))
        is_anomaly = rng.random(num_test) < share
        selected = detector.select(np.where(is_anomaly, rng.normal(5, 1, num_test), rng.normal(size=num_test)), 0.1)
        proportions.append((selected & ~is_anomaly).sum() / max(selected.sum(), 1))
        found.append((selected & is_anomaly).sum() / max(is_anomaly.sum(), 1))
    assert np.mean(proportions) <= 0.1
    assert np.mean(found) > (0.3 if share < 0.1 else 0.9)


def test_selection_by_hand() -> None:
    p_values = np.array([0.04, 0.9, 0.001, 0.03, 0.5])
    assert select_at_rate(p_values, 0.1).tolist() == [True, False, True, True, False]  # 3 at most 0.06
    assert select_at_rate(np.array([0.01, 0.035, 0.04, 0.9]), 0.1).tolist() == [True, True, True, False]
    assert select_at_rate(np.array([0.5, 0.9]), 0.1).tolist() == [False, False]
    assert select_at_rate(np.array([]), 0.1).tolist() == []
    with pytest.raises(UsageError, match=r"rate must be in \[0, 1\], got 2"):
        select_at_rate(p_values, 2)
    with pytest.raises(UsageError, match="rate must be above 0 and below 1, got 0"):
        select_at_rate(p_values, 0)


def test_too_few_calibration_data_are_told() -> None:
    assert calibration_size(0.1) == 9
    assert calibration_size(0.1, 50) == 499
    detector = LatentEBMDetector(lambda data: data).fit(np.arange(20.0))
    with pytest.warns(UserWarning, match="20 ordinary data calibrate .* unless 5 or more stand out .* 99 would do"):
        detector.select(np.arange(10.0), 0.1)
    with pytest.raises(UsageError, match="alarms at a rate of 0.01 need 99 ordinary data .* and there are 20"):
        detector.stream(0.01)


def test_a_stream_keeps_its_rate_while_it_drifts() -> None:
    rng = np.random.default_rng(2)
    detector = LatentEBMDetector(lambda data: data).fit(rng.normal(size=2000))
    stream, num = detector.stream(0.05, step_size=0.01), 20_000
    drifting = rng.normal(np.linspace(0, 2, num), 1)  # a fixed threshold would call two thirds at its end
    alarms = stream.update(detector.p_values(drifting))
    assert abs(alarms.mean() - 0.05) <= 1.01 / (0.01 * num)
    assert (detector.p_values(drifting[-1000:]) <= 0.05).mean() > 0.5
    with pytest.raises(UsageError, match="step_size must be above 0"):
        AlarmStream(0.1, step_size=0)


def test_probabilities_can_be_conformal() -> None:
    detector = LatentEBMDetector(lambda data: data).fit(np.arange(10.0))
    data = np.array([-1.0, 5.0, 99.0])
    np.testing.assert_allclose(detector.predict_proba(data, method="conformal")[:, 0], detector.p_values(data))


def test_fusion_is_a_mean_of_p_values() -> None:
    tails = TailProbabilities(np.array([[1.0, 10.0], [2.0, 30.0], [3.0, 20.0]]))
    scores = np.array([[2.5, 25.0], [3.0, 0.0], [5.0, 50.0]])
    beyond = 0.25 / (1 + 2)  # two distances between median and maximum beyond the maximum
    np.testing.assert_allclose(tails.p_values(scores), [[0.5, 0.5], [0.5, 1.0], [beyond, beyond]])
    np.testing.assert_allclose(np.exp(-tails.fused(scores)), [0.5, 2 / 3, beyond])  # harmonic
    np.testing.assert_allclose(np.exp(-tails.added(scores)), [0.5, 0.5**0.5, beyond])  # geometric
    assert np.isfinite(TailProbabilities(np.ones((3, 1))).fused(np.array([[2.0]]))).all()
    with pytest.raises(UsageError, match=r"scores of ordinary data \(m, num_scores\), got \(0, 2\)"):
        TailProbabilities(np.zeros((0, 2)))
