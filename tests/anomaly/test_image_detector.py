"""The detector of images on the digits of scikit-learn, from training to a saved folder."""

import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from latent_ebm_text import LatentEBMImageDetector
from latent_ebm_text.errors import DataError, UsageError


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Zeros and sixes, and sevens as anomalies."""
    data = load_digits()
    images = (data.images / 16 * 255).astype(np.uint8)
    return images[np.isin(data.target, (0, 6))], images[data.target == 7]


@pytest.fixture(scope="module")
def detector(digits: tuple[np.ndarray, np.ndarray]) -> LatentEBMImageDetector:
    return LatentEBMImageDetector(num_updates=150).fit(digits[0][:260])


def test_it_trains_itself_and_finds_another_digit(detector, digits) -> None:
    ordinary, others = digits[0][260:], digits[1]
    scores = detector.decision_function(np.concatenate([ordinary, others]))
    assert roc_auc_score([0] * len(ordinary) + [1] * len(others), scores) > 0.9
    assert detector.predict(others).mean() > 0.5
    assert detector.predict(ordinary).mean() < 0.3
    assert np.mean(detector.p_values(ordinary) <= 0.2) < 0.4
    assert detector.labels_.mean() == pytest.approx(0.1, abs=0.01)


def test_heat_maps_show_where(detector, digits) -> None:
    spoiled = digits[0][260:261].copy()
    spoiled[0, 0, 7] = 255
    before, after = detector.heat_maps(digits[0][260:261]), detector.heat_maps(spoiled)
    assert before.shape == (1, 8, 8)
    assert np.unravel_index(after[0].argmax(), (8, 8)) == (0, 7)
    assert after[0, 0, 7] > before[0].max()


def test_a_saved_detector_gives_the_same_scores(detector, digits, tmp_path) -> None:
    detector.save_pretrained(tmp_path)
    again = LatentEBMImageDetector.from_pretrained(tmp_path)
    np.testing.assert_allclose(again.decision_function(digits[1]), detector.decision_function(digits[1]), rtol=1e-6)
    assert again.threshold_ == detector.threshold_
    np.testing.assert_allclose(again.heat_maps(digits[1][:2]), detector.heat_maps(digits[1][:2]), rtol=1e-5)
    (tmp_path / "calibration.safetensors").write_bytes(b"cut")
    with pytest.raises(DataError, match="cannot be read as a detector"):
        LatentEBMImageDetector.from_pretrained(tmp_path)


def test_a_model_can_be_given(detector, digits) -> None:
    other = LatentEBMImageDetector(detector._model(), contamination=0.05).fit(list(digits[0]))
    scores = other.decision_function(np.concatenate([digits[0], digits[1]]))
    assert roc_auc_score([0] * len(digits[0]) + [1] * len(digits[1]), scores) > 0.9
    assert clone(other).contamination == 0.05


def test_what_cannot_be_fitted_is_refused(detector, digits) -> None:
    with pytest.raises(UsageError, match="100 images or more, got 40"):
        LatentEBMImageDetector().fit(digits[0][:40])
    with pytest.raises(UsageError, match="contamination must be above 0"):
        LatentEBMImageDetector(contamination=0)
    with pytest.raises(UsageError, match="a list or an array of them, got str"):
        LatentEBMImageDetector().fit("pictures")
    with pytest.raises(DataError, match="integers from 0 to 255"):
        detector.decision_function(digits[1] / 255.0)
    with pytest.raises(UsageError, match="no images were given"):
        detector.predict([])
    with pytest.raises(DataError, match="open files with PIL.Image.open"):
        LatentEBMImageDetector().fit([f"{number}.png" for number in range(100)])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_count_whatever_the_first_image_is(digits, mode: str) -> None:
    """Grey images of many sizes and one mode of colour ones; the anomalies differ in nothing but their colour."""
    ordinary = [Image.fromarray(image).resize((8 + 2 * (row % 5),) * 2) for row, image in enumerate(digits[0][:160])]
    tinted = [ImageOps.colorize(image, "black", "red").convert(mode) for image in ordinary[:20]]
    detector = LatentEBMImageDetector(num_updates=20).fit([*ordinary[20:], tinted[0]])
    assert detector._model().config.image_size == 12
    scores = detector.decision_function([*ordinary[1:20], *tinted[1:]])
    assert roc_auc_score([0] * 19 + [1] * 19, scores) > 0.9
