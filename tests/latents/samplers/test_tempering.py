"""Parallel tempering on targets whose modes a single chain cannot cross."""

import json
from typing import Any

import pytest
import torch

from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents.samplers import MALASampler, ParallelTemperingSampler, sampler_from_dict
from tests.latents.samplers.targets import Gaussian, TwoModes, assert_moments, seeded, standard_normal


def test_crosses_a_barrier_and_finds_the_modes_in_their_proportion() -> None:
    init = torch.full((2_000, 1), -3.0)
    single = MALASampler(600, 0.5).sample(init, TwoModes(), generator=seeded(1)).latents
    assert float((single > 0).float().mean()) < 0.01
    sampler = ParallelTemperingSampler(600, 0.5, num_temperatures=5, max_temperature=30.0)
    output = sampler.sample(init, TwoModes(), generator=seeded(1))
    right = output.latents > 0
    assert float(right.float().mean()) == pytest.approx(0.7, abs=0.05)
    assert float(output.latents[right].std()) == pytest.approx(0.5, rel=0.06)
    assert output.swap_rates is not None
    assert output.swap_rates.shape == (4,)
    assert 0.2 < float(output.swap_rates.min()) < float(output.swap_rates.max()) < 1.0


def test_the_cold_chain_keeps_a_gaussian_exactly() -> None:
    target = Gaussian(torch.tensor([1.0, -1.0]).double(), torch.tensor([[1.0, 0.6], [0.6, 0.8]]).double())
    sampler = ParallelTemperingSampler(80, 0.5, num_temperatures=3, num_adaptation_steps=30)
    output = sampler.sample(standard_normal(10_000, 2), target, generator=seeded(1))
    assert_moments(output.latents, target.mean, target.covariance)
    assert output.acceptance_rate is not None
    assert float(output.acceptance_rate.mean()) == pytest.approx(0.574, abs=0.1)


def test_temperatures_are_geometric() -> None:
    assert ParallelTemperingSampler(1, num_temperatures=3, max_temperature=9.0).temperatures == pytest.approx(
        [1, 3, 9]
    )


def test_trace_follows_the_cold_chain() -> None:
    init = standard_normal(3, 1)
    output = ParallelTemperingSampler(5).sample(init, TwoModes(), generator=seeded(1), return_trace=True)
    assert output.trace is not None
    torch.testing.assert_close(output.trace.energies[-1], -TwoModes()(output.latents))
    assert output.trace.displacements.shape == (5, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 0}, "num_steps of a parallel tempering sampler"),
        ({"num_steps": 2, "num_temperatures": 1}, "num_temperatures"),
        ({"num_steps": 2, "max_temperature": 1.0}, "max_temperature must be above 1"),
        ({"num_steps": 2, "num_adaptation_steps": 2}, "must be below num_steps"),
        ({"num_steps": 2, "target_acceptance": 0.0}, "target_acceptance"),
        ({"num_steps": 2, "step_size": -1.0}, "step_size must be positive"),
    ],
)
def test_refused_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ParallelTemperingSampler(**settings)


def test_settings_survive_json() -> None:
    sampler = ParallelTemperingSampler(7, num_temperatures=3, max_temperature=5.0)
    assert sampler_from_dict(json.loads(json.dumps(sampler.to_dict()))) == sampler
