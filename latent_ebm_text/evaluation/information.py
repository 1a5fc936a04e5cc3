"""How much the latent knows of the data: bounds of the mutual information I(x; z), in nats."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.estimates import Estimate


@dataclass(frozen=True)
class MutualInformation:
    """A lower bound of the mutual information between data and their posterior draws.

    Attributes:
        lower_bound: The estimate. Biased downwards: it cannot exceed `log n`.
        limit: `log n`, in nats.
    """

    lower_bound: Estimate
    limit: float

    @property
    def saturated(self) -> bool:
        """Whether the estimate is within half a nat of its limit: the information is then at least that, or more."""
        return self.lower_bound.value > self.limit - 0.5

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {**self.lower_bound.to_dict(), "limit": self.limit, "saturated": self.saturated}


@torch.no_grad()
def mutual_information(
    log_likelihood: Callable[[Tensor], Tensor], latents: Tensor, *, likelihood_weight: float = 1.0
) -> MutualInformation:
    """The noise-contrastive lower bound (van den Oord et al., 2018; Poole et al., 2019, section 2.3).

    `I >= mean_i [ c(x_i, z_i) - log mean_j exp c(x_i, z_j) ]` for any critic `c`; here it is `w log p(x | z)`, the
    best one there is up to a function of x alone, which cancels. With few data it says little: it is at most `log n`.

    Args:
        log_likelihood: Latents `(n, latent_dim)` to `log p(x_i | z_i)`, `(n,)`, for the same n data at every call.
        latents: `(n, latent_dim)` posterior draws, one per datum.
        likelihood_weight: `w` of the posterior that they are drawn from.

    Raises:
        UsageError: With fewer than 2 data.
    """
    size = len(latents)
    if size < 2:
        raise UsageError(f"mutual information needs at least 2 data, got {size}")
    own = likelihood_weight * log_likelihood(latents).double()
    total = torch.full_like(own, -math.inf)
    for shift in range(size):
        others = likelihood_weight * log_likelihood(latents.roll(shift, dims=0)).double()
        total = torch.logaddexp(total, others)
    return MutualInformation(Estimate.of_mean(own - total + math.log(size)), math.log(size))
