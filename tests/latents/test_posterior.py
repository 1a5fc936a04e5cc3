"""The posterior: exact for a linear-Gaussian likelihood, and the sum of its parts for a real decoder."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents.density import ScoredLogDensity
from latent_ebm_text.latents.posterior import LatentPosterior
from latent_ebm_text.latents.prior import EnergyPrior
from latent_ebm_text.latents.samplers import LangevinSampler
from latent_ebm_text.networks.lstm import LSTMDecoder

NOISE_VARIANCE = 0.5
MIXING = torch.tensor([[1.0, 0.5], [0.0, 1.2], [-0.7, 0.3]], dtype=torch.float64)  # data 3, latents 2
DATA = torch.tensor([[1.0, 2.0, -1.0], [0.0, 0.0, 0.0], [-3.0, 1.0, 2.0]], dtype=torch.float64)


class LinearGaussian:
    """`log N(x; A z, noise I)` up to a constant, one row per example."""

    def __init__(self, data: Tensor) -> None:
        self.data = data

    def __call__(self, latents: Tensor) -> Tensor:
        return -0.5 * (self.data - latents @ MIXING.T).square().sum(dim=-1) / NOISE_VARIANCE

    def score(self, latents: Tensor) -> Tensor:
        return (self.data - latents @ MIXING.T) @ MIXING / NOISE_VARIANCE

    def value_and_score(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        return self(latents), self.score(latents)


def flat_prior() -> EnergyPrior:
    """An energy prior whose tilt is zero: exactly N(0, I)."""
    prior = EnergyPrior(2, 4).double()
    torch.nn.init.zeros_(prior.out.weight)
    return prior


def exact_posterior(weight: float) -> tuple[Tensor, Tensor]:
    """Mean of every example and precision of `N(z; 0, I) N(x; A z, noise I)^weight`."""
    precision = torch.eye(2).double() + weight / NOISE_VARIANCE * MIXING.T @ MIXING
    return weight / NOISE_VARIANCE * DATA @ MIXING @ torch.linalg.inv(precision), precision


@pytest.mark.parametrize("weight", [1.0, 0.3, 4.0])
def test_score_and_value_are_those_of_the_exact_power_posterior(weight: float) -> None:
    posterior = LatentPosterior(flat_prior(), LinearGaussian(DATA), weight)
    assert isinstance(posterior, ScoredLogDensity)
    mean, precision = exact_posterior(weight)
    latents = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    away = latents - mean
    torch.testing.assert_close(posterior.score(latents), -away @ precision)
    value, score = posterior.value_and_score(latents)
    torch.testing.assert_close(score, -away @ precision)
    torch.testing.assert_close(value, posterior(latents).detach())
    expected_gain = 0.5 * (away @ precision * away).sum(dim=-1)  # from `latents` to the mode
    torch.testing.assert_close(posterior(mean).detach() - value, expected_gain)


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_langevin_draws_from_the_exact_posterior(weight: float) -> None:
    num_chains, step_size = 10_000, 0.3
    posterior = LatentPosterior(flat_prior(), LinearGaussian(DATA.repeat_interleave(num_chains, dim=0)), weight)
    mean, precision = exact_posterior(weight)
    # What unadjusted Langevin converges to: see tests/samplers/test_langevin.py.
    covariance = torch.linalg.inv(precision @ (torch.eye(2).double() - step_size**2 / 4 * precision))
    generator = torch.Generator().manual_seed(1)
    init = torch.randn(3 * num_chains, 2, generator=generator, dtype=torch.float64)
    draws = LangevinSampler(120, step_size).sample(init, posterior, generator=generator).latents
    for datum, chains in enumerate(draws.view(3, num_chains, 2)):
        mean_error = (covariance.diagonal() / num_chains).sqrt()
        variances = covariance.diagonal()
        covariance_error = ((torch.outer(variances, variances) + covariance**2) / num_chains).sqrt()
        assert ((chains.mean(dim=0) - mean[datum]).abs() < 4 * mean_error).all()
        assert ((chains.T.cov() - covariance).abs() < 4 * covariance_error).all()


def test_with_a_decoder_the_score_is_the_gradient_of_the_joint_log_density() -> None:
    torch.manual_seed(0)
    prior, decoder = EnergyPrior(3, 8).double(), LSTMDecoder(9, 3, embedding_size=4, hidden_size=5).double()
    for weight in [*prior.parameters(), *decoder.parameters()]:
        torch.nn.init.normal_(weight, std=0.5)
    inputs = {"input_ids": torch.randint(9, (4, 6)), "attention_mask": torch.ones(4, 6, dtype=torch.long)}
    latents = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    joint = prior(latents) + 2.5 * decoder.log_prob(inputs, latents)
    (expected,) = torch.autograd.grad(joint.sum(), latents)
    posterior = LatentPosterior(prior, decoder.likelihood(inputs), likelihood_weight=2.5)
    torch.testing.assert_close(posterior.score(latents), expected, rtol=0, atol=1e-10)
    value, score = posterior.value_and_score(latents)
    torch.testing.assert_close(value, joint.detach(), rtol=0, atol=1e-4)
    torch.testing.assert_close(score, expected, rtol=0, atol=1e-10)
    assert not score.requires_grad


def test_a_likelihood_keeps_what_its_score_returned() -> None:
    slope = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    linear = SimpleNamespace(score=lambda latents: slope)  # its score is the same everywhere: it may hand out one
    posterior = LatentPosterior(flat_prior(), linear, likelihood_weight=2.0)
    for _ in range(2):
        assert torch.equal(posterior.score(torch.zeros(1, 2).double()), torch.tensor([[2.0, -4.0]]).double())


def test_autograd_through_the_posterior_is_right_or_refused() -> None:
    torch.manual_seed(0)
    prior, decoder = EnergyPrior(3, 8), LSTMDecoder(9, 3, embedding_size=4, hidden_size=5)
    torch.nn.init.normal_(decoder.output.weight)
    posterior = LatentPosterior(prior, decoder.likelihood({"input_ids": torch.randint(9, (4, 6))}))
    latents = torch.randn(4, 3, requires_grad=True)
    try:
        (gradient,) = torch.autograd.grad(posterior(latents).sum(), latents)
    except RuntimeError:
        return
    torch.testing.assert_close(gradient, posterior.score(latents), rtol=0, atol=1e-5)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_likelihood_weight_must_be_positive(weight: float) -> None:
    with pytest.raises(UsageError, match=f"likelihood_weight must be positive and finite, got {weight}"):
        LatentPosterior(flat_prior(), LinearGaussian(DATA), weight)


def test_frozen_for_a_chain_it_is_the_same_and_the_weights_no_longer_matter() -> None:
    torch.manual_seed(0)
    prior = EnergyPrior(2, 4).double()
    posterior = LatentPosterior(prior, LinearGaussian(DATA), 2.0)
    latents = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = posterior.score(latents)
    frozen = posterior.frozen()
    torch.testing.assert_close(frozen.score(latents), expected)
    torch.testing.assert_close(frozen.value_and_score(latents)[0], posterior(latents).detach())
    calls = []
    original = prior.frozen
    prior.frozen = lambda: calls.append(1) or original()
    LangevinSampler(5, 0.1).sample(latents, posterior)
    assert len(calls) <= 2, "prepared for the chain, not for every step"
