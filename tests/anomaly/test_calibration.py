"""The calibrated score of images on latents and errors whose dependence is known."""

import numpy as np
import pytest
from safetensors.numpy import load, save
from sklearn.mixture import GaussianMixture

from latent_ebm_text.anomaly.calibration import LatentCalibration
from latent_ebm_text.errors import UsageError


def ordinary(seed: int, number: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """Latents from N(0, I); an image costs `exp(2 z_0)` on average, by 10 % more or less."""
    rng = np.random.default_rng(seed)
    latents = rng.normal(size=(number, 2))
    return latents, np.exp(2 * latents[:, 0] + 0.1 * rng.normal(size=number))


def test_an_error_is_compared_with_what_is_usual_at_its_latent() -> None:
    calibration = LatentCalibration().fit(*ordinary(0))
    latents, errors = ordinary(1, 500)
    simple = np.array([[-1.5, 0.0]])
    unusual = calibration.scores(simple, np.exp([-1.5]))  # large where z_0 = -1.5, small among all images
    assert float(unusual["error"][0]) > np.quantile(calibration.scores(latents, errors)["calibrated"], 0.99)
    assert float(np.exp(-1.5)) < float(np.median(errors))


def test_a_rare_latent_is_found_however_small_the_error() -> None:
    calibration = LatentCalibration().fit(*ordinary(0))
    found = calibration.scores(np.array([[0.0, 5.0]]), np.array([1e-6]))
    assert float(found["error"][0]) < -3
    assert float(found["calibrated"][0]) == float(found["rarity"][0]) > 5


def test_the_density_is_that_of_the_mixture() -> None:
    latents, errors = ordinary(0)
    calibration = LatentCalibration().fit(latents, errors, seed=3)
    mixture = GaussianMixture(10, reg_covar=1e-4, n_init=3, random_state=3).fit(latents)
    expected = -mixture.score_samples(latents[:9])
    found = calibration.scores(latents, errors)["rarity"][:9] * calibration.scale[1] + calibration.location[1]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_calibration_is_saved_without_loss() -> None:
    latents, errors = ordinary(0)
    calibration = LatentCalibration().fit(latents, errors)
    again = LatentCalibration.from_arrays(load(save(calibration.arrays())))
    first, second = (each.scores(latents, errors)["calibrated"] for each in (calibration, again))
    np.testing.assert_array_equal(first, second)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(UsageError, match="50 ordinary images or more, got 12"):
        LatentCalibration().fit(*ordinary(0, 12))
