"""Whether the chains of a latent sampler have arrived, and how fast they mix: drift of the energy, R-hat, ESS.

This module knows samplers, log-densities and latents; a function that decodes latents gives it sentences. It needs the
extra `diagnostics` (arviz-stats).

The Markov kernel that is judged is one repetition of the training chain with all its steps and schedules. In every
repetition a schedule begins anew, and so does the adaptation of a step size. The repeated kernel is therefore the same
each time and has a stationary distribution, which a chain within a schedule does not have. So all statistics are taken
at the ends of repetitions; the energies within them are kept for the plot only.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.convergence import (
    MIN_REPETITIONS,
    MIXED,
    NEARLY_MIXED,
    ChainStatistics,
    array_stats,
    chain_statistics,
    check_initial,
    superchain_ids,
)
from latent_ebm_text.evaluation.estimates import Estimate
from latent_ebm_text.latents.density import LogDensity
from latent_ebm_text.latents.samplers.base import Sampler

#: Differences of the mean energy below this many standard deviations of the energy are small (Cohen, 1988).
SMALL_DRIFT = 0.2
#: Confidence of the interval that must exclude zero for a difference to be significant.
SIGNIFICANCE = 0.99
#: Confidence of the interval that must lie within a small drift for chains to be called stationary: two one-sided
#: tests at 5 % (Schuirmann, 1987).
EQUIVALENCE = 0.90

Drift = Literal["stationary", "undecided", "small drift", "drifting"]
Mixing = Literal["mixed", "nearly mixed", "not mixed"]


@dataclass(frozen=True)
class ChainStage:
    """The chains after some number of repetitions of the training chain.

    Attributes:
        multiple: Number of repetitions.
        num_steps: Number of steps.
        energy: Mean energy in nats, with the standard error between superchains.
        difference: Mean energy minus that of the long run, in nats, paired by superchain.
        squared_norm: Mean of `|z|^2 / latent_dim`, 1 for the reference Gaussian.
        drift: What the difference amounts to, see [`ChainReport`].
        texts: Sentences decoded from the chains, which are the same ones at every stage.
    """

    multiple: int
    num_steps: int
    energy: Estimate
    difference: Estimate
    squared_norm: Estimate
    drift: Drift
    texts: tuple[str, ...]


@dataclass(frozen=True)
class ChainReport:
    """What becomes of chains that run for many times the length of the training chain.

    The *long run* is the second half of the run. The mean energy of a stage is compared with that of the long run by
    the differences of the superchains, which are independent of each other:

    - `"drifting"`: the difference is significant (its 99 % interval, of Student's t, excludes zero), and 0.2 standard
      deviations of the energy or more;
    - `"small drift"`: significant, but less than that;
    - `"stationary"`: not significant, and the 90 % interval lies within 0.2 standard deviations of zero;
    - `"undecided"`: not significant, but that interval reaches further; more chains would decide it.

    Whether the chains of the long run have mixed is judged by the nested R-hat where the chains of each superchain
    started from one point. Otherwise superchains agree even if no chain moves, and R-hat itself must judge, which is
    near 1 only if each chain alone has some fifty independent draws.

    Attributes:
        sampler: The settings of the sampler.
        stages: The run at each multiple, ascending.
        energy: Mean energy of the long run in nats, with the standard error between superchains.
        energy_std: Standard deviation of the energy over chains and draws of the long run.
        late_difference: Mean energy of the last half of the long run minus that of its first half.
        late_drift: What `late_difference` amounts to, by the rules above.
        energy_statistics: Convergence of the energy in the long run.
        latent_statistics: Convergence of every dimension in the long run.
        energies: `(num_chains, repetitions)`, energies at the ends of repetitions.
        latents: `(num_chains, repetitions, latent_dim)`, latents at the ends of repetitions.
        trace: `(repetitions * num_steps, num_chains)`, energies after every step.
        superchains: Number of superchains.
        shared_starts: Whether the chains of each superchain started from one point.
    """

    sampler: dict[str, Any]
    stages: tuple[ChainStage, ...]
    energy: Estimate
    energy_std: float
    late_difference: Estimate
    late_drift: Drift
    energy_statistics: ChainStatistics
    latent_statistics: ChainStatistics
    energies: Tensor = field(repr=False)
    latents: Tensor = field(repr=False)
    trace: Tensor = field(repr=False)
    superchains: int
    shared_starts: bool

    @property
    def first_draw(self) -> int:
        """Number of repetitions before the long run."""
        return self.energies.shape[1] // 2

    @property
    def drift(self) -> Drift:
        """The drift of the first stage, or `"drifting"` if the long run itself drifts."""
        return "drifting" if self.late_drift == "drifting" else self.stages[0].drift

    @property
    def r_hats(self) -> tuple[Tensor, Tensor]:
        """The R-hat that judges the long run, nested or not, of the energy and of every dimension, `(latent_dim,)`."""
        name = "nested_r_hat" if self.shared_starts else "r_hat"
        return getattr(self.energy_statistics, name), getattr(self.latent_statistics, name)

    @property
    def r_hat(self) -> float:
        """The largest of `r_hats`."""
        return max(float(values.max()) for values in self.r_hats)

    @property
    def mixing(self) -> Mixing:
        """Whether the chains of the long run agree: `r_hat` below 1.01, below 1.05 (nearly), or not."""
        if self.r_hat < MIXED:
            return "mixed"
        return "nearly mixed" if self.r_hat < NEARLY_MIXED else "not mixed"

    @property
    def arrival(self) -> int | None:
        """The multiple from which no stage is drifting any more; `None` if the long run itself drifts."""
        if self.late_drift == "drifting":
            return None
        arrived = itertools.takewhile(lambda stage: stage.drift != "drifting", reversed(self.stages))
        return min((stage.multiple for stage in arrived), default=None)

    @property
    def verdict(self) -> str:
        """The report in words: whether the training chain is stationary, and whether the long run has mixed."""
        return " ".join([self._drift_verdict(), *self._late_verdict(), self._mixing_verdict()])

    def _drift_verdict(self) -> str:
        first = self.stages[0]
        size = abs(first.difference.value)
        start = f"{first.energy:.2f} nats at {first.multiple}x ({first.num_steps} steps)"
        end = f"{self.energy:.2f} in the long run ({self.first_draw + 1}x to {self.energies.shape[1]}x)"
        moved = (
            f"the mean energy {'falls' if first.difference.value > 0 else 'rises'} from {start} to {end}, by "
            f"{size:.2f} nats or {size / self.energy_std:.2f} standard deviations of the energy"
        )
        stayed = f"the mean energy is {start} and {end}; the difference of {first.difference:.2f} is not significant"
        reach = (size + _margin(first.difference, EQUIVALENCE)) / self.energy_std
        arrival = (
            f"It has converged from {self.arrival}x on."
            if self.arrival
            else "Longer chains have not converged either."
        )
        words = {
            "drifting": f"{moved}: the chain of {first.multiple}x is a short-run chain that has not converged. "
            f"{arrival}",
            "small drift": f"{moved}: significant, but small (below {SMALL_DRIFT}).",
            "stationary": f"{stayed}, and its 90 % interval lies within {SMALL_DRIFT} standard deviations of zero.",
            "undecided": f"{stayed}, but its 90 % interval reaches {reach:.2f} standard deviations, more than a small "
            f"difference ({SMALL_DRIFT}): run more chains.",
        }
        return f"{self.drift.capitalize()}: {words[first.drift]}"

    def _late_verdict(self) -> list[str]:
        if self.late_drift not in ("drifting", "small drift"):
            return []
        late = self.late_difference
        still = "still drifts" if self.late_drift == "drifting" else "drifts a little"
        return [
            f"The long run itself {still}, by {late:.2f} nats ({abs(late.value) / self.energy_std:.2f} standard "
            "deviations) from its first half to its last."
        ]

    def _mixing_verdict(self) -> str:
        energy, latents = (part.to_dict() for part in (self.energy_statistics, self.latent_statistics))
        judge, units = ("nested R-hat", "superchains") if self.shared_starts else ("R-hat", "chains")
        r_hats = (
            f"R-hat of the long run is {energy['r_hat']:.3f} for the energy and at most "
            f"{latents['r_hat']['worst']:.3f} over {self.latents.shape[-1]} dimensions, nested R-hat "
            f"{energy['nested_r_hat']:.3f} and {latents['nested_r_hat']['worst']:.3f}"
        )
        meaning = {
            "mixed": f"below {MIXED}, the {units} agree.",
            "nearly mixed": f"not below {MIXED} but below {NEARLY_MIXED}, the {units} nearly agree.",
            "not mixed": f"{NEARLY_MIXED} or more, the {units} have not mixed and remember where they started"
            + ("." if self.shared_starts else f", or the {energy['num_draws']} draws of a chain are too few to tell."),
        }
        return f"{r_hats}: by the {judge} of {self.r_hat:.3f}, {meaning[self.mixing]}"

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-able values, without the draws."""
        return {
            "verdict": self.verdict,
            "drift": self.drift,
            "mixing": self.mixing,
            "arrival": self.arrival,
            "sampler": self.sampler,
            "num_chains": len(self.energies),
            "superchains": self.superchains,
            "shared_starts": self.shared_starts,
            "repetitions": self.energies.shape[1],
            "stages": [
                {
                    **vars(stage),
                    "energy": stage.energy.to_dict(),
                    "difference": stage.difference.to_dict(),
                    "difference_in_std": stage.difference.value / self.energy_std,
                    "squared_norm": stage.squared_norm.to_dict(),
                }
                for stage in self.stages
            ],
            "long_run": {
                "energy": self.energy.to_dict(),
                "energy_std": self.energy_std,
                "late_difference": self.late_difference.to_dict(),
                "late_drift": self.late_drift,
                "energy_statistics": self.energy_statistics.to_dict(),
                "latent_statistics": self.latent_statistics.to_dict(),
            },
        }

    def to_markdown(self) -> str:
        """The verdict, the stages, the statistics of the long run, and what the sentences become."""
        num_chains, repetitions = self.energies.shape
        lines = [
            f"**{self.verdict}**",
            "",
            f"Means over {num_chains} chains in {self.superchains} superchains, ± one standard error between these.",
            "",
            "| multiple | steps | energy (nats) | minus long run (nats) | in standard deviations | \\|z\\|² / dim | |",
            "|---:|---:|---:|---:|---:|---:|---|",
        ]
        for stage in self.stages:
            lines.append(
                f"| {stage.multiple}x | {stage.num_steps} | {stage.energy:.2f} | {stage.difference:.2f} "
                f"| {stage.difference.value / self.energy_std:.2f} | {stage.squared_norm:.2f} | {stage.drift} |"
            )
        lines += [
            "",
            f"Long run, {self.first_draw + 1}x to {repetitions}x, one draw per repetition:",
            "",
            "| quantity | R-hat | nested R-hat | bulk ESS | tail ESS | MCSE of the mean |",
            "|---|---:|---:|---:|---:|---:|",
            _statistics_row("energy", self.energy_statistics.to_dict()),
        ]
        latents = self.latent_statistics.to_dict()
        for which in ("worst", "median"):
            statistics = {name: value[which] for name, value in latents.items() if isinstance(value, dict)}
            lines.append(_statistics_row(f"latent, {which} dimension", statistics))
        for chain in range(len(self.stages[0].texts)):
            lines += ["", f"Chain {chain + 1}:", ""]
            lines += [f"- {stage.multiple}x: {stage.texts[chain]}" for stage in self.stages]
        return "\n".join(lines) + "\n"


def run_chain_report(
    logdensity: LogDensity,
    sampler: Sampler,
    initial: Tensor,
    *,
    superchains: int,
    multiples: Sequence[int] = (1, 2, 5, 10, 40, 100),
    decode: Callable[[Tensor], list[str]] | None = None,
    num_texts: int = 5,
    generator: torch.Generator | None = None,
    progress: Callable[[list[int]], Any] = iter,
) -> ChainReport:
    """Repeats the training chain, each time from where it ended before, and judges whether it had arrived at first.

    A few hundred chains in 16 or more superchains resolve a small drift.

    Args:
        logdensity: The target.
        sampler: The training chain; it is repeated as often as the largest multiple says.
        initial: `(num_chains, latent_dim)`, where the chains start. The chains of a superchain are consecutive rows
            and should start from one point, `starts.repeat_interleave(num_chains // superchains, dim=0)`, so that
            the nested R-hat can tell whether they still remember it.
        superchains: Number of superchains, which are the independent units of all standard errors.
        multiples: The numbers of repetitions after which there is a [`ChainStage`].
        decode: Turns latents `(num_texts, latent_dim)` into sentences; it is called once for each multiple.
        num_texts: Number of chains whose latents are decoded.
        generator: Source of the noise.
        progress: Wraps the list of repetitions, to show progress.

    Raises:
        UsageError: If there are too few chains or repetitions, the chains do not make equal superchains, the start is
            not finite, or arviz-stats is not installed (names the extra).
        DivergenceError: If a chain is not finite any more.
    """
    multiples = sorted(set(multiples))
    if not multiples or multiples[0] < 1 or multiples[-1] < MIN_REPETITIONS:
        raise UsageError(f"multiples must be 1 or more, and the largest {MIN_REPETITIONS} or more, got {multiples}")
    check_initial(initial)
    superchain_ids(len(initial), superchains)
    array_stats()
    if num_texts < 1:
        raise UsageError(f"num_texts must be 1 or more, got {num_texts}; to decode nothing leave `decode` out")
    chosen = torch.linspace(0, len(initial) - 1, min(num_texts, len(initial))).long()

    latents = initial
    texts: dict[int, tuple[str, ...]] = {}
    positions, steps = [], []
    for repetition in progress(list(range(1, multiples[-1] + 1))):
        output = sampler.sample(latents, logdensity, generator=generator, return_trace=True)
        assert output.trace is not None  # it was asked for
        latents = output.latents
        positions.append(latents.cpu())
        steps.append(output.trace.energies[1:].cpu())
        if decode is not None and repetition in multiples:
            texts[repetition] = tuple(decode(latents[chosen.to(latents.device)]))

    num_steps = len(steps[0])
    energies = torch.stack([energy[-1] for energy in steps], dim=1).double()  # (num_chains, repetitions)
    visited = torch.stack(positions, dim=1)
    half = multiples[-1] // 2
    long_run = energies[:, half:]
    energy_std = float(long_run.std())
    quarter = long_run.shape[1] // 2

    def estimate(values: Tensor, definition: str) -> Estimate:
        """The mean of values of the chains, `(num_chains,)`, with superchains as independent units."""
        return Estimate.of_mean(values.double().unflatten(0, (superchains, -1)).mean(dim=1), definition)

    stages = []
    for multiple in multiples:
        ends = energies[:, multiple - 1]
        difference = estimate(ends - long_run.mean(dim=1), "mean energy minus that of the long run, in nats")
        stages.append(
            ChainStage(
                multiple=multiple,
                num_steps=multiple * num_steps,
                energy=estimate(ends, "mean energy in nats"),
                difference=difference,
                squared_norm=estimate(visited[:, multiple - 1].square().mean(dim=-1), "mean of |z|^2 / latent_dim"),
                drift=_judge(difference, energy_std),
                texts=texts.get(multiple, ()),
            )
        )
    groups = initial.unflatten(0, (superchains, -1))
    late = estimate(
        long_run[:, -quarter:].mean(dim=1) - long_run[:, :quarter].mean(dim=1),
        "mean energy of the last half of the long run minus that of its first half, in nats",
    )
    return ChainReport(
        sampler=sampler.to_dict(),
        stages=tuple(stages),
        energy=estimate(long_run.mean(dim=1), "mean energy of the long run in nats"),
        energy_std=energy_std,
        late_difference=late,
        late_drift=_judge(late, energy_std),
        energy_statistics=chain_statistics(long_run, superchains=superchains),
        latent_statistics=chain_statistics(visited[:, half:], superchains=superchains),
        energies=energies,
        latents=visited,
        trace=torch.cat(steps),
        superchains=superchains,
        shared_starts=bool((groups == groups[:, :1]).all()) and superchains < len(initial),
    )


def _margin(difference: Estimate, confidence: float) -> float:
    """Half the width of the interval of a mean, by Student's t."""
    from scipy.stats import t  # type: ignore[import-untyped]  # comes with arviz-stats

    assert difference.standard_error is not None  # every mean has one
    return float(t.ppf(0.5 + confidence / 2, difference.n - 1)) * difference.standard_error


def _judge(difference: Estimate, energy_std: float) -> Drift:
    """What a difference of mean energies amounts to; the rules are in [`ChainReport`]."""
    size, small = abs(difference.value), SMALL_DRIFT * energy_std
    if size > _margin(difference, SIGNIFICANCE):
        return "drifting" if size >= small else "small drift"
    return "stationary" if size + _margin(difference, EQUIVALENCE) < small else "undecided"


def _statistics_row(name: str, statistics: Mapping[str, Any]) -> str:
    formats = {"r_hat": ".3f", "nested_r_hat": ".3f", "ess_bulk": ".0f", "ess_tail": ".0f", "mcse_mean": ".3g"}
    return f"| {name} | {' | '.join(format(statistics[key], spec) for key, spec in formats.items())} |"
