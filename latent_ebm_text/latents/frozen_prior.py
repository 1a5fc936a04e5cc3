"""The score of an energy prior while a chain runs, by kernels written out by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from latent_ebm_text.latents.density import LogDensity

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


class FrozenEnergyPrior:
    """The log-density of an [`~latent_ebm_text.latents.prior.EnergyPrior`] while a chain runs, with frozen weights.

    The backward pass is written out by hand and forms no gradient of a weight. A step consists of a few small matrix
    products, so overhead matters: buffers are reused, nothing but the score is computed, and only the result is
    allocated. Make a new object whenever the weights change.

    Args:
        log_density: The prior itself, which gives the differentiable value.
        hidden: The prior's hidden layers.
        out: Its last layer, without a bias.
        activation: Its activation function.
    """

    @torch.no_grad()
    def __init__(self, log_density: LogDensity, hidden: nn.ModuleList, out: nn.Linear, activation: Activation) -> None:
        self._log_density, self._out, self._activation = log_density, out, activation
        weights = [layer.get_parameter("weight").detach() for layer in hidden]  # each (out, in)
        self._biases = [layer.get_parameter("bias").detach() for layer in hidden]
        self._forward_weights = [weight.t() for weight in weights]
        # f is linear in the last features: its gradient there, `out.weight`, is multiplied into the weights before.
        self._backward_weights = [*weights[:-1], out.weight.detach().t() * weights[-1]]
        self._allocate(0)

    def _allocate(self, rows: int) -> None:
        """Allocates the buffers, each `(rows, hidden_size)`."""
        like = self._backward_weights[-1]
        self._preactivations = [like.new_empty(rows, len(like)) for _ in self._biases]
        self._scratch, self._ones = like.new_empty(rows, len(like)), like.new_ones(rows, len(like))

    def __call__(self, latents: Tensor) -> Tensor:
        """`-E(z)`; `(batch, latent_dim)` to `(batch,)`, differentiable."""
        return self._log_density(latents)

    @torch.no_grad()
    def score(self, latents: Tensor) -> Tensor:
        """The score; `(batch, latent_dim)` to the same shape."""
        self._run_forward(latents)
        return self._run_backward(latents)

    @torch.no_grad()
    def value_and_score(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """`-E(z)` of shape `(batch,)` and its score of shape `(batch, latent_dim)`."""
        self._run_forward(latents)
        features = self._activation.forward(self._preactivations[-1], self._scratch)
        tilt: Tensor = self._out(features).squeeze(-1)
        return tilt - 0.5 * latents.square().sum(dim=-1), self._run_backward(latents)

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
