"""The posterior p(z | x) of a latent given data: a prior and a likelihood combined into one log-density of z."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents.density import ScoredLogDensity, frozen_log_density


class LatentPosterior:
    r"""`log p(z) + w log p(x | z)` up to a constant, for a batch of data.

    The posterior energy of the paper (section 2.3) is `U(z; x) = E(z) - log p(x | z)`, the case `w = 1`. Another
    likelihood weight gives the power posterior `p(z) p(x | z)^w`, the optimum of the variational free energy with its
    divergence term scaled by `1 / w`. A weight above 1 makes the latent carry more information about the data, as in a
    beta-VAE with beta = 1 / w.

    Args:
        prior: Log-density of the prior with its score.
        likelihood: `log p(x | z)` as a function of z alone, with its score, one row per example, as a decoder's
            `likelihood(...)` returns it.
        likelihood_weight: `w`, positive.
    """

    def __init__(self, prior: ScoredLogDensity, likelihood: ScoredLogDensity, likelihood_weight: float = 1.0) -> None:
        if not 0 < likelihood_weight < math.inf:
            raise UsageError(f"likelihood_weight must be positive and finite, got {likelihood_weight}")
        self.prior, self.likelihood, self.likelihood_weight = prior, likelihood, likelihood_weight

    def __call__(self, latents: Tensor) -> Tensor:
        """`-U(z; x)` in nats; `(batch, latent_dim)` to `(batch,)`."""
        return self.prior(latents) + self.likelihood_weight * self.likelihood(latents)

    def frozen(self) -> LatentPosterior:
        """Returns the same log-density for one chain, with the prior's weights frozen."""
        return LatentPosterior(frozen_log_density(self.prior), self.likelihood, self.likelihood_weight)

    @torch.no_grad()
    def score(self, latents: Tensor) -> Tensor:
        """The score of shape `(batch, latent_dim)`."""
        return self.prior.score(latents) + self.likelihood_weight * self.likelihood.score(latents)

    @torch.no_grad()
    def value_and_score(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """`-U(z; x)` of shape `(batch,)` and its score of shape `(batch, latent_dim)`."""
        prior_value, prior_score = self.prior.value_and_score(latents)
        value, score = self.likelihood.value_and_score(latents)
        return prior_value + self.likelihood_weight * value, prior_score + self.likelihood_weight * score
