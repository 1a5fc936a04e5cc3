"""Densities with known moments and integrals, for tests of samplers and integrals."""

import math

import torch
from torch import Tensor


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def standard_normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


class Gaussian:
    """N(mean, covariance), unnormalised, with its score."""

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        self.mean, self.covariance, self.precision = mean, covariance, torch.linalg.inv(covariance)

    def __call__(self, latents: Tensor) -> Tensor:
        return 0.5 * ((latents - self.mean) * self.score(latents)).sum(dim=-1)

    def score(self, latents: Tensor) -> Tensor:
        return (self.mean - latents) @ self.precision

    def value_and_score(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        return self(latents), self.score(latents)

    @property
    def log_integral(self) -> float:
        size = len(self.mean)
        return float(0.5 * (size * math.log(2 * math.pi) + torch.logdet(self.covariance)))


class TwoModes:
    """0.3 N(-3, 0.5^2) + 0.7 N(3, 0.5^2) in each of one dimension: log-density normalised, score by autograd."""

    weights, means, std = torch.tensor([0.3, 0.7]), torch.tensor([-3.0, 3.0]), 0.5

    def __call__(self, latents: Tensor) -> Tensor:
        log_parts = -0.5 * ((latents - self.means) / self.std) ** 2 - math.log(self.std * math.sqrt(2 * math.pi))
        return torch.logsumexp(log_parts + self.weights.log(), dim=-1)


def assert_moments(draws: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Mean and every covariance of independent Gaussian draws, within 4.5 standard errors."""
    variances = covariance.diagonal()
    mean_error = (variances / len(draws)).sqrt()
    covariance_error = ((torch.outer(variances, variances) + covariance**2) / len(draws)).sqrt()
    assert ((draws.mean(dim=0) - mean).abs() / mean_error).max() < 4.5
    assert ((draws.T.cov() - covariance).abs() / covariance_error).max() < 4.5
