"""A prior fitted to latents that stand still: known entropies, log Z by a grid, few latents, bad input."""

import math

import pytest
import torch
from torch import Tensor

from latent_ebm_text.errors import DivergenceError, UsageError
from latent_ebm_text.latents.prior import EnergyPrior
from latent_ebm_text.latents.prior_fitting import fit_prior
from tests.helpers import seeded

CENTRE, STD = 1.5, 0.5


def two_modes(number: int, generator: torch.Generator) -> Tensor:
    side = torch.randint(2, (number, 1), generator=generator) * 2.0 - 1.0
    return STD * torch.randn(number, 2, generator=generator) + torch.cat([side * CENTRE, torch.zeros(number, 1)], 1)


def log_density_of_two_modes(latents: Tensor) -> Tensor:
    squares = torch.stack([(latents - torch.tensor([side * CENTRE, 0.0])).square().sum(dim=1) for side in (-1, 1)])
    return (-0.5 * squares / STD**2).logsumexp(dim=0) - math.log(2) - math.log(2 * math.pi * STD**2)


def flat_prior(latent_dim: int = 2) -> EnergyPrior:
    torch.manual_seed(0)
    prior = EnergyPrior(latent_dim, hidden_size=64)
    with torch.no_grad():
        prior.out.weight.mul_(0.1)
    return prior


def log_partition_on_a_grid(prior: EnergyPrior) -> float:
    grid = torch.cartesian_prod(*[torch.linspace(-8, 8, 321)] * 2)
    with torch.no_grad():
        return float(prior.log_prob(grid).logsumexp(dim=0)) + 2 * math.log(0.05)


def test_it_reaches_the_entropy_of_the_latents() -> None:
    generator = seeded()
    held_out, unseen = two_modes(2000, generator), two_modes(4000, generator)
    prior = flat_prior()
    fit = fit_prior(prior, lambda n: two_modes(n, generator), held_out, num_steps=400, generator=generator)
    assert fit.log_partition == pytest.approx(log_partition_on_a_grid(prior), abs=0.03)
    exact = float(log_density_of_two_modes(unseen).mean())
    found = float(prior.log_prob(unseen, fit.log_partition).mean().detach())
    assert found == pytest.approx(exact, abs=0.05)
    assert fit.log_prob == pytest.approx(float(prior.log_prob(held_out, fit.log_partition).mean().detach()), abs=1e-3)
    assert fit.log_prob_before < fit.log_prob - 0.5
    assert 0.5 < fit.effective_share <= 1


def test_mass_where_no_latents_are_is_seen_and_removed() -> None:
    """The flow proposes nothing at the origin, where this energy has most of its mass at first."""
    generator, prior = seeded(), flat_prior()
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
    for _ in range(300):  # a well of 8 nats at the origin
        grid = 3 * torch.randn(256, 2, generator=generator)
        loss = (prior.tilt(grid) - 8 * (-grid.square().sum(dim=1)).exp()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def far(number: int) -> Tensor:
        drawn = 0.2 * torch.randn(number, 2, generator=generator)
        return drawn + torch.tensor([2.0, 0.0])

    fit = fit_prior(prior, far, far(500), num_steps=300, generator=generator)
    assert fit.log_partition == pytest.approx(log_partition_on_a_grid(prior), abs=0.05)
    entropy = 1 + math.log(2 * math.pi * 0.2**2)
    assert fit.log_prob == pytest.approx(-entropy, abs=0.1)


def test_few_latents_are_not_learned_by_heart() -> None:
    """Of ten points in 16 dimensions a density can be any; the held-out ones keep what tells something of others."""
    generator = seeded()
    points, held_out = torch.randn(10, 16, generator=generator), torch.randn(200, 16, generator=generator)
    prior = flat_prior(16)
    fit = fit_prior(
        prior, lambda n: points[torch.randint(10, (n,), generator=generator)], held_out, num_steps=200,
        generator=generator,
    )  # fmt: skip
    assert fit.log_prob >= fit.log_prob_before
    assert float(prior.tilt(held_out).std().detach()) < 1


def test_it_is_the_same_again() -> None:
    found = []
    for _ in range(2):
        generator, prior = seeded(), flat_prior()
        held_out = two_modes(100, generator)
        found.append(fit_prior(prior, lambda n: two_modes(n, generator), held_out, num_steps=20, generator=generator))  # noqa: B023
    assert found[0] == found[1]


def test_it_ends_in_time() -> None:
    generator, prior = seeded(), flat_prior()
    before = {name: weight.clone() for name, weight in prior.state_dict().items()}
    fit = fit_prior(
        prior, lambda n: two_modes(n, generator), two_modes(100, generator), num_steps=10**6, max_seconds=1.0,
        generator=generator,
    )  # fmt: skip
    assert fit.log_prob > fit.log_prob_before
    assert any(not torch.equal(before[name], weight) for name, weight in prior.state_dict().items())


@pytest.mark.parametrize(
    ("latent_dim", "held_out", "num_steps"), [(1, 5, 10), (2, 0, 10), (2, 5, 0)], ids=["flat", "none", "no step"]
)
def test_bad_input(latent_dim: int, held_out: int, num_steps: int) -> None:
    with pytest.raises(UsageError, match=r"2 dimensions or more, some of them held out, in 1 step or more"):
        fit_prior(
            EnergyPrior(latent_dim), lambda n: torch.zeros(n, latent_dim), torch.zeros(held_out, latent_dim),
            num_steps=num_steps,
        )  # fmt: skip


def test_latents_that_are_not_finite_are_named() -> None:
    with pytest.raises(DivergenceError, match="loss is nan"):
        fit_prior(flat_prior(), lambda n: torch.full((n, 2), float("nan")), torch.zeros(3, 2), num_steps=3)
