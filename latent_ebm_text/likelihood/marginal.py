"""Importance weights of `∫ p(z) p(x | z) dz`, from a Laplace approximation of every posterior."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from latent_ebm_text.errors import UsageError
from latent_ebm_text.likelihood.ais import AnnealedImportanceSampler
from latent_ebm_text.likelihood.gaussian import WhitenedDensity, laplace_approximation
from latent_ebm_text.likelihood.weights import importance_log_weights
from latent_ebm_text.samplers.base import LogDensity

MarginalMethod = Literal["ais", "importance"]


def posterior_log_weights(
    posterior: LogDensity,
    start: Tensor,
    *,
    method: MarginalMethod,
    num_samples: int,
    num_levels: int = 30,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Log weights of `∫ exp(posterior(z)) dz` for every datum, `(num_samples, num_data)`.

    Args:
        posterior: `log p(z) + log p(x | z)` up to a constant, `(num_data, latent_dim)` to `(num_data,)`.
        start: `(num_data, latent_dim)`, where the search for the mode begins, such as posterior draws.
        method: `"importance"`: importance weights of draws from the slightly widened approximation; `"ais"`: annealed
            walks from it to the posterior.
        num_samples: Weights per datum.
        num_levels: Levels of each walk.
        generator: Source of the noise.

    Raises:
        UsageError: If the method is unknown.
    """
    if method not in get_args(MarginalMethod):
        raise UsageError(f"method must be 'ais' or 'importance', got {method!r}")
    proposal = laplace_approximation(posterior, start).widened(1.1)
    target = WhitenedDensity(posterior, proposal)
    if method == "importance":
        return importance_log_weights(target, num_samples, start, generator=generator)
    return AnnealedImportanceSampler(num_levels).sample(target, num_samples, start, generator=generator)
