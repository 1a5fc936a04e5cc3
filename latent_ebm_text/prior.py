"""The energy-based prior p(z) = exp(f(z)) N(z; 0, I) / Z of the paper (section 2.1, eq. 2-4)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from latent_ebm_text.errors import UsageError

LEAKY_RELU_SLOPE = 0.2


def _leaky_relu(x: Tensor) -> Tensor:
    return nn.functional.leaky_relu(x, LEAKY_RELU_SLOPE)


def _leaky_relu_backward(grad: Tensor, x: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten.leaky_relu_backward(grad, x, LEAKY_RELU_SLOPE, False)
    return result


def _gelu_backward(grad: Tensor, x: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten.gelu_backward(grad, x)
    return result


#: Each activation with its backward, which takes the gradient and the pre-activation.
_ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "gelu": (nn.functional.gelu, _gelu_backward),
    "leaky_relu": (_leaky_relu, _leaky_relu_backward),
}


class TiltedGaussianPrior(nn.Module):
    r"""A prior `p(z) = exp(f(z)) N(z; 0, I) / Z`: whatever tilts the reference Gaussian, `E(z) = -f(z) + |z|^2 / 2`.

    This class is the only place where the sign of the energy is decided: low energy means high probability.
    Called as a function it returns the unnormalised log-density `-E(z)`, so a prior is itself a
    [`~latent_ebm_text.samplers.ScoredLogDensity`] that any sampler takes.

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
        """`E(z) = -f(z) + |z|^2 / 2` in nats; `(batch, latent_dim)` to `(batch,)`. Low energy: probable."""
        return 0.5 * latents.square().sum(dim=-1) - self.tilt(latents)

    def forward(self, latents: Tensor) -> Tensor:
        """The unnormalised log-density `-E(z)` in nats; `(batch, latent_dim)` to `(batch,)`."""
        return -self.energy(latents)

    def log_prob(self, latents: Tensor, log_partition: float | Tensor = 0.0) -> Tensor:
        """`log p(z) = f(z) + log N(z; 0, I) - log Z` in nats, `(batch, latent_dim)` to `(batch,)`.

        `Z` is the mean of `exp(f(z))` under the reference Gaussian; with the default of `log Z = 0` the result is
        right up to that constant.
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

        Device and type are those of `like`, of the prior's own weights by default.
        """
        like = next(self.parameters(), torch.empty(0)) if like is None else like
        shape = (num_samples, self.latent_dim)
        return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)


class GaussianPrior(TiltedGaussianPrior):
    """The reference Gaussian itself, `f = 0`: the prior of a VAE, and the baseline that learns no energy."""

    def tilt(self, latents: Tensor) -> Tensor:
        """Zero."""
        return latents.new_zeros(len(latents))

    @torch.no_grad()
    def value_and_score(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """`-|z|^2 / 2` and `-z`."""
        return -0.5 * latents.square().sum(dim=-1), -latents


class EnergyPrior(TiltedGaussianPrior):
    r"""A small network `f` that tilts the reference Gaussian: `E(z) = -f(z) + |z|^2 / 2`.

    The last layer has no bias: the learning gradient `E(z+) - E(z-)` cannot see a constant.

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
        if activation not in _ACTIVATIONS:
            raise UsageError(f"unknown activation {activation!r}; known: {', '.join(sorted(_ACTIVATIONS))}")
        self._activation, self._activation_backward = _ACTIVATIONS[activation]
        sizes = [latent_dim] + [hidden_size] * num_hidden_layers
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True))
        self.out = nn.Linear(hidden_size, 1, bias=False)

    def tilt(self, latents: Tensor) -> Tensor:
        """`f(z)`, the log of the tilt of the reference Gaussian, in nats; `(batch, latent_dim)` to `(batch,)`."""
        for layer in self.hidden:
            latents = self._activation(layer(latents))
        return self.out(latents).squeeze(-1)

    @torch.no_grad()
    def value_and_score(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """`-E(z)` of shape `(batch,)` and its score of shape `(batch, latent_dim)`, by one hand-written backward."""
        preactivations = []
        features = latents
        for layer in self.hidden:
            preactivations.append(layer(features))  # (batch, hidden_size)
            features = self._activation(preactivations[-1])
        gradient = self.out.weight.expand_as(features)  # d f / d features
        for layer, preactivation in zip(reversed(self.hidden), reversed(preactivations), strict=True):
            gradient = self._activation_backward(gradient, preactivation) @ layer.get_parameter("weight")
        value = self.out(features).squeeze(-1) - 0.5 * latents.square().sum(dim=-1)
        return value, gradient - latents
