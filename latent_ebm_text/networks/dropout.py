"""Dropout with one mask for all steps of a sentence (Gal and Ghahramani, 2016), and a context without dropout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def dropout_mask(
    rate: float, shape: Sequence[int], generator: torch.Generator | None = None, *, device: torch.device | None = None
) -> Tensor:
    """Draws a mask that is zero with probability `rate` and else `1 / (1 - rate)`, so that its mean is one.

    Args:
        rate: Dropout rate in [0, 1).
        shape: Shape of the mask.
        generator: Source of the draw; by default torch's global random number generator.
        device: Device of the mask; by default that of the generator.
    """
    device = generator.device if device is None and generator is not None else device
    return torch.empty(*shape, device=device).bernoulli_(1 - rate, generator=generator) / (1 - rate)


def drop_features(hidden: Tensor, rate: float, generator: torch.Generator | None = None) -> Tensor:
    """Drops features of `(time, batch, size)` hidden states, the same ones at every step of a sentence."""
    return hidden * dropout_mask(rate, hidden.shape[1:], generator, device=hidden.device).to(hidden.dtype)


def drop_tokens(embedded: Tensor, input_ids: Tensor, rate: float, vocab_size: int) -> Tensor:
    """Zeroes the embeddings of randomly chosen vocabulary entries, wherever they occur in the batch.

    Args:
        embedded: Token embeddings of shape `(time, batch, size)`.
        input_ids: Token ids of shape `(time, batch)`; the first token of every sentence is kept.
        rate: Probability that a vocabulary entry is dropped.
        vocab_size: Number of tokens in the vocabulary.
    """
    kept = dropout_mask(rate, (vocab_size, 1), device=embedded.device).to(embedded.dtype)[input_ids]
    kept[0] = 1.0
    return embedded * kept


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switches off dropout, and restores the mode of every module on exit."""
    training = [part for part in model.modules() if part.training]
    model.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
