"""Hamiltonian Monte Carlo and MALA against exact distributions."""

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from latent_ebm_text.errors import DivergenceError, UsageError
from latent_ebm_text.latents.samplers import HMCSampler, MALASampler, Sampler, sampler_from_dict
from tests.latents.samplers.targets import Gaussian, TwoModes, assert_moments, seeded, standard_normal


@pytest.fixture(scope="module")
def gaussian() -> Gaussian:
    rotation, _ = torch.linalg.qr(standard_normal(3, 3, seed=5))
    covariance = rotation @ torch.diag(torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)) @ rotation.T
    return Gaussian(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), covariance)


@pytest.mark.parametrize(
    "sampler",
    [MALASampler(150, 0.6), HMCSampler(25, 0.25, num_leapfrog_steps=5), HMCSampler(40, 2.0, num_adaptation_steps=20)],
)
def test_stationary_law_is_exact_where_unadjusted_langevin_is_too_wide(sampler: Sampler, gaussian: Gaussian) -> None:
    output = sampler.sample(standard_normal(10_000, 3), gaussian, generator=seeded(1))
    assert_moments(output.latents, gaussian.mean, gaussian.covariance)


def test_chains_in_the_target_law_stay_in_it(gaussian: Gaussian) -> None:
    """One step from exact draws, at a step size that rejects half of the proposals."""
    root = torch.linalg.cholesky(gaussian.covariance)
    init = gaussian.mean + standard_normal(100_000, 3) @ root.T
    output = MALASampler(1, 1.1).sample(init, gaussian, generator=seeded(1))
    assert output.acceptance_rate is not None
    assert 0.3 < float(output.acceptance_rate.mean()) < 0.8
    assert_moments(output.latents, gaussian.mean, gaussian.covariance)


def test_temperature_widens_the_target(gaussian: Gaussian) -> None:
    draws = HMCSampler(25, 0.5, 5, temperature=4.0).sample(standard_normal(10_000, 3), gaussian, generator=seeded(1))
    assert_moments(draws.latents, gaussian.mean, 4.0 * gaussian.covariance)


def test_an_annealed_chain_reaches_the_other_mode() -> None:
    """From one mode, MALA at temperature 1 stays there; hot at first, it finds the other."""
    init = torch.full((4_000, 1), -3.0)
    stuck = MALASampler(200, 0.5).sample(init, TwoModes(), generator=seeded(1)).latents
    assert float((stuck > 0).float().mean()) < 0.01
    cooling = MALASampler(1_500, 0.5, temperature={"start": 30.0, "end": 1.0, "shape": "geometric"})
    annealed = cooling.sample(init, TwoModes(), generator=seeded(1)).latents
    assert 0.45 < float((annealed > 0).float().mean()) < 0.8


@pytest.mark.parametrize(("sampler", "target"), [(MALASampler, 0.574), (HMCSampler, 0.8)])
def test_adaptation_finds_a_step_size_for_every_chain(sampler: Any, target: float) -> None:
    """Targets of very different widths in one batch, as posteriors of different sentences are."""
    widths = torch.tensor([0.05, 0.5, 5.0], dtype=torch.float64)[:, None]

    class Widths:
        def __call__(self, latents: Tensor) -> Tensor:
            return -0.5 * (latents / widths).square().sum(dim=-1)

    output = sampler(num_steps=1_500, num_adaptation_steps=500).sample(
        standard_normal(3, 8) * widths, Widths(), generator=seeded(1)
    )
    torch.testing.assert_close(output.acceptance_rate, torch.full_like(widths[:, 0], target), atol=0.1, rtol=0)
    ratios = output.step_sizes / widths[:, 0]
    assert float(ratios.max() / ratios.min()) < 1.4, "step sizes are proportional to the widths"


def test_mala_is_hmc_with_one_leapfrog_step(gaussian: Gaussian) -> None:
    init = standard_normal(10, 3)
    mala = MALASampler(5, 0.4, target_acceptance=0.574).sample(init, gaussian, generator=seeded(1))
    hmc = HMCSampler(5, 0.4, num_leapfrog_steps=1).sample(init, gaussian, generator=seeded(1))
    assert torch.equal(mala.latents, hmc.latents)


def test_a_leapfrog_trajectory_is_accepted_in_the_limit_of_small_steps(gaussian: Gaussian) -> None:
    output = HMCSampler(1, 1e-4, 8).sample(standard_normal(50, 3), gaussian, generator=seeded(1))
    assert output.acceptance_rate is not None
    assert float(output.acceptance_rate.min()) == pytest.approx(1.0, abs=1e-6)


def test_trace(gaussian: Gaussian) -> None:
    init = standard_normal(4, 3)
    output = MALASampler(6, 0.4).sample(init, gaussian, generator=seeded(1), return_trace=True)
    assert output.trace is not None
    assert output.trace.energies.shape == (7, 4)
    torch.testing.assert_close(output.trace.energies[0], -gaussian(init))
    torch.testing.assert_close(output.trace.energies[-1], -gaussian(output.latents))
    rejected = output.trace.displacements == 0
    assert bool((output.trace.energies[1:][rejected] == output.trace.energies[:-1][rejected]).all())


def test_proposals_that_are_not_finite_are_rejected() -> None:
    class HalfLine:
        """Exponential on z > 0, minus infinity elsewhere."""

        def __call__(self, latents: Tensor) -> Tensor:
            return torch.where(latents > 0, -latents, torch.full_like(latents, -math.inf)).sum(dim=-1)

    draws = MALASampler(600, 0.8).sample(torch.ones(4_000, 1), HalfLine(), generator=seeded(1)).latents
    assert float(draws.min()) > 0
    assert float(draws.mean()) == pytest.approx(1.0, abs=0.08)


def test_a_density_that_overflows_is_no_place_to_go() -> None:
    def overflows(latents: Tensor) -> Tensor:
        return torch.where(latents > 1, math.inf, -0.5 * latents**2).sum(dim=-1)

    draws = MALASampler(200, 0.8).sample(torch.zeros(1_000, 1), overflows, generator=seeded(1)).latents
    assert float(draws.max()) <= 1


def test_a_start_that_is_not_finite_is_refused(gaussian: Gaussian) -> None:
    with pytest.raises(DivergenceError, match="starts where the log-density"):
        MALASampler(3).sample(torch.full((2, 3), math.nan, dtype=torch.float64), gaussian)


@pytest.mark.parametrize(
    ("sampler", "settings", "message"),
    [
        (HMCSampler, {"num_steps": 0}, "num_steps of an HMC sampler must be an integer of at least 1"),
        (HMCSampler, {"num_steps": 3, "num_leapfrog_steps": 0}, "num_leapfrog_steps"),
        (MALASampler, {"num_steps": 3, "num_adaptation_steps": 3}, r"num_adaptation_steps \(3\) must be below"),
        (MALASampler, {"num_steps": 3, "target_acceptance": 1.0}, "target_acceptance must be between 0 and 1"),
        (MALASampler, {"num_steps": 3, "step_size": 0.0}, "step_size must be positive"),
        (HMCSampler, {"num_steps": 3, "temperature": 0.0}, "temperature must be positive"),
    ],
)
def test_refused_settings(sampler: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sampler(**settings)


@pytest.mark.parametrize(
    "sampler", [MALASampler(5, 0.2, num_adaptation_steps=2), HMCSampler(5, 0.2, 3, temperature=[2.0, 1.0])]
)
def test_settings_survive_json(sampler: Any) -> None:
    assert sampler_from_dict(json.loads(json.dumps(sampler.to_dict()))) == sampler
