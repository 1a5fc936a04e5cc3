"""Whether the latent is used and whether the prior matches it: figures that need latents and energies only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
