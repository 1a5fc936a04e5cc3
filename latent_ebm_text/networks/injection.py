"""Conditions a causal language model on a latent for which it was not designed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

Injection = Literal["prefix", "embedding", "layers"]


class LatentInjection(nn.Module):
    """A linear map from a latent to the vectors through which a language model receives it.

    Args:
        latent_dim: Size of the latent.
        num_vectors: Number of vectors: the length of a prefix, one for all embeddings, or one per layer.
        width: Width of the vectors.
        std: Initial standard deviation of the vectors for latents drawn from N(0, I).
    """

    def __init__(self, latent_dim: int, num_vectors: int, width: int, std: float) -> None:
        super().__init__()
        self.shape = (num_vectors, width)
        self.std = std
        self.weight = nn.Parameter(torch.empty(num_vectors * width, latent_dim))
        self.bias = nn.Parameter(torch.zeros(num_vectors * width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws new weights."""
        nn.init.normal_(self.weight, std=self.std / self.weight.shape[1] ** 0.5)
        nn.init.zeros_(self.bias)

    def forward(self, latents: Tensor) -> Tensor:
        """`(batch, latent_dim)` to `(batch, num_vectors, width)`."""
        return nn.functional.linear(latents.to(self.weight.dtype), self.weight, self.bias).unflatten(-1, self.shape)


@contextmanager
def added_to_inputs(layers: nn.ModuleList, vectors: Tensor) -> Iterator[None]:
    """Adds `vectors[:, i]` to the hidden states that enter layer `i`; `vectors` has shape `(batch, layers, width)`.

    It uses hooks that last for one pass, so nothing stays in the model that a copy or a saved file would have to keep.
    """
    with ExitStack() as stack:
        layer: Any
        for index, layer in enumerate(layers):
            vector = vectors[:, None, index]
            if getattr(layer, "gradient_checkpointing", False) and layer.training:
                # The backward pass computes this layer again, when a hook is gone; the sum is made before it.
                checkpoint = layer._gradient_checkpointing_func
                stack.callback(setattr, layer, "_gradient_checkpointing_func", checkpoint)
                layer._gradient_checkpointing_func = partial(_checkpointed, checkpoint, vector)
            else:
                stack.callback(layer.register_forward_pre_hook(_adding(vector), with_kwargs=True).remove)
        yield


def _checkpointed(checkpoint: Any, vector: Tensor, forward: Any, hidden: Tensor, *args: Any) -> Any:
    return checkpoint(forward, hidden + vector.to(hidden.dtype), *args)


def _adding(vector: Tensor) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    def add(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (args[0] + vector.to(args[0].dtype), *args[1:]), kwargs
        hidden = kwargs["hidden_states"]
        return args, {**kwargs, "hidden_states": hidden + vector.to(hidden.dtype)}

    return add
