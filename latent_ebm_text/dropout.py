"""Dropout with one mask for all steps of a sentence (Gal and Ghahramani, 2016)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def dropout_mask(
    rate: float, shape: Sequence[int], generator: torch.Generator | None = None, *, device: torch.device | None = None
) -> Tensor:
    """Zeros with probability `rate`, and elsewhere what makes the mean one.

    Args:
        rate: In [0, 1).
        shape: Of the mask.
        generator: Source of the draw; torch's global stream by default.
        device: Where the mask is; the generator's device by default.
    """
    device = generator.device if device is None and generator is not None else device
    return torch.empty(*shape, device=device).bernoulli_(1 - rate, generator=generator) / (1 - rate)


def drop_features(hidden: Tensor, rate: float, generator: torch.Generator | None = None) -> Tensor:
    """`(time, batch, size)` with the same features of a sentence absent at every step."""
    return hidden * dropout_mask(rate, hidden.shape[1:], generator, device=hidden.device).to(hidden.dtype)


def drop_words(embedded: Tensor, input_ids: Tensor, rate: float, vocab_size: int) -> Tensor:
    """`(time, batch, size)` embeddings without some words of the vocabulary, wherever they stand in the batch.

    Args:
        embedded: Word embeddings.
        input_ids: `(time, batch)`, the words; the first of every sentence stays.
        rate: Probability that a word is absent.
        vocab_size: Number of words.
    """
    kept = dropout_mask(rate, (vocab_size, 1), device=embedded.device).to(embedded.dtype)[input_ids]
    kept[0] = 1.0
    return embedded * kept
