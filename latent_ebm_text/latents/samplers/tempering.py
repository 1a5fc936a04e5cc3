"""Parallel tempering: chains at several temperatures that exchange their positions, for targets with many modes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents.density import LogDensity, value_and_score_function
from latent_ebm_text.latents.rng import uniform_
from latent_ebm_text.latents.samplers.base import SamplerOutput, TraceRecorder
from latent_ebm_text.latents.samplers.metropolis import ChainState, DualAveraging, check_adaptive_settings, hmc_step
from latent_ebm_text.latents.samplers.schedules import number


@dataclass(frozen=True)
class ParallelTemperingSampler:
    r"""MALA chains at temperatures from 1 to `max_temperature` that propose to swap with their neighbours.

    A hot chain, which targets `logdensity / T`, crosses barriers that stop the chain at `T = 1`; swaps pass the modes
    that it finds down to lower temperatures (Swendsen and Wang, 1986; Geyer, 1991). Even and odd pairs take turns
    (Okabe et al., 2001). The chain at temperature 1 keeps the exact target and is the one that is returned.

    Args:
        num_steps: Number of steps; each moves the chains at all temperatures once and then proposes swaps.
        step_size: Langevin step size at temperature 1; at temperature `T` it is `sqrt(T)` times larger.
        num_temperatures: Number of temperatures, at least 2, evenly spaced in their logarithms.
        max_temperature: The highest temperature, above 1.
        num_adaptation_steps: Number of initial steps that adapt the step size of every chain.
        target_acceptance: The acceptance rate that the adaptation aims at.

    Raises:
        UsageError: If a setting is out of range.
    """

    name: ClassVar[str] = "parallel_tempering"

    num_steps: int
    step_size: float = 0.1
    num_temperatures: int = 4
    max_temperature: float = 4.0
    num_adaptation_steps: int = 0
    target_acceptance: float = 0.574

    def __post_init__(self) -> None:
        check_adaptive_settings(
            self, "a parallel tempering sampler", num_steps=1, num_temperatures=2, num_adaptation_steps=0
        )
        if not 1 < number(self.max_temperature, "max_temperature") < float("inf"):
            raise UsageError(f"max_temperature must be above 1 and finite, got {self.max_temperature}")

    @property
    def temperatures(self) -> list[float]:
        """The temperatures, from 1 to `max_temperature`."""
        last = self.num_temperatures - 1
        return [self.max_temperature ** (rung / last) for rung in range(self.num_temperatures)]

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-able values."""
        return {"name": self.name, **asdict(self)}

    def sample(
        self,
        init: Tensor,
        logdensity: LogDensity,
        *,
        generator: torch.Generator | None = None,
        return_trace: bool = False,
    ) -> SamplerOutput:
        """Runs one ladder of chains per row, all from the same start; arguments and errors as in
        [`~latent_ebm_text.latents.samplers.LangevinSampler.sample`].

        Returns:
            [`SamplerOutput`] with the latents and trace of the chain at temperature 1, its `acceptance_rate` and
            `step_sizes` of shape `(batch,)`, and `swap_rates` of shape `(num_temperatures - 1,)`.
        """
        value_and_score = value_and_score_function(logdensity)
        temperatures, kept = self.temperatures, self.num_steps - self.num_adaptation_steps
        recorder = TraceRecorder()
        with torch.no_grad():
            start = ChainState.at(init.detach().clone(), value_and_score)
            chains = [start] * self.num_temperatures
            sizes = [torch.full_like(start.value, self.step_size * t**0.5) for t in temperatures]
            adaptations = [DualAveraging(size, self.target_acceptance) for size in sizes]
            accepted = torch.zeros_like(start.value)
            swaps, proposals = (start.value.new_zeros(self.num_temperatures - 1) for _ in range(2))
            for step in range(self.num_steps):
                before = chains[0]
                for rung, temperature in enumerate(temperatures):
                    chains[rung], acceptance = hmc_step(
                        chains[rung],
                        value_and_score,
                        sizes[rung],
                        num_leapfrog_steps=1,
                        inverse_temperature=1 / temperature,
                        generator=generator,
                    )
                    if step < self.num_adaptation_steps:
                        sizes[rung] = adaptations[rung].update(acceptance)
                    elif rung == 0:
                        accepted += acceptance
                if step + 1 == self.num_adaptation_steps:
                    sizes = [adaptation.final() for adaptation in adaptations]
                for rung in range(step % 2, self.num_temperatures - 1, 2):
                    swaps[rung] += self._swap(chains, rung, temperatures, generator)
                    proposals[rung] += 1
                if return_trace:
                    recorder.start_step(before.value, before.score)
                    recorder.end_step(chains[0].position - before.position)
            trace = recorder.finish(chains[0].value) if return_trace else None
        return SamplerOutput(
            chains[0].position,
            trace,
            acceptance_rate=accepted / kept,
            step_sizes=sizes[0],
            swap_rates=swaps / proposals.clamp(min=1),
        )

    @staticmethod
    def _swap(
        chains: list[ChainState], rung: int, temperatures: list[float], generator: torch.Generator | None
    ) -> Tensor:
        """Proposes to swap two neighbouring chains, row by row; returns the mean acceptance probability."""
        cold, hot = chains[rung], chains[rung + 1]
        log_ratio = (1 / temperatures[rung] - 1 / temperatures[rung + 1]) * (hot.value - cold.value)
        acceptance = log_ratio.clamp(max=0.0).exp()
        chosen = uniform_(torch.empty_like(acceptance), generator) < acceptance
        chains[rung], chains[rung + 1] = hot.where(chosen, cold), cold.where(chosen, hot)
        return acceptance.mean()  # a tensor, so that a chain never waits for the host
