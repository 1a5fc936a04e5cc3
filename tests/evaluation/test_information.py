"""Mutual information of a linear-Gaussian model, where it is known."""

import math

import pytest
import torch
from torch import Tensor

from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.latents import mutual_information
from tests.latents.samplers.targets import standard_normal


def gaussian_pair(size: int, noise: float) -> tuple[Tensor, Tensor]:
    """x = z + noise in two dimensions, and the posterior draw of z given x (the very z that made x)."""
    latents = standard_normal(size, 2, seed=1)
    return latents + noise * standard_normal(size, 2, seed=2), latents


@pytest.mark.parametrize("noise", [0.5, 1.0, 3.0])
def test_it_finds_the_information_of_a_gaussian_channel(noise: float) -> None:
    data, latents = gaussian_pair(2_000, noise)
    exact = 2 * 0.5 * math.log(1 + 1 / noise**2)
    found = mutual_information(lambda z: -0.5 * ((data - z) / noise).square().sum(dim=1), latents)
    assert found.value == pytest.approx(exact, abs=4 * found.standard_error)
    assert found.details["warning"] is None


def test_it_saturates_at_log_n_and_says_so() -> None:
    data, latents = gaussian_pair(20, 0.01)
    found = mutual_information(lambda z: -0.5 * ((data - z) / 0.01).square().sum(dim=1), latents)
    assert found.value == pytest.approx(math.log(20), abs=0.05)
    assert found.details["warning"] == "at least this: the estimator cannot exceed 3.0"
    assert found.to_dict()["limit"] == pytest.approx(math.log(20))


def test_an_unused_latent_has_no_information() -> None:
    _, latents = gaussian_pair(50, 1.0)
    found = mutual_information(lambda z: torch.zeros(len(z)), latents, likelihood_weight=3.0)
    assert found.value == pytest.approx(0.0, abs=1e-9)


def test_one_datum_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 2 data"):
        mutual_information(lambda z: z.sum(dim=1), torch.zeros(1, 2))
