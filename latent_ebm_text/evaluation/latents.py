"""Whether the latent is used and whether the prior matches it: figures that need latents and energies only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Variance of the posterior mean above which a dimension counts as active (Burda et al., 2016, appendix C).
ACTIVE_VARIANCE = 0.01


@dataclass(frozen=True)
class LatentReport:
    """How posterior and prior draws compare.

    Attributes:
        active_units: Dimensions whose posterior mean varies with x, see [`active_units`].
        posterior_std: Mean over dimensions of the standard deviation of posterior draws over the data.
        prior_std: The same of prior draws.
        std_mismatch: Mean over dimensions of `|posterior std / prior std - 1|`.
        energy_gap: Mean energy of posterior draws minus that of prior draws, in nats.
        n: Number of data points, and of prior draws.
    """

    active_units: int
    posterior_std: float
    prior_std: float
    std_mismatch: float
    energy_gap: float
    n: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return dict(self.__dict__)


def active_units(first: Tensor, second: Tensor) -> int:
    """Number of dimensions of the latent that depend on the data.

    A dimension is active if the variance over x of its posterior mean exceeds 0.01. The covariance over x of two
    independent posterior draws is an unbiased estimate of that variance; a dimension is counted only if the estimate
    exceeds 0.01 by two of its standard errors, so that noise alone activates a dimension in one case of fifty or less.

    Args:
        first: `(n, latent_dim)` posterior draws, one per data point.
        second: The same data points' draws from independent chains.
    """
    products = (first - first.mean(0)) * (second - second.mean(0))  # (n, latent_dim)
    variance = products.sum(0) / (len(first) - 1)
    standard_error = products.std(0) / len(first) ** 0.5
    return int((variance - 2 * standard_error > ACTIVE_VARIANCE).sum())


def latent_intervals(
    first: Tensor, second: Tensor, prior_draws: Tensor, *, num_resamples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % intervals of `active_units` and `std_mismatch`, by resampling data points and prior draws.

    Args:
        first: `(n, latent_dim)`, as of [`compare_latents`].
        second: `(n, latent_dim)`.
        prior_draws: `(n, latent_dim)`.
        num_resamples: Number of bootstrap resamples.
        seed: Of the resampling.

    Returns:
        Percentiles, low and high, by the name of the figure; widened where needed to hold the figure itself, which
        is an extreme of its resamples where noise can only add to it.
    """
    n, rng = len(first), np.random.default_rng(seed)
    centre = torch.cat([first, second]).mean(dim=0)
    x, y, z = (t.double() - c for t, c in ((first, centre), (second, centre), (prior_draws, prior_draws.mean(dim=0))))
    columns = torch.stack([x, y, x * y, (x * y).square(), x.square(), y.square(), z, z.square()])  # (8, n, latent_dim)
    units, mismatches = [], []
    for _ in range(num_resamples):
        data, prior = (torch.from_numpy(np.bincount(rng.integers(n, size=n), minlength=n) / n) for _ in range(2))
        mean_x, mean_y, mean_xy, square_xy, square_x, square_y = torch.einsum("n,knd->kd", data, columns[:6])
        mean_z, square_z = torch.einsum("n,knd->kd", prior, columns[6:])
        variance = mean_xy - mean_x * mean_y
        standard_error = (square_xy - mean_xy.square()).clamp(min=0).sqrt() / n**0.5
        units.append(int((variance - 2 * standard_error > ACTIVE_VARIANCE).sum()))
        posterior = (square_x + square_y) / 2 - ((mean_x + mean_y) / 2).square()
        mismatches.append(_mean(((posterior / (square_z - mean_z.square())).sqrt() - 1).abs()))
    own_mismatch = _mean((torch.cat([first, second]).std(dim=0) / prior_draws.std(dim=0) - 1).abs())
    return {
        "active_units": _interval(units, active_units(first, second)),
        "std_mismatch": _interval(mismatches, own_mismatch),
    }


def _interval(resampled: Sequence[float], own: float) -> tuple[float, float]:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return min(float(low), own), max(float(high), own)


def compare_latents(
    first: Tensor, second: Tensor, prior_draws: Tensor, posterior_energy: Tensor, prior_energy: Tensor
) -> LatentReport:
    """Compares posterior draws (two independent ones per data point) with as many prior draws.

    Args:
        first: `(n, latent_dim)`.
        second: `(n, latent_dim)`.
        prior_draws: `(n, latent_dim)`.
        posterior_energy: `(n,)`, energies of `first` under the prior.
        prior_energy: `(n,)`, energies of `prior_draws`.
    """
    posterior_std, prior_std = torch.cat([first, second]).std(dim=0), prior_draws.std(dim=0)
    return LatentReport(
        active_units=active_units(first, second),
        posterior_std=_mean(posterior_std),
        prior_std=_mean(prior_std),
        std_mismatch=_mean((posterior_std / prior_std - 1).abs()),
        energy_gap=float(posterior_energy.mean() - prior_energy.mean()),
        n=len(first),
    )


def _mean(values: Tensor) -> float:
    """Zero of nothing: a model without a latent has no dimensions."""
    return float(values.mean()) if len(values) else 0.0
