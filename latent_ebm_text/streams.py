"""Random streams that are functions of (seed, purpose, step, rank).

Nothing is carried from step to step, so a resumed run needs no saved generator state to draw what it would have drawn.
"""

from __future__ import annotations

import hashlib

import torch


def stream_seed(seed: int, purpose: str, *indices: int) -> int:
    """A 63-bit seed, the same on every machine, for a purpose and any indices such as step and rank."""
    text = "/".join([str(seed), purpose, *map(str, indices)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def stream(seed: int, purpose: str, *indices: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device`, seeded by [`stream_seed`]."""
    return torch.Generator(device=device).manual_seed(stream_seed(seed, purpose, *indices))
