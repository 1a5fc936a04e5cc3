"""Random number generators that are functions of (seed, purpose, step).

Nothing is carried from step to step, so a resumed run needs no saved generator state.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor


def derived_seed(seed: int, purpose: str, *indices: int) -> int:
    """Returns a 63-bit seed, the same on every machine, for a purpose and any indices such as a step."""
    text = "/".join([str(seed), purpose, *map(str, indices)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def derived_generator(seed: int, purpose: str, *indices: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Returns a generator on `device`, seeded by [`derived_seed`]."""
    return torch.Generator(device=device).manual_seed(derived_seed(seed, purpose, *indices))


def batch_generators(
    generator: torch.Generator | None, number: int, device: torch.device | str
) -> list[torch.Generator | None]:
    """A generator on `device` for each of several batches, seeded by `generator`; a single batch gets `generator`.

    What is drawn for a batch then does not depend on the batches before it, which another process may compute.

    Args:
        generator: A generator on any device; `None` is torch's global one.
        number: Number of batches.
        device: The device on which the batches are drawn.
    """
    if number == 1:
        return [generator]
    place = "cpu" if generator is None else generator.device
    seeds = torch.randint(2**63 - 1, (number,), generator=generator, device=place).tolist()
    return [torch.Generator(device=device).manual_seed(seed) for seed in seeds]


class BatchGenerator(torch.Generator):
    """A generator for a batch that is split among processes: the noise of an example is the same in any process.

    Every process draws for the whole batch and keeps the rows of its own examples, so the number of processes changes
    nothing but rounding. Samplers draw through [`normal_`] and [`uniform_`], which do this.

    Args:
        seed: The seed, for example from [`derived_seed`].
        rows: The rows of the batch that belong to this process.
        batch_size: Number of rows of the whole batch.
        device: The device on which noise is drawn.
    """

    rows: Tensor
    batch_size: int

    def __new__(cls, seed: int, rows: Tensor, batch_size: int, device: torch.device | str = "cpu") -> BatchGenerator:
        generator = torch.Generator.__new__(cls, device=device)  # type: ignore[call-arg]
        generator.rows, generator.batch_size = rows.to(device, non_blocking=True), batch_size
        generator.manual_seed(seed)
        return generator

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing, since `__new__` has set everything up, as in `torch.Generator`."""


def normal_(tensor: Tensor, generator: torch.Generator | None) -> Tensor:
    """Fills a tensor, whose first dimension is that of the batch, with draws from N(0, 1); returns it."""
    if isinstance(generator, BatchGenerator):
        return tensor.copy_(_whole_batch(tensor, generator).normal_(generator=generator)[generator.rows])
    return tensor.normal_(generator=generator)


def uniform_(tensor: Tensor, generator: torch.Generator | None) -> Tensor:
    """Fills a tensor, whose first dimension is that of the batch, with uniform draws on [0, 1); returns it."""
    if isinstance(generator, BatchGenerator):
        return tensor.copy_(_whole_batch(tensor, generator).uniform_(generator=generator)[generator.rows])
    return tensor.uniform_(generator=generator)


def _whole_batch(tensor: Tensor, generator: BatchGenerator) -> Tensor:
    return tensor.new_empty(generator.batch_size, *tensor.shape[1:])
