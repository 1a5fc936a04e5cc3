"""Conditions a causal language model on a latent for which it was not designed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

Injection = Literal["prefix", "embedding", "layers", "attention"]
#: What is added to the hidden states `(batch, length, width)` that enter a layer; broadcast to their shape.
Addition = Callable[[Tensor], Tensor]


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


class LatentAttention(nn.Module):
    """Cross-attention of tokens to the vectors of a latent, an equal share of which is read at each layer.

    The latent is the vectors one after the other. A vector gives a key and a value by a linear map of its own, a token
    asks by its hidden state, and may read nothing: beside the vectors stands a key that always scores zero and has no
    value. A token reads by its own hidden state alone, so that passes with and without a cache are the same numbers,
    and neither positions nor windows of the language model matter.

    Latent Thought Models (Kong et al., ICML 2025) read their vectors by cross-attention at every layer, too.

    Args:
        latent_dim: Size of the latent, a multiple of `num_vectors`.
        num_vectors: Number of vectors, a multiple of `num_layers`.
        num_layers: Layers that share them.
        width: Width of the hidden states.
        num_heads: Heads of the attention, a divisor of `width`.
        std: Initial standard deviation of what a token reads, for latents drawn from N(0, I).
    """

    def __init__(
        self, latent_dim: int, num_vectors: int, num_layers: int, width: int, num_heads: int, std: float
    ) -> None:
        super().__init__()
        self.num_vectors, self.num_layers, self.num_heads, self.std = num_vectors, num_layers, num_heads, std
        self.key = nn.Parameter(torch.empty(num_vectors, latent_dim // num_vectors, width))
        self.key_bias = nn.Parameter(torch.empty(num_vectors, width))
        self.value = nn.Parameter(torch.empty(num_vectors, latent_dim // num_vectors, width))
        self.value_bias = nn.Parameter(torch.empty(num_vectors, width))
        self.query = nn.Parameter(torch.empty(num_layers, width, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws new weights, with which a token gives all vectors about equal weight."""
        share = self.num_vectors // self.num_layers
        nn.init.normal_(self.key, std=self.key.shape[1] ** -0.5)
        # The mean of `share` independent values, and of nothing, is smaller than each of them by this factor.
        nn.init.normal_(self.value, std=self.std * (share + 1) / share**0.5 * self.value.shape[1] ** -0.5)
        nn.init.normal_(self.query, std=self.query.shape[1] ** -0.5)
        nn.init.zeros_(self.key_bias)
        nn.init.zeros_(self.value_bias)

    def forward(self, latents: Tensor) -> list[Addition]:
        """What is added at each layer, from latents `(batch, latent_dim)`."""
        vectors = latents.to(self.query.dtype).unflatten(-1, (self.num_vectors, -1))
        keys, values = (
            torch.einsum("bvd,vdw->bvw", vectors, weight).add(bias)
            # (batch, layers, heads, share, width of a head)
            .unflatten(-1, (self.num_heads, -1)).unflatten(1, (self.num_layers, -1)).transpose(2, 3)
            for weight, bias in ((self.key, self.key_bias), (self.value, self.value_bias))
        )  # fmt: skip
        layers = zip(self.query, keys.unbind(1), values.unbind(1), strict=True)
        return [partial(self._attend, *of_layer) for of_layer in layers]

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, hidden: Tensor) -> Tensor:
        """`keys` and `values` have shape `(batch, heads, share, width of a head)`."""
        hidden = nn.functional.layer_norm(hidden.to(query.dtype), hidden.shape[-1:])
        asked = nn.functional.linear(hidden, query).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        scores = asked @ keys.transpose(-1, -2) * keys.shape[-1] ** -0.5  # (batch, heads, length, share)
        weights = nn.functional.pad(scores, (0, 1)).softmax(dim=-1)[..., :-1]  # the last is the weight of nothing
        return (weights @ values).transpose(1, 2).flatten(-2)


def constant_additions(vectors: Tensor) -> list[Addition]:
    """Additions that are the same for every token: `vectors[:, i]` at layer `i`, of `(batch, layers, width)`."""
    return [partial(_constant, vector) for vector in vectors[:, :, None].unbind(1)]


def _constant(vector: Tensor, hidden: Tensor) -> Tensor:
    return vector


@contextmanager
def added_to_inputs(layers: nn.ModuleList, additions: Sequence[Addition]) -> Iterator[None]:
    """Adds `additions[i]`, a function of them, to the hidden states that enter layer `i`.

    It uses hooks that last for one pass, so nothing stays in the model that a copy or a saved file would have to keep.
    """
    with ExitStack() as stack:
        layer: Any
        for layer, addition in zip(layers, additions, strict=True):
            if getattr(layer, "gradient_checkpointing", False) and layer.training:
                # The backward pass computes this layer again, when a hook is gone; the sum is made before it.
                checkpoint = layer._gradient_checkpointing_func
                stack.callback(setattr, layer, "_gradient_checkpointing_func", checkpoint)
                layer._gradient_checkpointing_func = partial(_checkpointed, checkpoint, addition)
            else:
                stack.callback(layer.register_forward_pre_hook(_adding(addition), with_kwargs=True).remove)
        yield


def _checkpointed(checkpoint: Any, addition: Addition, forward: Any, hidden: Tensor, *args: Any) -> Any:
    return checkpoint(forward, hidden + addition(hidden).to(hidden.dtype), *args)


def _adding(addition: Addition) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    def add(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (args[0] + addition(args[0]).to(args[0].dtype), *args[1:]), kwargs
        hidden = kwargs["hidden_states"]
        return args, {**kwargs, "hidden_states": hidden + addition(hidden).to(hidden.dtype)}

    return add
