"""R-hat, effective sample size and Monte Carlo error of chains. Needs the extra `diagnostics` (arviz-stats)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latent_ebm_text.errors import UsageError

#: R-hat below which chains agree (Vehtari et al., 2021), and below which they nearly do.
MIXED, NEARLY_MIXED = 1.01, 1.05
#: Fewest repetitions of a run: its second half must hold the four draws that R-hat needs.
MIN_REPETITIONS = 8


@dataclass(frozen=True)
class ChainStatistics:
    """Convergence of one or more quantities along several chains; every tensor has the shape of a single draw.

    Attributes:
        r_hat: Rank-normalised split R-hat (Vehtari et al., 2021), 1 for chains that agree.
        nested_r_hat: R-hat between superchains (Margossian et al., 2024), which many short chains can satisfy; `None`
            where no superchains were given.
        ess_bulk: Effective sample size of all draws for the centre of the distribution.
        ess_tail: The smaller of the effective sample sizes for its 5 % and 95 % quantiles.
        mcse_mean: Monte Carlo standard error of the mean.
        num_chains: Number of chains.
        num_draws: Draws per chain.
    """

    r_hat: Tensor
    nested_r_hat: Tensor | None
    ess_bulk: Tensor
    ess_tail: Tensor
    mcse_mean: Tensor
    num_chains: int
    num_draws: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values: a number for a single quantity, otherwise the `worst` and `median` over quantities."""
        found: dict[str, Any] = {"num_chains": self.num_chains, "num_draws": self.num_draws}
        for name in ("r_hat", "nested_r_hat", "ess_bulk", "ess_tail", "mcse_mean"):
            values = getattr(self, name)
            if values is None:
                continue
            worst = values.min() if name.startswith("ess") else values.max()
            several = {"worst": float(worst), "median": float(values.quantile(0.5))}
            found[name] = float(values) if values.dim() == 0 else several
        return found


def chain_statistics(draws: Tensor, *, superchains: int | None = None) -> ChainStatistics:
    """R-hat, effective sample sizes and Monte Carlo error of chains.

    Args:
        draws: `(num_chains, num_draws, ...)`, such as energies `(num_chains, num_draws)` or latents
            `(num_chains, num_draws, latent_dim)`.
        superchains: Number of superchains, each made of equally many consecutive chains. For the nested R-hat the
            chains of one superchain should have started from one point.

    Raises:
        UsageError: If there are fewer than two chains of four draws, values that are not finite, a quantity that never
            changes, or superchains that do not divide the chains evenly, or arviz-stats is not installed (names the
            extra).
    """
    if draws.dim() < 2 or draws.shape[0] < 2 or draws.shape[1] < 4:
        raise UsageError(
            "convergence is judged between chains: draws must have shape (num_chains, num_draws, ...) with at least 2 "
            f"chains and 4 draws, got {tuple(draws.shape)}"
        )
    draws = draws.detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(draws).all()):
        raise UsageError("draws contain values that are not finite (nan or inf): the chains diverged, lower step_size")
    still = (draws.amax(dim=1) == draws.amin(dim=1)).all(dim=0)
    if bool(still.any()):
        raise UsageError(
            f"{int(still.sum())} of {still.numel()} quantities never change along any chain: the sampler does not "
            "move, change step_size"
        )
    ids = None if superchains is None else superchain_ids(len(draws), superchains)
    stats, array, axes = array_stats(), draws.numpy(), {"chain_axis": 0, "draw_axis": 1}

    def tensor(values: Any) -> Tensor:
        return torch.as_tensor(np.asarray(values))

    return ChainStatistics(
        r_hat=tensor(stats.rhat(array, **axes)),
        nested_r_hat=None if ids is None else tensor(stats.rhat_nested(array, ids, **axes)),
        ess_bulk=tensor(stats.ess(array, **axes)),
        ess_tail=tensor(stats.ess(array, method="tail", prob=(0.05, 0.95), **axes)),
        mcse_mean=tensor(stats.mcse(array, **axes)),
        num_chains=draws.shape[0],
        num_draws=draws.shape[1],
    )


def array_stats() -> Any:
    """The functions of arviz-stats for numpy arrays, or a `UsageError` that names the extra."""
    try:
        from arviz_stats.base.array import array_stats as stats
    except ImportError as error:
        raise UsageError("chain diagnostics need arviz-stats: pip install 'latent-ebm-text[diagnostics]'") from error
    return stats


def superchain_ids(num_chains: int, superchains: int) -> NDArray[np.int64]:
    """The superchain that each chain belongs to, `(num_chains,)`."""
    if not 2 <= superchains <= num_chains or num_chains % superchains:
        raise UsageError(
            f"{num_chains} chains do not make {superchains} superchains of equal size: superchains must be at least 2 "
            "and divide the number of chains"
        )
    return np.arange(num_chains) // (num_chains // superchains)


def check_initial(initial: Tensor) -> None:
    """Refuses starts that are not finite, or not of shape `(num_chains, latent_dim)` with two or more chains."""
    if initial.dim() != 2 or len(initial) < 2:
        raise UsageError(f"initial must have shape (num_chains >= 2, latent_dim), got {tuple(initial.shape)}")
    if not bool(torch.isfinite(initial).all()):
        raise UsageError("initial contains values that are not finite (nan or inf)")
