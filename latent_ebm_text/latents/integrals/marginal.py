"""Importance weights for `∫ p(z) p(x | z) dz`, from a Laplace approximation of every posterior."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents.density import LogDensity
from latent_ebm_text.latents.integrals.ais import AnnealedImportanceSampler
from latent_ebm_text.latents.integrals.gaussian import WhitenedDensity, laplace_approximation
from latent_ebm_text.latents.integrals.weights import importance_log_weights

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
    """Returns log weights for `∫ exp(posterior(z)) dz` of every example, `(num_samples, num_data)`.

    Args:
        posterior: `log p(z) + log p(x | z)` up to a constant, `(num_data, latent_dim)` to `(num_data,)`.
        start: `(num_data, latent_dim)`, where the search for the mode starts, for example posterior draws.
        method: `"importance"` draws from the approximation, slightly widened; `"ais"` anneals from it to the
            posterior.
        num_samples: Number of weights per example.
        num_levels: Number of levels of annealed importance sampling.
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
