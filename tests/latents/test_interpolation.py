"""Paths between latents: closed forms, and what each kind promises."""

import math

import pytest
import torch
from torch import Tensor

from latent_ebm_text.errors import DivergenceError, UsageError
from latent_ebm_text.latents import latent_path, linear_path, low_energy_path, path_action, spherical_path
from latent_ebm_text.latents.prior import EnergyPrior, GaussianPrior
from tests.helpers import seeded

START, END = torch.randn(2, 6, generator=seeded(3)).double()


def test_a_spherical_path_turns_evenly_and_keeps_norms() -> None:
    path = spherical_path(2 * START / START.norm(), 3 * END / END.norm(), 9)
    torch.testing.assert_close(path.norm(dim=1), torch.linspace(2, 3, 9, dtype=torch.double))
    directions = path / path.norm(dim=1, keepdim=True)
    angles = (directions[1:] * directions[:-1]).sum(dim=1).acos()
    torch.testing.assert_close(angles, angles.mean().expand(8))


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_spherical_path_between_ends_of_one_direction_is_straight(scale: float) -> None:
    torch.testing.assert_close(spherical_path(START, scale * START, 5), linear_path(START, scale * START, 5))


@pytest.mark.parametrize("stiffness", [0.05, 0.25, 4.0])
def test_the_path_of_least_action_under_a_gaussian_is_the_known_one(stiffness: float) -> None:
    points = 81
    path = low_energy_path(START, END, points, GaussianPrior(6), stiffness=stiffness)
    k, times = stiffness**-0.5, torch.linspace(0, 1, points, dtype=torch.double)[:, None]
    exact = ((k * (1 - times)).sinh() * START + (k * times).sinh() * END) / math.sinh(k)
    torch.testing.assert_close(path, exact, atol=3e-3, rtol=0)


def test_a_path_of_low_energy_has_less_energy_and_less_action_than_the_line() -> None:
    prior = EnergyPrior(6, 16).double().requires_grad_(False)
    with torch.no_grad():
        for weight in prior.parameters():
            weight.normal_(generator=seeded(0))
    line, path = (latent_path(kind, START, END, 12, prior) for kind in ("linear", "low_energy"))
    assert torch.equal(path[0], START)
    assert torch.equal(path[-1], END)
    assert float(path_action(path, prior)) < float(path_action(line, prior)) - 0.1
    assert float(prior.energy(path).mean()) < float(prior.energy(line).mean())
    # A minimum: no small change of the inner points lowers the action.
    inner = path[1:-1].clone().requires_grad_(True)
    path_action(torch.cat([path[:1], inner, path[-1:]]), prior).backward()
    assert float(inner.grad.abs().max()) < 0.01


def test_a_stiff_path_is_straight() -> None:
    path = low_energy_path(START, END, 7, GaussianPrior(6), stiffness=1e5)
    torch.testing.assert_close(path, linear_path(START, END, 7), atol=1e-4, rtol=0)


def test_what_cannot_be_a_path() -> None:
    prior = GaussianPrior(6)
    with pytest.raises(UsageError, match="unknown path 'curved'; known paths: linear, spherical, low_energy"):
        latent_path("curved", START, END, 5, prior)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="num_points must be at least 2, got 1"):
        linear_path(START, END, 1)
    with pytest.raises(UsageError, match=r"joins two latents \(latent_dim,\), got \(2, 6\) and \(6,\)"):
        linear_path(torch.stack([START, END]), END, 3)
    with pytest.raises(UsageError, match="opposite latents is not defined"):
        spherical_path(START, -START, 3)
    with pytest.raises(UsageError, match="ends that are not zero"):
        spherical_path(START, 0 * START, 3)
    with pytest.raises(UsageError, match="stiffness must be positive and finite, got 0"):
        low_energy_path(START, END, 3, prior, stiffness=0)

    def broken(latents: Tensor) -> Tensor:
        return latents.sum(dim=1) * math.nan

    with pytest.raises(DivergenceError, match="energy is not finite on the line"):
        low_energy_path(START, END, 3, broken)
