"""log Z and log p(x) by annealed importance sampling and importance weights, against closed forms and quadrature."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from latent_ebm_text.errors import DivergenceError, UsageError
from latent_ebm_text.latents.density import LogDensity
from latent_ebm_text.latents.integrals import (
    AnnealedImportanceSampler,
    LogIntegral,
    WhitenedDensity,
    importance_log_weights,
    laplace_approximation,
)
from latent_ebm_text.latents.prior import EnergyPrior
from tests.latents.samplers.targets import Gaussian, TwoModes, seeded, standard_normal


class LinearGaussian:
    """z ~ N(0, I), x = A z + noise: posterior and log p(x) in closed form, one row of x per row of z."""

    def __init__(self, num_data: int, latent_dim: int, data_dim: int, noise: float = 0.5) -> None:
        self.noise = noise
        self.weight = standard_normal(data_dim, latent_dim, seed=1)
        latents = standard_normal(num_data, latent_dim, seed=2)
        self.data = latents @ self.weight.T + noise * standard_normal(num_data, data_dim, seed=3)

    def __call__(self, latents: Tensor) -> Tensor:
        residual = (self.data - latents @ self.weight.T) / self.noise
        constant = 0.5 * math.log(2 * math.pi)
        likelihood = (-0.5 * residual.square() - math.log(self.noise) - constant).sum(dim=-1)
        return likelihood + (-0.5 * latents.square() - constant).sum(dim=-1)

    def score(self, latents: Tensor) -> Tensor:
        return (self.data - latents @ self.weight.T) @ self.weight / self.noise**2 - latents

    def value_and_score(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        return self(latents), self.score(latents)

    @property
    def covariance(self) -> Tensor:
        size = self.weight.shape[1]
        return torch.linalg.inv(torch.eye(size).double() + self.weight.T @ self.weight / self.noise**2)

    def exact(self) -> Tensor:
        size = len(self.weight)
        covariance = self.weight @ self.weight.T + self.noise**2 * torch.eye(size).double()
        law = torch.distributions.MultivariateNormal(torch.zeros(size).double(), covariance)
        return law.log_prob(self.data)


def ais(target: Any, shape: tuple[int, int], sampler: AnnealedImportanceSampler, num_chains: int) -> LogIntegral:
    like = torch.empty(shape, dtype=torch.float64)
    return LogIntegral(sampler.sample(target, num_chains, like, generator=seeded(0)))


def share_within_two_standard_errors(estimate: LogIntegral, exact: Tensor) -> float:
    return float(((estimate.value - exact).abs() <= 2 * estimate.standard_error).double().mean())


def assert_within_two_standard_errors(estimate: LogIntegral, exact: Tensor) -> None:
    assert share_within_two_standard_errors(estimate, exact) >= 0.95


# --- log p(x) ---


def test_ais_from_the_prior_finds_log_p_of_x() -> None:
    model = LinearGaussian(200, 2, data_dim=6)
    estimate = ais(model, (200, 2), AnnealedImportanceSampler(120, 2, power=3.0), num_chains=64)
    assert_within_two_standard_errors(estimate, model.exact())
    assert bool(estimate.reliable.all())
    assert float((estimate.value - model.exact()).mean().abs()) < 0.02


@pytest.mark.parametrize("latent_dim", [2, 8, 32])
def test_ais_from_a_widened_laplace_proposal(latent_dim: int) -> None:
    model = LinearGaussian(200, latent_dim, data_dim=6)
    proposal = laplace_approximation(model, standard_normal(200, latent_dim, seed=9)).widened(1.1)
    estimate = ais(WhitenedDensity(model, proposal), (200, latent_dim), AnnealedImportanceSampler(20), num_chains=32)
    assert_within_two_standard_errors(estimate, model.exact())
    assert bool(estimate.reliable.all())
    assert float((estimate.value - model.exact()).mean().abs()) < 0.02


@pytest.mark.parametrize("latent_dim", [2, 8, 32])
def test_importance_weighting_with_a_widened_laplace_proposal(latent_dim: int) -> None:
    model = LinearGaussian(200, latent_dim, data_dim=6)
    proposal = laplace_approximation(model, standard_normal(200, latent_dim, seed=9)).widened(1.05)
    weights = importance_log_weights_of(model, proposal, 400)
    assert_within_two_standard_errors(weights, model.exact())
    assert float((weights.value - model.exact()).mean().abs()) < 0.02


@pytest.mark.parametrize("latent_dim", [2, 8, 32])
@pytest.mark.parametrize(("method", "num_weights"), [("ais", 16), ("importance", 64)])
def test_error_bars_hold_on_average_and_are_not_inflated(latent_dim: int, method: str, num_weights: int) -> None:
    """Uses five times 200 examples, so that no single seed decides; see `LogIntegral.standard_error`."""
    model = LinearGaussian(1_000, latent_dim, data_dim=6)
    proposal = laplace_approximation(model, standard_normal(1_000, latent_dim, seed=9)).widened(1.1)
    if method == "ais":
        whitened = WhitenedDensity(model, proposal)
        estimate = ais(whitened, (1_000, latent_dim), AnnealedImportanceSampler(20), num_weights)
    else:
        estimate = importance_log_weights_of(model, proposal, num_weights)
    exact = model.exact()
    assert share_within_two_standard_errors(estimate, exact) >= 0.96
    root_mean_square = float((estimate.value - exact).square().mean().sqrt())
    assert 1.0 < float(estimate.standard_error.mean()) / root_mean_square < 1.3


def importance_log_weights_of(model: LogDensity, proposal, num_samples: int) -> LogIntegral:
    whitened, generator = WhitenedDensity(model, proposal), seeded(1)
    return LogIntegral(importance_log_weights(whitened, num_samples, proposal.mean, generator=generator))


def test_the_laplace_approximation_of_a_gaussian_posterior_is_the_posterior() -> None:
    model = LinearGaussian(20, 4, data_dim=6)
    proposal = laplace_approximation(model, standard_normal(20, 4, seed=9))
    mean = model.data @ model.weight / model.noise**2 @ model.covariance
    torch.testing.assert_close(proposal.mean, mean, atol=2e-3, rtol=0)
    torch.testing.assert_close(
        proposal.scale @ proposal.scale.mT, model.covariance.expand(20, 4, 4), atol=1e-6, rtol=0
    )
    exact_weights = importance_log_weights_of(model, proposal, 8)
    torch.testing.assert_close(exact_weights.value, model.exact(), atol=1e-3, rtol=0)
    assert float(exact_weights.ess.min()) == pytest.approx(8, abs=0.01), "an exact proposal has equal weights"


def test_curvature_over_the_width_of_a_peaked_posterior_beats_that_at_its_top() -> None:
    """`sech(8 z)^(1/4)` in each of 8 dimensions: a sharp top on wide shoulders, with an integral in closed form."""

    def peaked(latents: torch.Tensor) -> torch.Tensor:
        return -(8 * latents).cosh().log().sum(dim=-1) / 4

    exact = 8 * (0.5 * math.log(math.pi) + math.lgamma(1 / 8) - math.lgamma(5 / 8) - math.log(8))
    start, errors, sizes = 0.1 * standard_normal(200, 8, seed=9), [], []
    for options in ({}, {"difference": 0.01}):
        proposal = laplace_approximation(peaked, start, **options).widened(1.1)
        weights = importance_log_weights_of(peaked, proposal, 400)
        errors.append(float((weights.value - exact).abs().mean()))
        sizes.append(float(weights.ess.median()))
    assert errors[0] < 0.5 * errors[1]
    assert sizes[0] > 2 * sizes[1]


def test_ais_in_the_coordinates_of_a_poor_proposal_beats_importance_weighting() -> None:
    """A proposal 1.6 times too wide in 32 dimensions: importance weights collapse and say so; annealing repairs it."""
    model = LinearGaussian(50, 32, data_dim=40)
    proposal = laplace_approximation(model, standard_normal(50, 32, seed=9)).widened(1.6)
    plain = importance_log_weights_of(model, proposal, 64)
    assert float(plain.reliable.double().mean()) < 0.9
    whitened = WhitenedDensity(model, proposal)
    annealed = ais(whitened, (50, 32), AnnealedImportanceSampler(60, num_leapfrog_steps=2), num_chains=32)
    assert float(annealed.reliable.double().mean()) >= 0.95
    errors = [(estimate.value - model.exact()).abs().mean() for estimate in (annealed, plain)]
    assert float(errors[0]) < 0.5 * float(errors[1])


def test_a_whitened_score_is_the_gradient() -> None:
    model = LinearGaussian(5, 3, data_dim=4)
    proposal = laplace_approximation(model, standard_normal(5, 3, seed=9), num_steps=5).widened(1.5)
    whitened, position = WhitenedDensity(model, proposal), standard_normal(5, 3).requires_grad_(True)
    value, score = whitened.value_and_score(position.detach())
    (gradient,) = torch.autograd.grad(whitened(position).sum(), position)
    torch.testing.assert_close(score, gradient)
    torch.testing.assert_close(value, whitened(position.detach()))


# --- log Z ---


def test_log_z_of_a_known_gaussian_from_both_sides() -> None:
    target = Gaussian(torch.tensor([1.0, -0.5]).double(), torch.tensor([[0.5, 0.2], [0.2, 0.3]]).double())
    sampler, generator = AnnealedImportanceSampler(40), seeded(1)
    sizes = sampler.tune(target, standard_normal(512, 2, seed=4), generator=generator)
    forward, _ = sampler.log_weights(target, standard_normal(512, 2, seed=5), sizes, generator=generator)
    draws = target.mean + standard_normal(512, 2, seed=6) @ torch.linalg.cholesky(target.covariance).T
    backward = sampler.reverse_log_weights(target, draws, sizes, generator=generator)
    lower, upper = LogIntegral(forward[:, None]), LogIntegral(-backward[:, None])
    assert float(lower.value) == pytest.approx(target.log_integral, abs=0.05)
    assert float(-upper.value) == pytest.approx(target.log_integral, abs=0.05)
    # On average over many walks the bounds are on their sides: mean forward weight below, mean reverse weight above.
    assert float(forward.mean()) < target.log_integral < float(backward.mean())


def test_log_z_of_an_energy_network_agrees_with_quadrature_from_both_sides() -> None:
    torch.manual_seed(3)
    prior = EnergyPrior(2, hidden_size=16).double()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.normal_(std=1.0)
    grid = torch.linspace(-9, 9, 721, dtype=torch.float64)
    points, spacing = torch.cartesian_prod(grid, grid), float(grid[1] - grid[0])
    with torch.no_grad():
        energies = prior(points)
    exact = float(torch.logsumexp(energies, 0)) + 2 * math.log(spacing)
    assert abs(exact - math.log(2 * math.pi)) > 0.3, "an energy that matters"
    sampler, generator = AnnealedImportanceSampler(40), seeded(0)
    sizes = sampler.tune(prior, standard_normal(4_096, 2, seed=4), generator=generator)
    forward, _ = sampler.log_weights(prior, standard_normal(4_096, 2, seed=5), sizes, generator=generator)
    # Exact draws, up to the spacing: a cell of the grid by its mass, a place in the cell.
    cells = torch.multinomial(torch.softmax(energies, 0), 4_096, replacement=True, generator=generator)
    offsets = torch.rand(4_096, 2, generator=generator, dtype=torch.float64) - 0.5
    backward = sampler.reverse_log_weights(prior, points[cells] + spacing * offsets, sizes, generator=generator)
    lower, upper = LogIntegral(forward[:, None]), LogIntegral(-backward[:, None])
    assert float(lower.value) == pytest.approx(exact, abs=0.05)
    assert float(-upper.value) == pytest.approx(exact, abs=0.05)
    assert float(forward.mean()) < exact < float(backward.mean())


def test_annealing_finds_the_mass_of_two_modes() -> None:
    walks = ais(TwoModes(), (200, 1), AnnealedImportanceSampler(60, power=2.0), num_chains=2)
    estimate = LogIntegral(walks.log_weights.reshape(-1, 1))
    assert float(estimate.value) == pytest.approx(0.0, abs=4 * float(estimate.standard_error))


def test_one_level_is_importance_sampling_from_the_reference() -> None:
    target, init = Gaussian(torch.zeros(2).double(), torch.eye(2).double() * 0.8), standard_normal(6, 2)
    sampler = AnnealedImportanceSampler(1)
    log_weights, latents = sampler.log_weights(target, init, sampler.tune(target, init))
    reference = torch.distributions.Normal(0.0, 1.0).log_prob(init).sum(dim=-1)
    torch.testing.assert_close(log_weights, target(init) - reference)
    assert torch.equal(latents, init)


# --- weights ---


def test_value_ess_and_error_of_hand_made_weights() -> None:
    estimate = LogIntegral(torch.tensor([[1.0], [1.0], [2.0], [4.0]]).log())
    assert float(estimate.value) == pytest.approx(math.log(2.0))
    assert float(estimate.ess) == pytest.approx(64 / 22)
    assert not bool(estimate.reliable)


def test_the_standard_error_of_hand_made_weights() -> None:
    """Relative to their mean, 2, the weights are off by -1/2, -1/2, 0 and 1: a variance of 1/2."""
    influence = torch.tensor([0.75, 0.75, 0.0, 0.0])  # squares 1/4, 1/4, 0, 1 minus 2 * 1/2 * the deviations
    upper_variance = 0.5 + 2 * float(influence.std()) / 2.0
    estimate = LogIntegral(torch.tensor([[1.0], [1.0], [2.0], [4.0]]).log())
    assert float(estimate.standard_error) == pytest.approx(math.sqrt(upper_variance / 4))
    assert float(LogIntegral(torch.full((3, 1), -700.0)).standard_error) == pytest.approx(0.0, abs=1e-7)


def test_the_standard_error_approaches_that_of_repeated_estimates_from_above() -> None:
    for size, most in ((30, 1.3), (1_000, 1.15)):
        estimate = LogIntegral(standard_normal(size, 2_000) * 0.5)
        assert 1.0 < float(estimate.standard_error.mean()) / float(estimate.value.std()) < most


def test_refused_weights_and_settings() -> None:
    with pytest.raises(UsageError, match="2 or more"):
        LogIntegral(torch.zeros(1, 3))
    with pytest.raises(DivergenceError, match="not finite"):
        LogIntegral(torch.tensor([[math.nan], [0.0]]))
    for settings in ({"num_levels": 0}, {"num_leapfrog_steps": 0}, {"power": 0.0}, {"target_acceptance": 1.0}):
        with pytest.raises(UsageError):
            AnnealedImportanceSampler(**settings)
