"""Persistent chains: the last latent of every training example, kept on disk between visits of the example."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latent_ebm_text.errors import CheckpointError, UsageError
from latent_ebm_text.latents.rng import normal_


class ChainStore:
    """One latent per chain in a memory-mapped file, so that memory use does not grow with the corpus.

    A chain that was never written starts from N(0, I). With a `refresh` of `r` a stored chain restarts from
    `sqrt(1 - r^2) z + r noise`, which keeps N(0, I) invariant and forgets a part of the past: `r = 0` continues the
    chain where it was, `r = 1` is the short-run start of the paper.

    Args:
        path: File that holds the chains. It is created if it does not exist, and its disk space is reserved, because
            writing to a mapped file on a full disk kills the process.
        num_chains: Number of chains, one per training example.
        latent_dim: Size of a latent.

    Raises:
        UsageError: If a size is not positive, or an existing file has another size.
        CheckpointError: If the disk cannot hold the chains.
    """

    def __init__(self, path: str | Path, num_chains: int, latent_dim: int) -> None:
        if num_chains < 1 or latent_dim < 1:
            raise UsageError(f"a chain store needs positive sizes, got {num_chains} chains of {latent_dim} dimensions")
        self.path = Path(path)
        self.num_chains, self.latent_dim = num_chains, latent_dim
        self._create_missing()
        expected = 4 * num_chains * latent_dim
        if self.path.stat().st_size != expected:
            raise UsageError(
                f"chain store {self.path} has {self.path.stat().st_size} bytes where {num_chains} chains of "
                f"{latent_dim} dimensions need {expected}; remove it, or use another folder"
            )
        # The bits of 0.0 mark a chain that was never written: a written latent is never exactly zero in every
        # dimension.
        self._memory = np.memmap(self.path, dtype=np.float32, mode="r+", shape=(num_chains, latent_dim))

    def _create_missing(self) -> None:
        if not self.path.exists():
            size = 4 * self.num_chains * self.latent_dim
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(self.path, "wb") as file:
                    file.truncate(size)
                    if hasattr(os, "posix_fallocate"):
                        os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                self.path.unlink()
                raise CheckpointError(
                    f"{self.path} cannot hold {self.num_chains} chains of {self.latent_dim} dimensions, {size} bytes: "
                    f"{error.strerror}"
                ) from error

    def start(self, indices: Tensor, *, refresh: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        """Returns the positions where the chains of a batch start.

        Args:
            indices: `(batch,)` integers below `num_chains`.
            refresh: The share `r` in [0, 1] of fresh noise.
            generator: Source of the noise, on the CPU.

        Returns:
            Positions of shape `(batch, latent_dim)` on the CPU.
        """
        if not 0.0 <= refresh <= 1.0:
            raise UsageError(f"refresh must lie in [0, 1], got {refresh}")
        stored = torch.from_numpy(self._memory[indices.cpu().numpy()])
        noise = normal_(torch.empty_like(stored), generator)
        unwritten = (stored == 0).all(dim=-1, keepdim=True)
        return torch.where(unwritten, noise, math.sqrt(1.0 - refresh**2) * stored + refresh * noise)

    def write(self, indices: Tensor, latents: Tensor) -> None:
        """Stores the ends of chains: `latents` of shape `(batch, latent_dim)` for `indices` of shape `(batch,)`."""
        if tuple(latents.shape) != (len(indices), self.latent_dim):
            raise UsageError(
                f"cannot write latents of shape {tuple(latents.shape)} to {len(indices)} chains of "
                f"{self.latent_dim} dimensions"
            )
        self._memory[indices.cpu().numpy()] = latents.detach().float().cpu().numpy()

    def snapshot(self) -> Tensor:
        """Returns all chains, `(num_chains, latent_dim)`, as a view of the mapped file, for a checkpoint."""
        return torch.from_numpy(self._memory)

    def restore(self, chains: Tensor) -> None:
        """Overwrites every chain, the inverse of `snapshot`."""
        if tuple(chains.shape) != (self.num_chains, self.latent_dim):
            raise UsageError(
                f"cannot restore chains of shape {tuple(chains.shape)} into a store of "
                f"({self.num_chains}, {self.latent_dim})"
            )
        self._memory[:] = chains.detach().cpu().numpy()
