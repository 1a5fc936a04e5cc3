"""log Z and log p(x) against nested sampling (Skilling, 2006) by dynesty, an independent implementation and method."""

import math
from collections.abc import Callable

import dynesty
import numpy as np
import pytest
import torch
from scipy.special import ndtri
from torch import Tensor

from latent_ebm_text.latents.integrals import AnnealedImportanceSampler, LogIntegral, importance_log_weights
from latent_ebm_text.latents.prior import EnergyPrior
from tests.latents.samplers.targets import seeded, standard_normal

LATENT_DIM, NOISE = 3, 0.6
GAUSSIAN_CONSTANT = 0.5 * LATENT_DIM * math.log(2 * math.pi)


def energy_prior() -> EnergyPrior:
    prior = EnergyPrior(LATENT_DIM, hidden_size=8, num_hidden_layers=1).double()
    for number, parameter in enumerate(prior.parameters()):
        parameter.data = 0.8 * standard_normal(*parameter.shape, seed=number)
    return prior.requires_grad_(False)


def log_likelihood(latents: Tensor) -> Tensor:
    """Log-likelihood of an example under the nonlinear decoder `x = tanh(A z) + noise`; `(batch, 3)` to `(batch,)`."""
    weight, data = standard_normal(2, LATENT_DIM, seed=7), torch.tensor([0.9, -0.4]).double()
    residual = (data - torch.tanh(latents @ weight.T)) / NOISE
    return -0.5 * residual.square().sum(dim=-1) - 2 * math.log(NOISE) - math.log(2 * math.pi)


def nested_sampling(log_integrand: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """Log of the mean of `exp(log_integrand(z))` under N(0, I), with its standard error."""

    def of_one_point(point: np.ndarray) -> float:
        return float(log_integrand(torch.from_numpy(point)[None]))

    settings = {"nlive": 200, "sample": "unif", "bootstrap": 0, "rstate": np.random.default_rng(0)}
    sampler = dynesty.NestedSampler(of_one_point, ndtri, LATENT_DIM, **settings)
    sampler.run_nested(dlogz=0.1, print_progress=False)
    return float(sampler.results.logz[-1]), float(sampler.results.logzerr[-1])


def assert_agree(estimate: LogIntegral, nested: tuple[float, float]) -> None:
    value, error = nested
    assert error < 0.15
    assert float(estimate.standard_error) < 0.05
    assert float(estimate.value) - GAUSSIAN_CONSTANT == pytest.approx(value, abs=2 * error + 0.05)


def test_log_z_of_an_energy_network_agrees_with_nested_sampling() -> None:
    prior = energy_prior()
    nested = nested_sampling(prior.tilt)
    assert abs(nested[0]) > 0.3, "a tilt that matters"
    sampler, like = AnnealedImportanceSampler(30), torch.empty(500, LATENT_DIM).double()
    weights = sampler.sample(prior, 4, like, generator=seeded(0))
    assert_agree(LogIntegral(weights.reshape(-1, 1)), nested)


def test_log_p_of_x_of_a_nonlinear_decoder_agrees_with_nested_sampling() -> None:
    """`log p(x) + log Z`, by annealing and by importance weights.

    Both start at N(0, I): where tanh saturates this posterior has long arms, which a Laplace approximation misses.
    """
    prior = energy_prior()
    nested = nested_sampling(lambda latents: prior.tilt(latents) + log_likelihood(latents))

    def log_joint(latents: Tensor) -> Tensor:
        return prior(latents) + log_likelihood(latents)

    like = torch.empty(500, LATENT_DIM).double()  # 500 times the same datum
    annealed = AnnealedImportanceSampler(30).sample(log_joint, 4, like, generator=seeded(1))
    weighted = importance_log_weights(log_joint, 40, like, generator=seeded(2))
    for weights in (annealed, weighted):
        assert_agree(LogIntegral(weights.reshape(-1, 1)), nested)
