"""The detector: pyod's interface and arithmetic, thresholds on disk, and text models behind it."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latent_ebm_text import LatentEBMForTextGeneration
from latent_ebm_text.anomaly.detectors import LatentEBMDetector
from latent_ebm_text.anomaly.text_detector import LatentEBMTextDetector
from latent_ebm_text.errors import DataError, UsageError
from tests.helpers import SENTENCES, WORDS, tiny_model, tiny_tokenizer

TRAIN = np.random.default_rng(0).normal(size=(200, 2))
TEST = np.random.default_rng(1).normal(size=(50, 2)) * 2
TEXTS = [*SENTENCES, *(" ".join(WORDS[i : i + 4]) for i in range(12))]


def norms(data: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(data).norm(dim=1)


def test_a_detector_does_what_pyod_detectors_do() -> None:
    base = pytest.importorskip(
        "pyod.models.base", reason="pyod is no dependency; its base class is compared where it is"
    )

    class Norms(base.BaseDetector):
        def __init__(self, contamination: float) -> None:
            super().__init__(contamination=contamination)

        def fit(self, X: np.ndarray, y: None = None) -> "Norms":
            self.decision_scores_ = self.decision_function(X)
            self._set_n_classes(y)
            self._process_decision_scores()
            return self

        def decision_function(self, X: np.ndarray) -> np.ndarray:
            return norms(X).numpy()

    theirs, ours = Norms(contamination=0.07).fit(TRAIN), LatentEBMDetector(norms, contamination=0.07).fit(TRAIN)
    assert ours.threshold_ == pytest.approx(theirs.threshold_)
    assert ours.labels_.tolist() == theirs.labels_.tolist()
    assert ours.predict(TEST).tolist() == theirs.predict(TEST).tolist()
    for method in ("linear", "unify"):
        expected = theirs.predict_proba(TEST, method=method)
        np.testing.assert_allclose(ours.predict_proba(TEST, method=method), expected, atol=1e-12)
    for name in ("fit", "decision_function", "predict", "predict_proba", "fit_predict", "contamination"):
        assert hasattr(ours, name)


def test_threshold_and_scores_are_apart() -> None:
    detector = LatentEBMDetector(norms, contamination=0.1)
    before = detector.decision_function(TEST)
    assert detector.fit_predict(TRAIN).sum() == 20
    assert np.array_equal(detector.decision_function(TEST), before)
    detector.set_threshold(0.0)
    assert detector.labels_.sum() == 200
    assert detector.predict(TEST).all()
    assert np.array_equal(detector.decision_function(TEST), before)


def test_a_detector_comes_back_from_disk(tmp_path: Path) -> None:
    detector = LatentEBMDetector(norms, contamination=0.2).fit(TRAIN)
    detector.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["detector.json", "detector.safetensors"]
    again = LatentEBMDetector.from_pretrained(tmp_path, norms)
    assert (again.threshold_, again.contamination) == (detector.threshold_, 0.2)
    assert np.array_equal(again.decision_scores_, detector.decision_scores_)
    assert np.array_equal(again.predict_proba(TEST), detector.predict_proba(TEST))
    saved = json.loads((tmp_path / "detector.json").read_text())
    (tmp_path / "detector.json").write_text(json.dumps({**saved, "num_training_data": 3}))
    with pytest.raises(DataError, match="differ in the number of training data"):
        LatentEBMDetector.from_pretrained(tmp_path, norms)
    (tmp_path / "detector.json").write_text(json.dumps({**saved, "detector": "Other"}))
    with pytest.raises(DataError, match="holds no LatentEBMDetector of format"):
        LatentEBMDetector.from_pretrained(tmp_path, norms)
    (tmp_path / "detector.safetensors").write_bytes(b"")
    (tmp_path / "detector.json").write_text(json.dumps(saved))
    with pytest.raises(DataError, match="cannot be read as a detector"):
        LatentEBMDetector.from_pretrained(tmp_path, norms)
    with pytest.raises(DataError, match="holds no detector"):
        LatentEBMDetector.from_pretrained(tmp_path / "missing", norms)


@pytest.mark.parametrize("changes", [{"threshold": None}, {"threshold": "nan"}, {"contamination": 7}])
def test_a_damaged_detector_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    detector = LatentEBMDetector(norms, np.float32(0.25)).fit(TRAIN)
    detector.set_threshold(np.float32(2))
    detector.save_pretrained(tmp_path)
    assert LatentEBMDetector.from_pretrained(tmp_path, norms).threshold_ == 2
    path = tmp_path / "detector.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(DataError, match="cannot be read as a detector"):
        LatentEBMDetector.from_pretrained(tmp_path, norms)


@pytest.mark.parametrize("change", [{"unheard_of": 1}, {"score": "nll of another version"}, {"log_partition": {}}])
def test_a_text_detector_of_another_version_is_refused(
    tmp_path: Path, model: LatentEBMForTextGeneration, change: dict[str, object]
) -> None:
    detector = LatentEBMTextDetector(model, tiny_tokenizer(), score="reconstruction")
    detector.fit(SENTENCES).save_pretrained(tmp_path)
    path = tmp_path / "detector.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps(saved | {"settings": saved["settings"] | change}))
    with pytest.raises(DataError, match="cannot be read as a detector of this version"):
        LatentEBMTextDetector.from_pretrained(tmp_path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("method", ["linear", "unify"])
def test_probabilities_beside_constant_scores(method: Any) -> None:
    detector = LatentEBMDetector(lambda data: np.asarray(data, dtype=float)).fit([1.0] * 10)
    assert detector.predict_proba([1.0, 20.0, 0.5], method=method)[:, 1].tolist() == [0.0, 1.0, 0.0]


def test_what_cannot_be_detected() -> None:
    with pytest.raises(UsageError, match="contamination must be above 0 and at most 0.5, got 0.6"):
        LatentEBMDetector(norms, contamination=0.6)
    detector = LatentEBMDetector(norms)
    for use in (detector.predict, detector.predict_proba, detector.save_pretrained):
        with pytest.raises(UsageError, match="no threshold yet: call fit"):
            use(TEST)  # type: ignore[operator]
    with pytest.raises(UsageError, match="at least 2 training data, got 1"):
        detector.fit(TRAIN[:1])
    with pytest.raises(UsageError, match="method must be 'linear', 'unify' or 'conformal', got 'other'"):
        detector.fit(TRAIN).predict_proba(TEST, method="other")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="threshold must be finite, got nan"):
        detector.set_threshold(float("nan"))
    with pytest.raises(DataError, match="the score of datum 1 is not finite"):
        LatentEBMDetector(lambda data: [0.0, float("inf")]).fit(None)
    with pytest.raises(UsageError, match=r"one number per datum, got shape \(2, 1\)"):
        LatentEBMDetector(lambda data: [[0.0], [1.0]]).fit(None)


@pytest.mark.parametrize("score", ["nll_per_token", "joint_energy"])
def test_a_text_detector_comes_back_from_disk_with_its_model(tmp_path: Path, score: str) -> None:
    detector = LatentEBMTextDetector(tiny_model(), tiny_tokenizer(), 0.25, score=score, batch_size=5)  # type: ignore[arg-type]
    assert detector.fit_predict(TEXTS).sum() == 4
    scores = detector.decision_function(TEXTS)
    np.testing.assert_array_equal(scores, detector.decision_scores_)
    detector.save_pretrained(tmp_path)
    assert not [p for p in tmp_path.iterdir() if p.suffix not in (".json", ".safetensors", ".jinja")]
    again = LatentEBMTextDetector.from_pretrained(tmp_path)
    assert again.settings() == detector.settings()
    assert again.predict(TEXTS).tolist() == detector.labels_.tolist()
    np.testing.assert_array_equal(again.decision_function(TEXTS), scores)


def test_settings_of_a_text_detector(model: LatentEBMForTextGeneration) -> None:
    with pytest.raises(UsageError, match="unknown score 'perplexity'; known scores: nll_per_token"):
        LatentEBMTextDetector(model, tiny_tokenizer(), score="perplexity")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="unknown score 'squared_error'"):
        LatentEBMTextDetector(model, tiny_tokenizer(), score="squared_error")
    with pytest.raises(UsageError, match="score='nll' needs marginal='elbo', 'importance' or 'ais'"):
        LatentEBMTextDetector(model, tiny_tokenizer(), score="nll", marginal="none")


def test_confidence_is_the_probability_of_the_same_label() -> None:
    """Against the sum that defines it: that fewer than the share of anomalies would rank above the datum."""
    detector = LatentEBMDetector(lambda data: data, contamination=0.2).fit(np.arange(10.0))
    data = np.array([-1.0, 4.5, 8.5, 20.0])
    labels, confidence = detector.predict(data, return_confidence=True)
    assert labels.tolist() == [0, 0, 1, 1]
    for datum, label, value in zip(data, labels, confidence, strict=True):
        p = (1 + sum(number <= datum for number in range(10))) / 12
        anomalous = sum(math.comb(10, i) * p**i * (1 - p) ** (10 - i) for i in range(9, 11))
        assert value == pytest.approx(anomalous if label else 1 - anomalous)
    assert np.array_equal(detector.predict_confidence(data), confidence)
    probabilities, again = detector.predict_proba(data, return_confidence=True)
    assert np.array_equal(again, confidence)
    assert np.array_equal(probabilities, detector.predict_proba(data))


def test_scikit_learn_can_clone_a_detector(model: LatentEBMForTextGeneration) -> None:
    from sklearn.base import clone

    detector = LatentEBMTextDetector(model, tiny_tokenizer(), 0.25, score="reconstruction", batch_size=5).fit(TEXTS)
    copy = clone(detector)
    assert not hasattr(copy, "decision_scores_")
    assert np.array_equal(copy.fit(TEXTS).decision_scores_, detector.decision_scores_)
    detector.set_params(score="prior_energy")
    assert (detector.contamination, detector.batch_size) == (0.25, 5)
    with pytest.raises(UsageError, match="no threshold yet"):  # that of another score would mean nothing
        detector.predict(TEXTS)
    with pytest.raises(UsageError, match="has no parameter 'scores': it has model, tokenizer"):
        detector.set_params(scores="nll")
    with pytest.raises(UsageError, match="contamination must be above 0"):
        detector.set_params(contamination=0.9)
