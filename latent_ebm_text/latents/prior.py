"""The energy-based prior p(z) = exp(f(z)) N(z; 0, I) / Z of the paper (section 2.1, eq. 2-4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents.frozen_prior import ACTIVATIONS, FrozenEnergyPrior
from latent_ebm_text.latents.rng import normal_


class TiltedGaussianPrior(nn.Module):
    r"""A prior that tilts the reference Gaussian: `p(z) = exp(f(z)) N(z; 0, I) / Z` and `E(z) = -f(z) + |z|^2 / 2`.

    This class is the only place where the sign of the energy is decided: low energy means high probability.
    Called as a function it returns the unnormalised log-density `-E(z)`, so a prior is itself a
    [`~latent_ebm_text.latents.density.ScoredLogDensity`] that any sampler accepts.

    Args:
        latent_dim: Size of the latent.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim

    def tilt(self, latents: Tensor) -> Tensor:
        """`f(z)`, the log of the tilt of the reference Gaussian, in nats; `(batch, latent_dim)` to `(batch,)`."""
        raise NotImplementedError

    def value_and_score(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """`-E(z)` of shape `(batch,)` and its score of shape `(batch, latent_dim)`, in closed form."""
        raise NotImplementedError

    def energy(self, latents: Tensor) -> Tensor:
        """`E(z) = -f(z) + |z|^2 / 2` in nats; `(batch, latent_dim)` to `(batch,)`."""
        return 0.5 * latents.square().sum(dim=-1) - self.tilt(latents)

    def forward(self, latents: Tensor) -> Tensor:
        """The unnormalised log-density `-E(z)` in nats; `(batch, latent_dim)` to `(batch,)`."""
        return -self.energy(latents)

    def log_prob(self, latents: Tensor, log_partition: float | Tensor = 0.0) -> Tensor:
        """`log p(z) = f(z) + log N(z; 0, I) - log Z` in nats, `(batch, latent_dim)` to `(batch,)`.

        `Z` is the mean of `exp(f(z))` under the reference Gaussian. With the default, `log Z = 0`, the result is
        correct up to that constant.
        """
        gaussian = -0.5 * self.latent_dim * math.log(2 * math.pi)
        return gaussian - self.energy(latents) - log_partition

    @torch.no_grad()
    def score(self, latents: Tensor) -> Tensor:
        """The score `grad f(z) - z` of shape `(batch, latent_dim)`, in closed form: no graph is built."""
        return self.value_and_score(latents)[1]

    def sample_reference(
        self, num_samples: int, generator: torch.Generator | None = None, *, like: Tensor | None = None
    ) -> Tensor:
        """Draws from the reference Gaussian N(0, I), where short-run chains start; `(num_samples, latent_dim)`.

        Device and type are those of `like`, by default those of the prior's own weights.
        """
        like = next(self.parameters(), torch.empty(0)) if like is None else like
        return normal_(like.new_empty(num_samples, self.latent_dim), generator)


class GaussianPrior(TiltedGaussianPrior):
    """The reference Gaussian itself, `f = 0`: the prior of a VAE, and the baseline that learns no energy."""

    def tilt(self, latents: Tensor) -> Tensor:
        """`f(z) = 0`, of shape `(batch,)`."""
        return latents.new_zeros(len(latents))

    @torch.no_grad()
    def value_and_score(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """`-|z|^2 / 2` of shape `(batch,)` and its score `-z`."""
        return -0.5 * latents.square().sum(dim=-1), -latents


class EnergyPrior(TiltedGaussianPrior):
    r"""A small network `f` that tilts the reference Gaussian: `E(z) = -f(z) + |z|^2 / 2`.

    The last layer has no bias, because the learning gradient `E(z+) - E(z-)` does not depend on a constant.

    Args:
        latent_dim: Size of the latent.
        hidden_size: Width of the hidden layers (200 in the paper).
        num_hidden_layers: Number of hidden layers (2 in the paper).
        activation: `"gelu"` or `"leaky_relu"` (slope 0.2).

    Raises:
        UsageError: If a size is not positive or the activation is unknown.
    """

    def __init__(
        self, latent_dim: int, hidden_size: int = 200, num_hidden_layers: int = 2, activation: str = "gelu"
    ) -> None:
        super().__init__(latent_dim)
        if min(latent_dim, hidden_size, num_hidden_layers) < 1:
            raise UsageError(
                f"an energy prior needs positive sizes, got latent_dim={latent_dim}, hidden_size={hidden_size}, "
                f"num_hidden_layers={num_hidden_layers}"
            )
        if activation not in ACTIVATIONS:
            raise UsageError(f"unknown activation {activation!r}; known: {', '.join(sorted(ACTIVATIONS))}")
        self._activation = ACTIVATIONS[activation]
        sizes = [latent_dim] + [hidden_size] * num_hidden_layers
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True))
        self.out = nn.Linear(hidden_size, 1, bias=False)

    def tilt(self, latents: Tensor) -> Tensor:
        """`f(z)`, the log of the tilt of the reference Gaussian, in nats; `(batch, latent_dim)` to `(batch,)`."""
        for layer in self.hidden:
            latents = self._activation.function(layer(latents))
        return self.out(latents).squeeze(-1)

    def score(self, latents: Tensor) -> Tensor:
        """The score `grad f(z) - z` of shape `(batch, latent_dim)`, in closed form: no graph is built."""
        return self.frozen().score(latents)

    def value_and_score(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """`-E(z)` of shape `(batch,)` and its score of shape `(batch, latent_dim)`, in closed form."""
        return self.frozen().value_and_score(latents)

    def frozen(self) -> FrozenEnergyPrior:
        """Returns the same log-density for one chain, see [`FrozenEnergyPrior`]."""
        return FrozenEnergyPrior(self, self.hidden, self.out, self._activation)
