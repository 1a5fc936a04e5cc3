"""Importance weights: the log of an integral as the log of their mean, and how reliable that estimate is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from latent_ebm_text.errors import DivergenceError, UsageError
from latent_ebm_text.latents.density import LogDensity

#: Effective sample size below which an estimate counts as unreliable, because a few draws dominate it.
MIN_ESS = 5.0


@dataclass(frozen=True)
class LogIntegral:
    """Estimates of `log ∫ exp(target(z)) dz`, one per example.

    The mean of the weights is unbiased, so its logarithm is a stochastic lower bound: too low on average, by at
    most about half the squared standard error (Burda et al., 2016; Grosse et al., 2015).

    Attributes:
        log_weights: `(num_samples, num_data)`, at least two samples.

    Raises:
        UsageError: If the log weights have another shape.
        DivergenceError: If a log weight is nan or plus infinity.
    """

    log_weights: Tensor

    def __post_init__(self) -> None:
        if self.log_weights.dim() != 2 or len(self.log_weights) < 2:
            shape = tuple(self.log_weights.shape)
            raise UsageError(f"an estimate with a standard error needs log weights (2 or more, num_data), got {shape}")
        if bool(self.log_weights.isnan().any()) or bool((self.log_weights == math.inf).any()):
            raise DivergenceError(
                "importance weights are not finite, because the log-density is not finite at a draw: check that the "
                "model's weights are finite"
            )

    @property
    def value(self) -> Tensor:
        """The log of the mean weight, `(num_data,)`, in nats."""
        return torch.logsumexp(self.log_weights.double(), dim=0) - math.log(len(self.log_weights))

    @property
    def ess(self) -> Tensor:
        """Effective sample size `(sum w)^2 / sum w^2` of the weights (Kong, 1992), `(num_data,)`."""
        log_weights = self.log_weights.double()
        return (2 * torch.logsumexp(log_weights, dim=0) - torch.logsumexp(2 * log_weights, dim=0)).exp()

    @property
    def standard_error(self) -> Tensor:
        """Standard error in nats, `(num_data,)`: two of them cover the truth for at least 95 % of examples.

        The delta method's `sd(w) / (mean(w) sqrt(n))` is right on average but comes from the same few weights: it is
        smallest where large weights were missed, and twice its value covers only 92 to 95 % with 16 to 64 weights.
        Therefore the relative variance of the weights is raised by two of its own standard errors, which its influence
        function gives with skew and tails included. The result is an upper limit of the standard error: 1.2 to 1.3
        times the root mean square error with 16 to 32 weights, 1.1 times with 400.

        It is still too small where the effective sample size is low: no weight shows a mode that no draw has reached.
        """
        size = len(self.log_weights)
        excess = (self.log_weights.double() - self.value).exp() - 1  # w / mean(w) - 1
        squares = excess.square()
        variance = squares.sum(dim=0) / (size - 1)
        influence = squares - 2 * variance * excess  # each weight's, on the relative variance, up to a constant
        return ((variance + 2 * influence.std(dim=0) / size**0.5) / size).sqrt()

    @property
    def reliable(self) -> Tensor:
        """Whether the effective sample size is at least `MIN_ESS`, `(num_data,)` booleans."""
        return self.ess >= MIN_ESS


def importance_log_weights(
    target: LogDensity, num_samples: int, like: Tensor, *, generator: torch.Generator | None = None
) -> Tensor:
    """Returns the log weights of draws from N(0, I) under a target.

    For the importance-weighted bound (Burda et al., 2016) with another Gaussian proposal, pass the target in the
    coordinates of that proposal, see [`~latent_ebm_text.latents.integrals.gaussian.WhitenedDensity`].

    Args:
        target: The unnormalised log-density, `(num_data, latent_dim)` to `(num_data,)`.
        num_samples: Number of draws per example.
        like: `(num_data, latent_dim)`; draws have its shape, type and device.
        generator: Source of the draws.

    Returns:
        `(num_samples, num_data)`.
    """
    log_weights = []
    with torch.no_grad():
        for _ in range(num_samples):
            latents = torch.empty_like(like).normal_(generator=generator)
            log_weights.append(target(latents) - standard_normal(latents)[0])
    return torch.stack(log_weights)


def standard_normal(latents: Tensor) -> tuple[Tensor, Tensor]:
    """The normalised log-density of N(0, I), `(batch,)`, and its score, `(batch, latent_dim)`."""
    constant = 0.5 * latents.shape[-1] * math.log(2 * math.pi)
    return -0.5 * latents.square().sum(dim=-1) - constant, -latents
