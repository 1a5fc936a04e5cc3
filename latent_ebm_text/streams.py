"""Random streams that are functions of (seed, purpose, step).

Nothing is carried from step to step, so a resumed run needs no saved generator state to draw what it would have drawn.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor


def stream_seed(seed: int, purpose: str, *indices: int) -> int:
    """A 63-bit seed, the same on every machine, for a purpose and any indices such as a step."""
    text = "/".join([str(seed), purpose, *map(str, indices)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def stream(seed: int, purpose: str, *indices: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device`, seeded by [`stream_seed`]."""
    return torch.Generator(device=device).manual_seed(stream_seed(seed, purpose, *indices))


class BatchStream(torch.Generator):
    """A generator for a batch that is shared out among processes: an example's noise is the same whoever draws it.

    Every process draws for the whole batch and keeps the rows of its own examples, so that the number of processes
    changes nothing but rounding. Understood by [`normal_`] and [`uniform_`], which all samplers draw by.

    Args:
        seed: As of [`stream_seed`].
        rows: The rows of the batch that this process has.
        batch_size: Rows of the whole batch.
        device: Where noise is drawn.
    """

    rows: Tensor
    batch_size: int

    def __new__(cls, seed: int, rows: Tensor, batch_size: int, device: torch.device | str = "cpu") -> BatchStream:
        generator = torch.Generator.__new__(cls, device=device)  # type: ignore[call-arg]
        generator.rows, generator.batch_size = rows.to(device), batch_size
        generator.manual_seed(seed)
        return generator

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """All is done by `__new__`, as in a generator of torch."""


def normal_(tensor: Tensor, generator: torch.Generator | None) -> Tensor:
    """Fills a tensor, whose first dimension is that of the batch, with draws from N(0, 1); returns it."""
    if isinstance(generator, BatchStream):
        return tensor.copy_(_whole_batch(tensor, generator).normal_(generator=generator)[generator.rows])
    return tensor.normal_(generator=generator)


def uniform_(tensor: Tensor, generator: torch.Generator | None) -> Tensor:
    """The same with draws from the uniform distribution on [0, 1)."""
    if isinstance(generator, BatchStream):
        return tensor.copy_(_whole_batch(tensor, generator).uniform_(generator=generator)[generator.rows])
    return tensor.uniform_(generator=generator)


def _whole_batch(tensor: Tensor, generator: BatchStream) -> Tensor:
    return tensor.new_empty(generator.batch_size, *tensor.shape[1:])
