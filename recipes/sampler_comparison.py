"""Samplers side by side on one target: effective sample sizes and what they cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.convergence import MIN_REPETITIONS, array_stats, chain_statistics, check_initial
from latent_ebm_text.evaluation.estimates import Estimate
from latent_ebm_text.latents.density import LogDensity, score_function, value_and_score_function
from latent_ebm_text.latents.samplers.base import Sampler


@dataclass(frozen=True)
class SamplerMetrics:
    """How well one sampler mixes, and at what cost.

    Attributes:
        name: The name that the caller gave it.
        num_steps: Number of steps of a repetition.
        ess_energy: Bulk effective sample size of the energy, with a standard error by the jackknife over groups of
            chains; `n` is the number of chains.
        ess_worst_dimension: Bulk effective sample size of the dimension in which it is smallest.
        r_hat: The largest R-hat of the energy and all dimensions. While it is far above 1 an effective sample size
            means nothing.
        gradients_per_chain: Gradient evaluations per chain, those of dropped draws included.
        seconds: Wall time, that of dropped draws included.
    """

    name: str
    num_steps: int
    ess_energy: Estimate
    ess_worst_dimension: Estimate
    r_hat: float
    gradients_per_chain: float
    seconds: float

    @property
    def ess(self) -> float:
        """The smaller of the two effective sample sizes."""
        return min(self.ess_energy.value, self.ess_worst_dimension.value)

    @property
    def ess_per_second(self) -> float:
        """`ess` per second, which depends on the machine and its load."""
        return self.ess / self.seconds

    @property
    def ess_per_thousand_gradients(self) -> float:
        """`ess` per 1,000 gradient evaluations of a single latent, which is the same on every machine."""
        return 1000 * self.ess / (self.gradients_per_chain * self.ess_energy.n)


@dataclass(frozen=True)
class SamplerComparison:
    """Samplers side by side.

    Attributes:
        rows: One row per sampler, in the order given.
        num_chains: Number of chains.
        num_draws: Number of draws per chain behind the effective sample sizes.
    """

    rows: tuple[SamplerMetrics, ...]
    num_chains: int
    num_draws: int

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON-able values."""
        return {
            "num_chains": self.num_chains,
            "num_draws": self.num_draws,
            "samplers": [
                {
                    **vars(row),
                    "ess_energy": row.ess_energy.to_dict(),
                    "ess_worst_dimension": row.ess_worst_dimension.to_dict(),
                    "ess_per_second": row.ess_per_second,
                    "ess_per_thousand_gradients": row.ess_per_thousand_gradients,
                }
                for row in self.rows
            ],
        }

    def to_markdown(self) -> str:
        """The comparison as a Markdown table."""
        lines = [
            f"Bulk effective sample sizes (ESS) of {self.num_chains} chains of {self.num_draws} draws, one per "
            "repetition, after as many that were dropped; ± is one jackknife standard error. Costs include the "
            "dropped half; the last two columns take the smaller ESS. Where R-hat is 1.05 or more the chains have not "
            "mixed or are too short, and the ESS in that row cannot be trusted.",
            "",
            "| sampler | steps | ESS of the energy | ESS of the worst dimension | R-hat | gradients per chain "
            "| seconds | ESS per second | ESS per 1,000 gradients |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for row in self.rows:
            lines.append(
                f"| {row.name} | {row.num_steps} | {row.ess_energy:.0f} | {row.ess_worst_dimension:.0f} "
                f"| {row.r_hat:.3f} "
                f"| {row.gradients_per_chain:.0f} | {row.seconds:.2f} | {row.ess_per_second:.3g} "
                f"| {row.ess_per_thousand_gradients:.3g} |"
            )
        return "\n".join(lines) + "\n"


def compare_samplers(
    logdensity: LogDensity,
    samplers: Mapping[str, Sampler],
    initial: Tensor,
    *,
    repetitions: int = 100,
    generator: torch.Generator | None = None,
    progress: Callable[[list[str]], Any] = iter,
) -> SamplerComparison:
    """Effective sample sizes of several samplers on one target, and what they cost.

    Each sampler is repeated from its own ends, and the first half of its repetitions is dropped.

    Args:
        logdensity: The target.
        samplers: The samplers by name.
        initial: `(num_chains, latent_dim)`, where the chains of every sampler start.
        repetitions: Number of times that each sampler is repeated.
        generator: Source of the noise, used by the samplers in turn.
        progress: Wraps the list of names, to show progress.

    Raises:
        UsageError: If there is no sampler, too few chains or repetitions, the start is not finite, or arviz-stats is
            not installed (names the extra).
        DivergenceError: If a chain is not finite any more.
    """
    if not samplers:
        raise UsageError("there is no sampler to compare; give at least one")
    if repetitions < MIN_REPETITIONS:
        raise UsageError(f"repetitions must be {MIN_REPETITIONS} or more, got {repetitions}")
    check_initial(initial)
    array_stats()
    rows = []
    for name in progress(list(samplers)):
        counting, latents, positions = _CountingDensity(logdensity), initial, []
        began = time.perf_counter()
        for _ in range(repetitions):
            latents = samplers[name].sample(latents, counting, generator=generator).latents
            positions.append(latents.cpu())  # waits for the device, so that the time is right
        seconds = time.perf_counter() - began
        kept = positions[repetitions // 2 :]
        with torch.no_grad():
            energies = [-logdensity(position.to(initial.device)).cpu() for position in kept]
        draws = torch.cat([torch.stack(energies, dim=1)[..., None], torch.stack(kept, dim=1)], dim=-1)
        statistics = chain_statistics(draws)
        energy, worst = _ess_with_errors(draws.double().numpy())
        rows.append(
            SamplerMetrics(
                name=name,
                num_steps=samplers[name].num_steps,
                ess_energy=energy,
                ess_worst_dimension=worst,
                r_hat=float(statistics.r_hat.max()),
                gradients_per_chain=counting.gradients / len(initial),
                seconds=seconds,
            )
        )
    return SamplerComparison(tuple(rows), len(initial), len(kept))


class _CountingDensity:
    """A log-density that counts the latents at which its score was evaluated."""

    def __init__(self, logdensity: LogDensity) -> None:
        self._logdensity = logdensity
        self._score = score_function(logdensity)
        self._value_and_score = value_and_score_function(logdensity)
        self.gradients = 0

    def __call__(self, latents: Tensor) -> Tensor:
        return self._logdensity(latents)

    def score(self, latents: Tensor) -> Tensor:
        self.gradients += len(latents)
        return self._score(latents)

    def value_and_score(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        self.gradients += len(latents)
        return self._value_and_score(latents)


def _ess_with_errors(draws: NDArray[np.float64], num_groups: int = 8) -> tuple[Estimate, Estimate]:
    """Bulk ESS of the energy, the first column of `(num_chains, num_draws, 1 + latent_dim)`, and the smallest other.

    Standard errors by the jackknife: groups of chains are left out in turn.
    """
    stats, num_chains = array_stats(), len(draws)

    def ess(chains: NDArray[np.float64]) -> NDArray[np.float64]:
        columns = np.asarray(stats.ess(chains, chain_axis=0, draw_axis=1))
        return np.array([columns[0], columns[1:].min()]) * num_chains / len(chains)

    groups = np.array_split(np.arange(num_chains), min(num_groups, num_chains))
    left_out = np.stack([ess(np.delete(draws, group, axis=0)) for group in groups])
    errors = np.sqrt((len(groups) - 1) * left_out.var(axis=0))
    energy, worst = (
        Estimate.of_normal(float(value), float(error), num_chains, "bulk effective sample size, jackknife error")
        for value, error in zip(ess(draws), errors, strict=True)
    )
    return energy, worst
