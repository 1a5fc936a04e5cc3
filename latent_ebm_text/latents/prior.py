"""The energy-based prior p(z) = exp(f(z)) N(z; 0, I) / Z of the paper (section 2.1, eq. 2-4)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from latent_ebm_text.errors import UsageError
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

    For a latent of several vectors `z_1, ..., z_k` the network is a sum, `f(z) = g(z_1, e_1) + ... + g(z_k, e_k) +
    h(z)`: one network g for all vectors, which tells them apart by learned embeddings e, and a mixing network h on the
    whole latent. The score of the first part in a vector depends on that vector alone, so that chains see k small
    landscapes beside the one that couples them, and g learns from k vectors of every example.

    Args:
        latent_dim: Size of the latent.
        hidden_size: Width of the hidden layers (200 in the paper).
        num_hidden_layers: Number of hidden layers (2 in the paper).
        activation: `"gelu"` or `"leaky_relu"` (slope 0.2).
        num_vectors: Number of vectors that the latent consists of, one after the other; 1 for no sum.

    Raises:
        UsageError: If a size is not positive, the vectors do not divide the latent, or the activation is unknown.
    """

    def __init__(
        self,
        latent_dim: int,
        hidden_size: int = 200,
        num_hidden_layers: int = 2,
        activation: str = "gelu",
        num_vectors: int = 1,
    ) -> None:
        super().__init__(latent_dim)
        if min(latent_dim, hidden_size, num_hidden_layers) < 1:
            raise UsageError(
                f"an energy prior needs positive sizes, got latent_dim={latent_dim}, hidden_size={hidden_size}, "
                f"num_hidden_layers={num_hidden_layers}"
            )
        if activation not in ACTIVATIONS:
            raise UsageError(f"unknown activation {activation!r}; known: {', '.join(sorted(ACTIVATIONS))}")
        self.activation = ACTIVATIONS[activation]
        sizes = [latent_dim] + [hidden_size] * num_hidden_layers
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True))
        self.out = nn.Linear(hidden_size, 1, bias=False)
        if num_vectors < 1 or latent_dim % num_vectors != 0:
            raise UsageError(f"num_vectors must divide latent_dim, got {num_vectors} and {latent_dim}")
        self.of_vectors = None
        if num_vectors > 1:
            self.of_vectors = EnergyOfVectors(
                num_vectors, latent_dim // num_vectors, hidden_size, num_hidden_layers, activation
            )

    def tilt(self, latents: Tensor) -> Tensor:
        """`f(z)`, the log of the tilt of the reference Gaussian, in nats; `(batch, latent_dim)` to `(batch,)`."""
        features = latents
        for layer in self.hidden:
            features = self.activation.function(layer(features))
        tilt: Tensor = self.out(features).squeeze(-1)
        return tilt if self.of_vectors is None else tilt + self.of_vectors(latents)

    def score(self, latents: Tensor) -> Tensor:
        """The score `grad f(z) - z` of shape `(batch, latent_dim)`, in closed form: no graph is built."""
        return self.frozen().score(latents)

    def value_and_score(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """`-E(z)` of shape `(batch,)` and its score of shape `(batch, latent_dim)`, in closed form."""
        return self.frozen().value_and_score(latents)

    def frozen(self) -> FrozenEnergyPrior:
        """Returns the same log-density for one chain, see [`FrozenEnergyPrior`]."""
        return FrozenEnergyPrior(self)


class EnergyOfVectors(nn.Module):
    """The part of an energy that is a sum over the vectors of a latent, of one network that reads each of them.

    Args:
        num_vectors: Number of vectors.
        width: Size of a vector, and of the embedding that tells which one it is.
        hidden_size: Width of the hidden layers.
        num_hidden_layers: Number of hidden layers.
        activation: As of [`EnergyPrior`].
    """

    def __init__(
        self, num_vectors: int, width: int, hidden_size: int, num_hidden_layers: int, activation: str
    ) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(num_vectors, width))
        self.network = EnergyPrior(2 * width, hidden_size, num_hidden_layers, activation)

    def rows(self, latents: Tensor) -> Tensor:
        """Every vector beside its embedding; `(batch, latent_dim)` to `(batch * num_vectors, 2 * width)`."""
        vectors = latents.view(len(latents), *self.embedding.shape)
        return torch.cat([vectors, self.embedding.expand_as(vectors)], dim=-1).flatten(0, 1)

    def forward(self, latents: Tensor) -> Tensor:
        """The sum, in nats; `(batch, latent_dim)` to `(batch,)`."""
        return self.network.tilt(self.rows(latents)).view(len(latents), len(self.embedding)).sum(dim=1)


class FrozenEnergyPrior:
    """The log-density of an [`EnergyPrior`] while a chain runs, with frozen weights.

    Its forward and backward pass are written out by hand and form no gradient of a weight. A step consists of a few
    small matrix products, so overhead matters: buffers are reused, nothing but the score is computed, and only the
    result is allocated. Make a new object whenever the weights change.

    Args:
        prior: The prior itself, which gives the differentiable value.
    """

    @torch.no_grad()
    def __init__(self, prior: EnergyPrior) -> None:
        self._prior, self._out, self._activation = prior, prior.out, prior.activation
        weights = [layer.get_parameter("weight").detach() for layer in prior.hidden]  # each (out, in)
        self._biases = [layer.get_parameter("bias").detach() for layer in prior.hidden]
        self._forward_weights = [weight.t() for weight in weights]
        # f is linear in the last features: its gradient there, `out.weight`, is multiplied into the weights before.
        self._backward_weights = [*weights[:-1], prior.out.weight.detach().t() * weights[-1]]
        self._allocate(0)
        self._of_vectors = prior.of_vectors
        self._vectors = None if prior.of_vectors is None else prior.of_vectors.network.frozen()

    def _allocate(self, rows: int) -> None:
        """Allocates the buffers, each `(rows, hidden_size)`."""
        like = self._backward_weights[-1]
        self._preactivations = [like.new_empty(rows, len(like)) for _ in self._biases]
        self._scratch, self._ones = like.new_empty(rows, len(like)), like.new_ones(rows, len(like))

    def __call__(self, latents: Tensor) -> Tensor:
        """`-E(z)`; `(batch, latent_dim)` to `(batch,)`, differentiable."""
        value: Tensor = self._prior(latents)
        return value

    @torch.no_grad()
    def score(self, latents: Tensor) -> Tensor:
        """The score; `(batch, latent_dim)` to the same shape."""
        self._run_forward(latents)
        score = self._run_backward(latents)
        return score if self._vectors is None else score + self._score_and_sum_of_vectors(latents)[0]

    @torch.no_grad()
    def value_and_score(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """`-E(z)` of shape `(batch,)` and its score of shape `(batch, latent_dim)`."""
        self._run_forward(latents)
        features = self._activation.forward(self._preactivations[-1], self._scratch)
        tilt: Tensor = self._out(features).squeeze(-1)
        value, score = tilt - 0.5 * latents.square().sum(dim=-1), self._run_backward(latents)
        if self._vectors is not None:
            of_vectors, total = self._score_and_sum_of_vectors(latents)
            value, score = value + total, score + of_vectors
        return value, score

    def _score_and_sum_of_vectors(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """The sum over the vectors of a latent, `(batch,)`, and its gradient, `(batch, latent_dim)`."""
        assert self._of_vectors is not None
        assert self._vectors is not None
        rows = self._of_vectors.rows(latents)
        value, score = self._vectors.value_and_score(rows)
        # That network's density has a Gaussian of its own, which is no part of the sum.
        shape = (len(latents), len(self._of_vectors.embedding))
        gradient = (score + rows).view(*shape, rows.shape[1])[..., : self._of_vectors.embedding.shape[1]]
        return gradient.flatten(1), (value + 0.5 * rows.square().sum(dim=-1)).view(shape).sum(dim=1)

    def _run_forward(self, latents: Tensor) -> None:
        """Fills the pre-activations of every layer."""
        if len(latents) != len(self._scratch):
            self._allocate(len(latents))
        features = latents
        for depth, preactivation in enumerate(self._preactivations):
            if depth > 0:
                features = self._activation.forward(self._preactivations[depth - 1], self._scratch)
            torch.addmm(self._biases[depth], features, self._forward_weights[depth], out=preactivation)

    def _run_backward(self, latents: Tensor) -> Tensor:
        """Returns the score; overwrites every pre-activation with the gradient of f in it."""
        gradient = self._ones
        for depth in range(len(self._biases) - 1, 0, -1):
            preactivation = self._preactivations[depth]
            self._activation.backward(gradient, preactivation, preactivation)
            gradient = torch.mm(preactivation, self._backward_weights[depth], out=self._scratch)
        first = self._preactivations[0]
        self._activation.backward(gradient, first, first)
        # Like all products here it writes into `out`, so that autocast leaves the precision of the chain alone.
        return torch.addmm(latents, first, self._backward_weights[0], beta=-1, out=torch.empty_like(latents))


LEAKY_RELU_SLOPE = 0.2


def _gelu(x: Tensor, out: Tensor) -> Tensor:
    return nn.functional.gelu(x, out=out)  # type: ignore[call-arg]


def _gelu_backward(gradient: Tensor, x: Tensor, out: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten.gelu_backward.grad_input(gradient, x, grad_input=out)
    return result


def _leaky_relu(x: Tensor, out: Tensor) -> Tensor:
    return nn.functional.leaky_relu_(out.copy_(x), LEAKY_RELU_SLOPE)


def _leaky_relu_backward(gradient: Tensor, x: Tensor, out: Tensor) -> Tensor:
    backward = torch.ops.aten.leaky_relu_backward.grad_input
    result: Tensor = backward(gradient, x, LEAKY_RELU_SLOPE, False, grad_input=out)
    return result


@dataclass(frozen=True)
class Activation:
    """An activation function, and its forward and backward passes, which fill `out` and return it."""

    function: Callable[[Tensor], Tensor]
    forward: Callable[[Tensor, Tensor], Tensor]  # (x, out)
    backward: Callable[[Tensor, Tensor, Tensor], Tensor]  # (gradient, x, out); `out` may be one of the inputs


ACTIVATIONS = {
    "gelu": Activation(nn.functional.gelu, _gelu, _gelu_backward),
    "leaky_relu": Activation(
        partial(nn.functional.leaky_relu, negative_slope=LEAKY_RELU_SLOPE), _leaky_relu, _leaky_relu_backward
    ),
}
