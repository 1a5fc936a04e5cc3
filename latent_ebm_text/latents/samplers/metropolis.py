"""Samplers with a Metropolis correction, whose stationary distribution is exact: Hamiltonian Monte Carlo and MALA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from latent_ebm_text.errors import DivergenceError, UsageError
from latent_ebm_text.latents.density import LogDensity, value_and_score_function
from latent_ebm_text.latents.rng import normal_, uniform_
from latent_ebm_text.latents.samplers.base import SamplerOutput, TraceRecorder
from latent_ebm_text.latents.samplers.schedules import MAX_STEPS, Schedule, number, schedule_values

#: Far more temperatures than parallel tempering can use.
_MAX_TEMPERATURES = 1000

ValueAndScore = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass
class ChainState:
    """The positions of a batch of chains, with log-density and score there.

    Attributes:
        position: `(batch, latent_dim)`.
        value: `(batch,)`, log-density at the position, in nats.
        score: `(batch, latent_dim)`, gradient of the log-density at the position.
    """

    position: Tensor
    value: Tensor
    score: Tensor

    @classmethod
    def at(cls, position: Tensor, value_and_score: ValueAndScore) -> ChainState:
        """Evaluates the log-density at a position; raises a `DivergenceError` if it or its score is not finite."""
        state = cls(position, *value_and_score(position))
        if not bool((state.value.isfinite() & state.score.isfinite().all(dim=-1)).all()):
            raise DivergenceError("a chain starts where the log-density or its score is not finite; start elsewhere")
        return state

    def where(self, chosen: Tensor, other: ChainState) -> ChainState:
        """Returns this state in the `chosen` rows and the other one elsewhere."""
        rows = chosen[:, None]
        return ChainState(
            torch.where(rows, self.position, other.position),
            torch.where(chosen, self.value, other.value),
            torch.where(rows, self.score, other.score),
        )


def hmc_step(
    state: ChainState,
    value_and_score: ValueAndScore,
    step_sizes: Tensor,
    num_leapfrog_steps: int,
    *,
    inverse_temperature: float = 1.0,
    reference: ValueAndScore | None = None,
    generator: torch.Generator | None = None,
) -> tuple[ChainState, Tensor]:
    r"""One step of Hamiltonian Monte Carlo (Neal, 2011) towards `beta * log-density + (1 - beta) * reference`.

    Args:
        state: The chains, with the value and score of the log-density itself for any `beta`; not modified.
        value_and_score: The log-density and its score.
        step_sizes: `(batch,)`. With one leapfrog step, `s` is the step size of Langevin dynamics.
        num_leapfrog_steps: Number of gradient evaluations.
        inverse_temperature: `beta`.
        reference: The other end of the path, cheap to evaluate; flat by default.
        generator: Source of the momenta and of the accept-reject draws.

    Returns:
        The chains after the step and the acceptance probability of each, `(batch,)`. A proposal that is not finite
        has probability zero.
    """
    size, beta = step_sizes[:, None], inverse_temperature

    def mixed(at: ChainState) -> tuple[Tensor, Tensor]:
        if reference is None:
            return beta * at.value, beta * at.score
        value, score = reference(at.position)
        return beta * at.value + (1 - beta) * value, beta * at.score + (1 - beta) * score

    momentum = normal_(torch.empty_like(state.position), generator)
    start_kinetic = 0.5 * momentum.square().sum(dim=-1)
    start_value, score = mixed(state)
    proposal, value = state, start_value
    for _ in range(num_leapfrog_steps):
        momentum = momentum + 0.5 * size * score
        position = proposal.position + size * momentum
        proposal = ChainState(position, *value_and_score(position))
        value, score = mixed(proposal)
        momentum = momentum + 0.5 * size * score
    log_ratio = value - start_value - 0.5 * momentum.square().sum(dim=-1) + start_kinetic
    acceptance = torch.where(value.isfinite(), log_ratio.clamp(max=0.0).exp().nan_to_num(nan=0.0), 0.0)
    uniform = uniform_(torch.empty_like(acceptance), generator)
    return proposal.where(uniform < acceptance, state), acceptance


class DualAveraging:
    """Adapts one step size per chain towards an acceptance rate (Hoffman and Gelman, 2014, section 3.2).

    Args:
        step_sizes: `(batch,)`, the initial step sizes.
        target: The target acceptance rate.
    """

    _PULL, _OFFSET, _FORGET = 0.05, 10.0, 0.75  # gamma, t0 and kappa of the article

    def __init__(self, step_sizes: Tensor, target: float) -> None:
        self._centre = (10.0 * step_sizes).log()
        self._target = target
        self._error = torch.zeros_like(step_sizes)
        self._mean_log = step_sizes.log()
        self._count = 0

    def update(self, acceptance: Tensor) -> Tensor:
        """Returns the step sizes to try next, given the acceptance probabilities `(batch,)` of the previous ones."""
        self._count += 1
        share = 1.0 / (self._count + self._OFFSET)
        self._error = (1.0 - share) * self._error + share * (self._target - acceptance)
        log_size = self._centre - self._count**0.5 / self._PULL * self._error
        weight = self._count**-self._FORGET
        self._mean_log = weight * log_size + (1.0 - weight) * self._mean_log
        return log_size.exp()

    def final(self) -> Tensor:
        """Returns the step sizes to keep, `(batch,)`: averages in which later trials weigh more."""
        return self._mean_log.exp()


def check_adaptive_settings(sampler: Any, kind: str, **least: int) -> None:
    """Checks the settings that samplers with an adaptive step size have in common.

    Args:
        sampler: A sampler with `num_steps`, `num_adaptation_steps`, `step_size` and `target_acceptance`.
        kind: Name of the kind of sampler, for the error message.
        **least: The integer settings to check, each with its smallest valid value.

    Raises:
        UsageError: If a setting is invalid; the message names it and its valid values.
    """
    for setting, lowest in least.items():
        value = getattr(sampler, setting)
        if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
            raise UsageError(f"{setting} of {kind} must be an integer of at least {lowest}, got {value!r}")
        most = MAX_STEPS if setting.endswith("_steps") else _MAX_TEMPERATURES
        if value > most:
            raise UsageError(f"{setting} of {kind} must be at most {most:,}, got {value}")
    if sampler.num_adaptation_steps >= sampler.num_steps:
        raise UsageError(
            f"num_adaptation_steps ({sampler.num_adaptation_steps}) must be below num_steps ({sampler.num_steps}): "
            "draws of a chain that still adapts its step size do not follow the target"
        )
    if not 0 < number(sampler.target_acceptance, "target_acceptance") < 1:
        raise UsageError(f"target_acceptance must be between 0 and 1, got {sampler.target_acceptance}")
    schedule_values(number(sampler.step_size, "step_size"), 1, name="step_size")


@dataclass(frozen=True)
class HMCSampler:
    r"""Hamiltonian Monte Carlo: leapfrog trajectories with a Metropolis correction, which makes the target exact.

    Args:
        num_steps: Number of steps, each of them one trajectory.
        step_size: Leapfrog step size `s`, in the units of the Langevin step size; the initial value if it is adapted.
        num_leapfrog_steps: Number of gradient evaluations per step.
        temperature: `T`; the target is `logdensity / T`. A schedule that falls to 1 anneals.
        num_adaptation_steps: Number of initial steps that adapt the step size of every chain by dual averaging. It is
            fixed afterwards, since a chain that never stops adapting has no stationary distribution.
        target_acceptance: The acceptance rate that the adaptation aims at.

    Raises:
        UsageError: If a setting is out of range.
    """

    name: ClassVar[str] = "hmc"

    num_steps: int
    step_size: float = 0.1
    num_leapfrog_steps: int = 8
    temperature: Schedule = 1.0
    num_adaptation_steps: int = 0
    target_acceptance: float = 0.8

    def __post_init__(self) -> None:
        check_adaptive_settings(self, "an HMC sampler", num_steps=1, num_leapfrog_steps=1, num_adaptation_steps=0)
        self._temperatures()

    def _temperatures(self) -> list[float]:
        return schedule_values(self.temperature, self.num_steps, name="temperature")

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
        """Runs one chain per row; arguments and errors as in
        [`~latent_ebm_text.latents.samplers.LangevinSampler.sample`].

        Returns:
            [`SamplerOutput`] with `acceptance_rate` and `step_sizes` of shape `(batch,)`: the rate is the mean
            acceptance probability of the steps after the adaptation.
        """
        value_and_score = value_and_score_function(logdensity)
        recorder = TraceRecorder()
        with torch.no_grad():
            state = ChainState.at(init.detach().clone(), value_and_score)
            step_sizes = torch.full_like(state.value, float(self.step_size))
            adaptation = DualAveraging(step_sizes, self.target_acceptance)
            accepted = torch.zeros_like(state.value)
            for step, temperature in enumerate(self._temperatures()):
                before = state
                state, acceptance = hmc_step(
                    state,
                    value_and_score,
                    step_sizes,
                    self.num_leapfrog_steps,
                    inverse_temperature=1 / temperature,
                    generator=generator,
                )
                if step < self.num_adaptation_steps:
                    step_sizes = adaptation.update(acceptance)
                    if step + 1 == self.num_adaptation_steps:
                        step_sizes = adaptation.final()
                else:
                    accepted += acceptance
                if return_trace:
                    recorder.start_step(before.value, before.score)
                    recorder.end_step(state.position - before.position)
            trace = recorder.finish(state.value) if return_trace else None
        rate = accepted / (self.num_steps - self.num_adaptation_steps)
        return SamplerOutput(state.position, trace, acceptance_rate=rate, step_sizes=step_sizes)


@dataclass(frozen=True)
class MALASampler:
    """The Metropolis-adjusted Langevin algorithm (Roberts and Tweedie, 1996): Langevin steps, each accepted or not.

    It is Hamiltonian Monte Carlo with one leapfrog step, and runs as such. The arguments are those of [`HMCSampler`];
    the default `target_acceptance` is the optimal one for this algorithm (Roberts and Rosenthal, 1998).
    """

    name: ClassVar[str] = "mala"

    num_steps: int
    step_size: float = 0.1
    temperature: Schedule = 1.0
    num_adaptation_steps: int = 0
    target_acceptance: float = 0.574

    def __post_init__(self) -> None:
        self._hmc()

    def _hmc(self) -> HMCSampler:
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        return HMCSampler(num_leapfrog_steps=1, **settings)

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
        """Runs one chain per row; see [`HMCSampler.sample`]."""
        return self._hmc().sample(init, logdensity, generator=generator, return_trace=return_trace)
