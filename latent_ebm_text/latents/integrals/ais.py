"""Annealed importance sampling (Neal, 2001) from N(0, I) to any unnormalised log-density over latents."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents.density import LogDensity, value_and_score_function
from latent_ebm_text.latents.integrals.weights import standard_normal
from latent_ebm_text.latents.samplers.metropolis import ChainState, ValueAndScore, hmc_step


@dataclass(frozen=True)
class AnnealedImportanceSampler:
    r"""Chains that move from N(0, I) to a target through intermediate densities, each with an importance weight.

    The densities are `N(z; 0, I)^(1 - beta) exp(target(z))^beta` for rising `beta`; between two of them every chain
    takes one Metropolis-corrected Hamiltonian step. The mean of the weights is unbiased for the target's integral,
    however short the chains are. Run backwards from exact draws from the target, the same chains bound the integral
    from above (Grosse et al., 2015).

    The step sizes must not depend on the chains that they move, or the weights are biased. [`tune`] therefore finds
    them with separate chains.

    Args:
        num_levels: Number of times `beta` rises.
        num_leapfrog_steps: Gradient evaluations per level; 1 is a Metropolis-adjusted Langevin step.
        power: `beta = (k / num_levels)^power`; above 1 the path is finer near N(0, I), for targets far from it.
        target_acceptance: The acceptance rate that `tune` aims at.

    Raises:
        UsageError: If a setting is out of range.
    """

    num_levels: int = 50
    num_leapfrog_steps: int = 1
    power: float = 1.0
    target_acceptance: float = 0.65

    def __post_init__(self) -> None:
        if self.num_levels < 1 or self.num_leapfrog_steps < 1:
            raise UsageError(
                f"num_levels and num_leapfrog_steps must be positive, got {self.num_levels} and "
                f"{self.num_leapfrog_steps}"
            )
        if not 0 < self.target_acceptance < 1 or not self.power > 0:
            raise UsageError(
                f"target_acceptance must be between 0 and 1 and power positive, got {self.target_acceptance} and "
                f"{self.power}"
            )

    @property
    def betas(self) -> list[float]:
        """The `num_levels + 1` values of `beta`, from 0 to 1."""
        return [(level / self.num_levels) ** self.power for level in range(self.num_levels + 1)]

    def sample(
        self, target: LogDensity, num_chains: int, like: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Returns the log weights `(num_chains, batch)` of independent chains, with step sizes from [`tune`].

        Args:
            target: The unnormalised log-density, `(batch, latent_dim)` to `(batch,)`.
            num_chains: Number of chains per row.
            like: `(batch, latent_dim)`; draws have its shape, type and device.
            generator: Source of the noise.
        """

        def init() -> Tensor:
            return torch.empty_like(like).normal_(generator=generator)

        sizes = self.tune(target, init(), generator=generator)
        walks = [self.log_weights(target, init(), sizes, generator=generator)[0] for _ in range(num_chains)]
        return torch.stack(walks)

    def tune(
        self, target: LogDensity, init: Tensor, *, step_size: float = 0.5, generator: torch.Generator | None = None
    ) -> Tensor:
        """Finds step sizes for every level and row, `(num_levels - 1, batch)`, with chains that are then discarded.

        Args:
            target: The unnormalised log-density.
            init: `(batch, latent_dim)` draws from N(0, I).
            step_size: Initial step size of the search.
            generator: Source of the noise.
        """
        value_and_score = value_and_score_function(target)
        with torch.no_grad():
            state = ChainState.at(init.detach().clone(), value_and_score)
            log_sizes, found = torch.full_like(state.value, step_size).log(), []
            for beta in self.betas[1:-1]:
                state, acceptance = self._step(state, value_and_score, log_sizes.exp(), beta, generator)
                log_sizes = log_sizes + 0.5 * (acceptance - self.target_acceptance)
                found.append(log_sizes.exp())
            return torch.stack(found) if found else init.new_empty(0, len(init))

    def log_weights(
        self, target: LogDensity, init: Tensor, step_sizes: Tensor, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Runs one chain per row, from N(0, I) to the target.

        Args:
            target: The unnormalised log-density, one row per example.
            init: `(batch, latent_dim)` fresh draws from N(0, I).
            step_sizes: `(num_levels - 1, batch)`, from [`tune`].
            generator: Source of the noise.

        Returns:
            Log weights `(batch,)`, and the final positions `(batch, latent_dim)`, approximate draws from the target.
        """
        value_and_score = value_and_score_function(target)
        with torch.no_grad():
            state = ChainState.at(init.detach().clone(), value_and_score)
            total, betas = torch.zeros_like(state.value, dtype=torch.float64), self.betas
            for level in range(self.num_levels):
                total += (betas[level + 1] - betas[level]) * _log_ratio(state)
                if level + 1 < self.num_levels:
                    state, _ = self._step(state, value_and_score, step_sizes[level], betas[level + 1], generator)
            return total, state.position

    def reverse_log_weights(
        self, target: LogDensity, draws: Tensor, step_sizes: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Runs one chain per row, from exact draws from the target back to N(0, I).

        Minus the log of the mean of `exp(-weight)` is a stochastic *upper* bound of the log integral; with the forward
        estimate it forms a bracket.

        Args:
            target: The unnormalised log-density.
            draws: `(batch, latent_dim)` exact draws from it.
            step_sizes: `(num_levels - 1, batch)`, the same as for the forward chains.
            generator: Source of the noise.

        Returns:
            Log weights `(batch,)`, with the sign of the forward ones.
        """
        value_and_score = value_and_score_function(target)
        with torch.no_grad():
            state = ChainState.at(draws.detach().clone(), value_and_score)
            total, betas = torch.zeros_like(state.value, dtype=torch.float64), self.betas
            for level in range(self.num_levels, 0, -1):
                total += (betas[level] - betas[level - 1]) * _log_ratio(state)
                if level > 1:
                    state, _ = self._step(state, value_and_score, step_sizes[level - 2], betas[level - 1], generator)
            return total

    def _step(
        self,
        state: ChainState,
        value_and_score: ValueAndScore,
        step_sizes: Tensor,
        beta: float,
        generator: torch.Generator | None,
    ) -> tuple[ChainState, Tensor]:
        return hmc_step(
            state,
            value_and_score,
            step_sizes,
            self.num_leapfrog_steps,
            inverse_temperature=beta,
            reference=standard_normal,
            generator=generator,
        )


def _log_ratio(state: ChainState) -> Tensor:
    """Log-density of the target minus that of N(0, I), `(batch,)`."""
    return (state.value - standard_normal(state.position)[0]).double()
