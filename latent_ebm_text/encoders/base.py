"""The interface of an encoder q(z | x), a diagonal Gaussian per datum."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latent_ebm_text.streams import normal_


@dataclass(frozen=True)
class GaussianPosterior:
    """A diagonal Gaussian per datum.

    Attributes:
        mean: `(batch, latent_dim)`.
        log_std: `(batch, latent_dim)`.
    """

    mean: Tensor
    log_std: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One draw per datum, `(batch, latent_dim)`, differentiable in mean and standard deviation."""
        noise = normal_(torch.empty_like(self.mean), generator)
        return self.mean + self.log_std.exp() * noise

    def log_prob(self, latents: Tensor) -> Tensor:
        """`log q(z | x)` in nats, of latents `(batch, latent_dim)`; `(batch,)`."""
        standardised = (latents - self.mean) * (-self.log_std).exp()
        return -(0.5 * standardised.square() + self.log_std + 0.5 * math.log(2 * math.pi)).sum(dim=-1)

    def divergence(self) -> Tensor:
        """`KL(q(z | x) || N(0, I))` of every dimension in nats, `(batch, latent_dim)`."""
        return 0.5 * (self.mean.square() + (2 * self.log_std).exp() - 1.0) - self.log_std


class LatentEncoder(nn.Module):
    """A network that proposes where the latents of data are."""

    def forward(self, inputs: dict[str, Tensor]) -> GaussianPosterior:
        """The proposal for a batch of data."""
        raise NotImplementedError

    @torch.no_grad()
    def propose(self, inputs: dict[str, Tensor]) -> GaussianPosterior:
        """The proposal without dropout and without a graph: where chains start."""
        was_training = self.training
        self.eval()
        try:
            proposal: GaussianPosterior = self(inputs)
        finally:
            self.train(was_training)
        return proposal
