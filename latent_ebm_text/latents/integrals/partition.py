"""log Z of a prior, bracketed by annealed importance sampling in both directions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latent_ebm_text.latents.density import LogDensity
from latent_ebm_text.latents.integrals.ais import AnnealedImportanceSampler
from latent_ebm_text.latents.integrals.weights import MIN_ESS, LogIntegral
from latent_ebm_text.latents.samplers.metropolis import HMCSampler


@dataclass(frozen=True)
class LogPartition:
    """log Z of a prior, `Z = ∫ exp(f(z)) N(z; 0, I) dz`, bracketed by chains in both directions.

    Attributes:
        lower: Forward estimate in nats, a stochastic lower bound.
        upper: Backward estimate in nats, from the ends of long Metropolis-corrected chains; it is an upper bound as
            far as those chains have converged.
        standard_error: Standard error of the forward estimate in nats, see
            [`~latent_ebm_text.latents.integrals.weights.LogIntegral`].
        ess: Effective sample size of the forward weights.
        num_chains: Number of chains in each direction.
    """

    lower: float
    upper: float
    standard_error: float
    ess: float
    num_chains: int

    @property
    def value(self) -> float:
        """The upper end, with which a negative log-likelihood errs upwards."""
        return self.upper

    @classmethod
    def known(cls, value: float = 0.0) -> LogPartition:
        """log Z of a prior for which it is known, such as a normalised one."""
        return cls(value, value, 0.0, math.inf, 0)

    @property
    def reliable(self) -> bool:
        """Whether the effective sample size is sufficient and the bracket is at most one nat wide."""
        return self.ess >= MIN_ESS and self.upper - self.lower <= 1.0

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON-able values."""
        return dict(self.__dict__)


def bracket_log_partition(
    prior: LogDensity,
    init: tuple[Tensor, Tensor, Tensor],
    *,
    num_levels: int = 100,
    num_long_run_steps: int = 300,
    generator: torch.Generator | None = None,
) -> LogPartition:
    """Estimates log Z by annealed importance sampling from N(0, I).

    The Gaussian part of the prior's log-density `-E(z)` lacks its normalising constant. It is accounted for here, so
    that a flat tilt has log Z = 0.

    Args:
        prior: `-E(z)`, `(batch, latent_dim)` to `(batch,)`.
        init: Three batches of draws from N(0, I), each `(num_chains, latent_dim)`: for finding the step sizes, for the
            forward chains, and for the long chains from whose ends the backward chains start.
        num_levels: Number of levels of annealed importance sampling.
        num_long_run_steps: Number of Hamiltonian steps of the long chains.
        generator: Source of the noise.
    """
    sampler = AnnealedImportanceSampler(num_levels, num_leapfrog_steps=2)
    sizes = sampler.tune(prior, init[0], generator=generator)
    forward, _ = sampler.log_weights(prior, init[1], sizes, generator=generator)
    draws = long_run_draws(prior, init[2], num_steps=num_long_run_steps, generator=generator)
    backward = sampler.reverse_log_weights(prior, draws, sizes, generator=generator)
    constant = 0.5 * init[0].shape[-1] * math.log(2 * math.pi)
    estimate = LogIntegral(forward[:, None])
    return LogPartition(
        lower=float(estimate.value) - constant,
        upper=-float(LogIntegral(-backward[:, None]).value) - constant,
        standard_error=float(estimate.standard_error),
        ess=float(estimate.ess),
        num_chains=len(init[1]),
    )


def long_run_draws(
    prior: LogDensity, init: Tensor, *, num_steps: int = 300, generator: torch.Generator | None = None
) -> Tensor:
    """Draws from a prior by long Metropolis-corrected chains, exact as far as these have converged.

    Args:
        prior: Its log-density.
        init: `(num_chains, latent_dim)` draws from N(0, I), where the chains start.
        num_steps: Number of Hamiltonian steps, of which the first third find the step size.
        generator: Source of the noise.
    """
    chains = HMCSampler(num_steps, 0.3, num_leapfrog_steps=5, num_adaptation_steps=num_steps // 3)
    return chains.sample(init, prior, generator=generator).latents
