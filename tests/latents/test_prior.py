"""The energy-based prior: its sign, its closed-form score, and what makes it a density."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents.density import ScoredLogDensity
from latent_ebm_text.latents.prior import EnergyPrior


def make_prior(
    latent_dim: int = 3,
    num_hidden_layers: int = 2,
    activation: str = "gelu",
    dtype: torch.dtype = torch.float64,
    num_vectors: int = 1,
) -> EnergyPrior:
    """A prior whose tilt is as strong as the reference Gaussian."""
    torch.manual_seed(0)
    prior = EnergyPrior(latent_dim, 16, num_hidden_layers, activation, num_vectors).to(dtype)
    for weight in prior.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    return prior


def draw(num: int, latent_dim: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return 2 * torch.randn(num, latent_dim, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.fixture
def slope_prior() -> EnergyPrior:
    """`f(z) = 2 leaky_relu(z)` in one dimension: everything is known by hand."""
    prior = EnergyPrior(1, 1, 1, "leaky_relu").double()
    with torch.no_grad():
        prior.hidden[0].weight.fill_(1.0)
        prior.hidden[0].bias.fill_(0.0)
        prior.out.weight.fill_(2.0)
    return prior


def test_energy_by_hand(slope_prior: EnergyPrior) -> None:
    latents = torch.tensor([[3.0], [0.0], [-5.0]], dtype=torch.float64)
    assert slope_prior.tilt(latents).tolist() == [6.0, 0.0, -2.0]
    assert slope_prior.energy(latents).tolist() == [4.5 - 6.0, 0.0, 12.5 + 2.0]
    assert slope_prior.score(latents).flatten().tolist() == [2.0 - 3.0, 0.4, 0.4 + 5.0]


def test_low_energy_means_high_probability() -> None:
    prior, latents = make_prior(), draw(200)
    by_energy = prior.energy(latents).argsort()
    assert torch.equal(by_energy, prior.log_prob(latents).argsort(descending=True))
    assert (prior.energy(latents + 1e-4 * prior.score(latents)) < prior.energy(latents)).all(), "the score goes down"


def test_called_as_a_function_it_is_minus_the_energy() -> None:
    prior, latents = make_prior(), draw(50)
    assert isinstance(prior, ScoredLogDensity)
    assert torch.equal(prior(latents), -prior.energy(latents))
    value, score = prior.value_and_score(latents)
    torch.testing.assert_close(value, prior(latents).detach(), rtol=0, atol=1e-12)
    assert torch.equal(score, prior.score(latents))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("num_hidden_layers", [1, 2, 3])
@pytest.mark.parametrize(("activation", "num_vectors"), [("gelu", 1), ("leaky_relu", 1), ("gelu", 3)])
def test_closed_form_score_equals_autograd(
    activation: str, num_vectors: int, num_hidden_layers: int, dtype: torch.dtype
) -> None:
    prior = make_prior(6, num_hidden_layers, activation, dtype, num_vectors)
    latents = draw(64, 6, dtype).requires_grad_()
    (expected,) = torch.autograd.grad(prior(latents).sum(), latents)
    assert (expected + latents).detach().abs().mean() > 0.1, "the tilt is part of what is compared"
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(prior.score(latents), expected, rtol=tolerance, atol=5 * tolerance)


@pytest.mark.parametrize(("activation", "num_vectors"), [("gelu", 1), ("leaky_relu", 1), ("gelu", 3)])
def test_frozen_prior_agrees_with_autograd_for_any_number_of_rows(activation: str, num_vectors: int) -> None:
    """One row, a few, many, and few again: buffers of another size are never mistaken."""
    prior = make_prior(activation=activation, num_vectors=num_vectors)
    frozen = prior.frozen()
    assert isinstance(frozen, ScoredLogDensity)
    earlier = frozen.score(draw(4))
    kept = earlier.clone()
    for rows in (1, 7, 1027, 4, 0):
        latents = draw(rows).requires_grad_()
        value = prior(latents)
        (expected,) = torch.autograd.grad(value.sum(), latents)
        torch.testing.assert_close(frozen.score(latents), expected, rtol=0, atol=1e-12)
        for found, wanted in zip(frozen.value_and_score(latents), (value.detach(), expected), strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    assert torch.equal(earlier, kept), "a score that was given away is not overwritten"


def test_the_energy_of_vectors_is_a_sum_over_them_and_a_term_of_the_whole() -> None:
    prior, latents = make_prior(6, num_vectors=3), draw(20, 6)
    of_vectors, network = prior.of_vectors, prior.of_vectors.network
    terms = [
        network.tilt(torch.cat([latents[:, 2 * v : 2 * v + 2], of_vectors.embedding[v].expand(20, 2)], dim=1))
        for v in range(3)
    ]
    mixing = EnergyPrior(6, 16).double()
    mixing.load_state_dict(prior.state_dict(), strict=False)
    torch.testing.assert_close(prior.tilt(latents), sum(terms) + mixing.tilt(latents))
    with pytest.raises(UsageError, match="num_vectors must divide latent_dim, got 4 and 6"):
        EnergyPrior(6, num_vectors=4)


def test_score_builds_no_graph_and_works_under_inference_mode() -> None:
    prior, latents = make_prior(), draw(8).requires_grad_()
    value, score = prior.value_and_score(latents)
    assert not any(result.requires_grad for result in (value, score, prior.score(latents)))
    with torch.inference_mode():
        assert torch.equal(prior.score(draw(8)), score)


def test_log_prob_of_a_known_density_integrates_to_one(slope_prior: EnergyPrior) -> None:
    def half_line(slope: float) -> float:  # the integral of exp(slope z) N(z; 0, 1) over the side it rises to
        return math.exp(slope**2 / 2) * 0.5 * (1 + math.erf(slope / math.sqrt(2)))

    log_partition = math.log(half_line(2.0) + half_line(-0.4))
    grid = torch.linspace(-10, 12, 22_001, dtype=torch.float64)
    density = slope_prior.log_prob(grid[:, None], log_partition).exp()
    assert torch.trapezoid(density, grid).item() == pytest.approx(1.0, abs=1e-6)


def test_log_prob_in_two_dimensions_integrates_to_one_given_quadrature_log_z() -> None:
    prior = make_prior(latent_dim=2)
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(60))
    tilt = prior.tilt(torch.cartesian_prod(nodes, nodes))
    log_partition = torch.log((torch.outer(weights, weights).flatten() / (2 * math.pi) * tilt.exp()).sum())
    assert abs(log_partition) > 0.1, "a tilt that integrates to something else than the Gaussian"

    axis = torch.arange(-10, 10, 0.1, dtype=torch.float64)
    mass = prior.log_prob(torch.cartesian_prod(axis, axis), log_partition).exp().sum() * 0.1**2
    assert mass.item() == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(prior.log_prob(draw(5, 2)), prior.log_prob(draw(5, 2), log_partition) + log_partition)


def test_no_weight_shifts_every_energy_alike() -> None:
    prior = make_prior(num_hidden_layers=1)
    assert prior.out.bias is None
    assert [name for name, _ in prior.named_parameters()] == ["hidden.0.weight", "hidden.0.bias", "out.weight"]


def test_sizes_follow_the_arguments() -> None:
    prior = EnergyPrior(latent_dim=4, hidden_size=6, num_hidden_layers=3)
    assert sum(weight.numel() for weight in prior.parameters()) == (4 * 6 + 6) + 2 * (6 * 6 + 6) + 6


def test_reference_draws_are_standard_normal_and_follow_the_generator() -> None:
    prior = make_prior(2)
    draws, again = (prior.sample_reference(100_000, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(draws, again)
    assert draws.dtype == torch.float64
    error = 1 / math.sqrt(100_000)  # of the mean; sqrt(2) of it for a variance
    torch.testing.assert_close(draws.mean(0), torch.zeros(2).double(), rtol=0, atol=4 * error)
    torch.testing.assert_close(draws.T.cov(), torch.eye(2).double(), rtol=0, atol=4 * math.sqrt(2) * error)


@pytest.mark.parametrize("sizes", [(0, 4, 1), (3, 0, 1), (3, 4, 0), (-1, 4, 1)])
def test_sizes_must_be_positive(sizes: tuple[int, int, int]) -> None:
    latent_dim, hidden_size, layers = sizes
    with pytest.raises(
        UsageError, match=f"latent_dim={latent_dim}, hidden_size={hidden_size}, num_hidden_layers={layers}"
    ):
        EnergyPrior(*sizes)


def test_unknown_activation_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unknown activation 'relu'; known: gelu, leaky_relu"):
        EnergyPrior(3, activation="relu")
