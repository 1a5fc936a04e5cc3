"""Nearest neighbours among the latents of a corpus, by distance or by divergence between posteriors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from latent_ebm_text.errors import DataError, UsageError

Metric = Literal["euclidean", "divergence"]
FORMAT = "latent_ebm_text.latent_index/1"
#: Maximum number of distances in memory at a time.
_CHUNK = 2**24
#: Lower limit for standard deviations of posteriors, since estimates from a few draws can be far too small.
_LEAST_STD = 1e-3


@dataclass(frozen=True)
class Neighbours:
    """The nearest examples of every query.

    Attributes:
        indices: `(queries, k)`, rows of the index, nearest first.
        distances: `(queries, k)`, Euclidean distances, or divergences in nats.
    """

    indices: Tensor
    distances: Tensor


@dataclass(frozen=True)
class LatentIndex:
    """Posterior means and standard deviations of a corpus, in its order, among which neighbours are found.

    Attributes:
        mean: `(n, latent_dim)`, posterior means.
        std: `(n, latent_dim)`, posterior standard deviations.
        source: What the rows describe, such as a corpus's fingerprint, which keeps an index from use with another.

    Raises:
        UsageError: If the shapes differ or a value is not finite.
    """

    mean: Tensor
    std: Tensor
    source: str = ""

    def __post_init__(self) -> None:
        if self.mean.dim() != 2 or self.mean.shape != self.std.shape or len(self.mean) == 0:
            raise UsageError(
                f"an index needs means and standard deviations (n, latent_dim), got {tuple(self.mean.shape)} and "
                f"{tuple(self.std.shape)}"
            )
        if not bool(torch.isfinite(self.mean).all() and torch.isfinite(self.std).all() and (self.std >= 0).all()):
            raise UsageError("an index needs finite means and finite standard deviations that are not negative")

    def __len__(self) -> int:
        return len(self.mean)

    @torch.no_grad()
    def query(
        self, mean: Tensor, std: Tensor | None = None, *, k: int = 5, metric: Metric = "euclidean"
    ) -> Neighbours:
        """Finds the `k` nearest rows for each query.

        Args:
            mean: `(queries, latent_dim)`, posterior means, or any latents.
            std: `(queries, latent_dim)`, posterior standard deviations, needed for the divergence.
            k: Number of neighbours per query.
            metric: `"euclidean"`, the distance between the means; or `"divergence"`, the mean of the two
                Kullback-Leibler divergences between the diagonal Gaussians, in nats, in which dimensions that the data
                does not determine count little.

        Raises:
            UsageError: If a shape, `k` or the metric is invalid.
        """
        if metric not in get_args(Metric):
            raise UsageError(f"unknown metric {metric!r}; known metrics: {', '.join(get_args(Metric))}")
        if mean.dim() != 2 or mean.shape[1] != self.mean.shape[1]:
            raise UsageError(f"queries must have shape (queries, {self.mean.shape[1]}), got {tuple(mean.shape)}")
        if not 1 <= k <= len(self):
            raise UsageError(f"k must be between 1 and the size of the index, {len(self)}, got {k}")
        if metric == "divergence" and (std is None or std.shape != mean.shape):
            raise UsageError("metric='divergence' needs a std of the queries, of the shape of their mean")
        distances, indices = [], []
        for rows in torch.arange(len(mean)).split(max(1, _CHUNK // len(self))):
            if metric == "divergence":
                assert std is not None
                found = _divergence(mean[rows], std[rows], self.mean, self.std)
            else:
                found = torch.cdist(mean[rows].double(), self.mean.to(mean.device).double())
            nearest = found.topk(k, dim=1, largest=False)
            distances.append(nearest.values.float())
            indices.append(nearest.indices)
        return Neighbours(torch.cat(indices).cpu(), torch.cat(distances).cpu())

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, whose folder is created if needed."""
        from safetensors.torch import save_file

        Path(path).parent.mkdir(parents=True, exist_ok=True)
        metadata = {"format": FORMAT, "source": json.dumps(self.source)}
        tensors = {"mean": self.mean.cpu().contiguous(), "std": self.std.cpu().contiguous()}
        save_file(tensors, str(path), metadata=metadata)

    @classmethod
    def load(cls, path: str | Path, *, source: str | None = None) -> LatentIndex:
        """Reads what `save` wrote.

        Args:
            path: The file.
            source: The source that the index must have; not checked by default.

        Raises:
            DataError: If the file is missing, holds no index, or holds the index of another source.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise DataError(f"{path} is no index of latents (format {metadata.get('format')!r}): rebuild it")
                index = cls(file.get_tensor("mean"), file.get_tensor("std"), json.loads(metadata["source"]))
        except DataError:
            raise
        except (OSError, KeyError, ValueError, RecursionError, RuntimeError, SafetensorError) as error:
            raise DataError(f"{path} cannot be read as an index of latents: {error}") from error
        if source is not None and index.source != source:
            raise DataError(f"{path} is an index of {index.source!r}, not of {source!r}: rebuild it")
        return index


def _divergence(mean: Tensor, std: Tensor, other_mean: Tensor, other_std: Tensor) -> Tensor:
    """Mean of both Kullback-Leibler divergences between all pairs of diagonal Gaussians, in nats; `(queries, n)`.

    It is a quarter of `sum (v + D^2) / v' + (v' + D^2) / v - 2` with variances v, v' and difference of means D. Every
    term is a product of a factor of the query and a factor of the row, so a single matrix product computes them all.
    """
    a, b = (m.double() for m in (mean, other_mean.to(mean.device)))
    va, vb = (s.double().clamp(min=_LEAST_STD).square() for s in (std, other_std.to(mean.device)))
    left = torch.cat([va + a.square(), 1 / va, a.square() / va, -2 * a / va, -2 * a, torch.ones_like(a)], dim=1)
    right = torch.cat([1 / vb, vb + b.square(), torch.ones_like(b), b, b / vb, b.square() / vb], dim=1)
    return (0.25 * (left @ right.mT - 2 * a.shape[1])).clamp(min=0)
