"""What every sampler is: numbers, and a `sample` method that knows a log-density and a position, never a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor


class LogDensity(Protocol):
    """An unnormalised log-density: latents of shape `(batch, latent_dim)` to nats of shape `(batch,)`."""

    def __call__(self, latents: Tensor, /) -> Tensor: ...


@runtime_checkable
class ScoredLogDensity(LogDensity, Protocol):
    """A log-density that also knows its score, the gradient of the log-density in the latents, in closed form."""

    def score(self, latents: Tensor, /) -> Tensor:
        """The score, of shape `(batch, latent_dim)`."""
        ...

    def value_and_score(self, latents: Tensor, /) -> tuple[Tensor, Tensor]:
        """The log-density of shape `(batch,)` and the score of shape `(batch, latent_dim)`."""
        ...


@runtime_checkable
class FreezableLogDensity(ScoredLogDensity, Protocol):
    """A log-density with weights that, for the length of a chain, can be taken as they are."""

    def frozen(self) -> ScoredLogDensity:
        """The same log-density, with whatever does not depend on the latents computed once."""
        ...


AnyLogDensity = TypeVar("AnyLogDensity", bound=LogDensity)


@dataclass(frozen=True)
class SamplerTrace:
    """What a chain did, step by step; kept only on request.

    Attributes:
        energies: `(num_steps + 1, batch)`, minus the log-density before the first and after every step, in nats.
        score_norms: `(num_steps, batch)`, norm of the score at the position each step starts from.
        displacements: `(num_steps, batch)`, distance moved by each step.
    """

    energies: Tensor
    score_norms: Tensor
    displacements: Tensor


class TraceRecorder:
    """Collects a [`SamplerTrace`] step by step."""

    def __init__(self) -> None:
        self._energies: list[Tensor] = []
        self._score_norms: list[Tensor] = []
        self._displacements: list[Tensor] = []

    def start_step(self, value: Tensor, score: Tensor) -> None:
        """Takes note of log-density `(batch,)` and score `(batch, latent_dim)` where a step starts from."""
        self._energies.append(-value)
        self._score_norms.append(score.norm(dim=-1))

    def end_step(self, displacement: Tensor) -> None:
        """Takes note of what the step moved the chains by, `(batch, latent_dim)`."""
        self._displacements.append(displacement.norm(dim=-1))

    def finish(self, value: Tensor) -> SamplerTrace:
        """The trace, given the log-density after the last step."""
        energies = torch.stack([*self._energies, -value])
        return SamplerTrace(energies, torch.stack(self._score_norms), torch.stack(self._displacements))


@dataclass(frozen=True)
class SamplerOutput:
    """The end of a batch of chains.

    Attributes:
        latents: `(batch, latent_dim)`, the final positions, detached.
        trace: The [`SamplerTrace`], where it was asked for.
        acceptance_rate: `(batch,)`, mean acceptance probability; samplers with a Metropolis correction.
        step_sizes: `(batch,)`, the step sizes that such a sampler ended with.
        swap_rates: `(temperatures - 1,)`, mean acceptance probability of swaps between neighbouring temperatures;
            parallel tempering.
    """

    latents: Tensor
    trace: SamplerTrace | None = None
    acceptance_rate: Tensor | None = None
    step_sizes: Tensor | None = None
    swap_rates: Tensor | None = None


class Sampler(Protocol):
    """The one interface of all samplers. Settings are plain numbers: a sampler is saved as JSON and swapped freely."""

    @property
    def num_steps(self) -> int: ...

    def sample(
        self,
        init: Tensor,
        logdensity: LogDensity,
        *,
        generator: torch.Generator | None = None,
        return_trace: bool = False,
    ) -> SamplerOutput:
        """Runs one chain per row of `init`, of shape `(batch, latent_dim)`, towards `logdensity`."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-able values, with the sampler's registered `name`."""
        ...


def score_function(logdensity: LogDensity) -> Callable[[Tensor], Tensor]:
    """The score of a log-density for one chain: its own closed form where it offers one, else autograd."""
    logdensity = frozen_log_density(logdensity)
    if isinstance(logdensity, ScoredLogDensity):
        return logdensity.score
    return lambda latents: autograd_value_and_score(logdensity, latents)[1]


def value_and_score_function(logdensity: LogDensity) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Log-density and score together, for one chain: the closed form where there is one, else autograd."""
    logdensity = frozen_log_density(logdensity)
    if isinstance(logdensity, ScoredLogDensity):
        return logdensity.value_and_score
    return lambda latents: autograd_value_and_score(logdensity, latents)


def frozen_log_density(logdensity: AnyLogDensity) -> AnyLogDensity:
    """The same log-density for the length of a chain, with whatever it can compute once computed once."""
    return logdensity.frozen() if isinstance(logdensity, FreezableLogDensity) else logdensity  # type: ignore


def autograd_value_and_score(logdensity: LogDensity, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Log-density `(batch,)` and score `(batch, latent_dim)` by automatic differentiation.

    Works inside `torch.no_grad()` and `torch.inference_mode()`. Rows must not depend on each other.
    """
    with torch.inference_mode(False), torch.enable_grad():
        position = latents.detach().clone().requires_grad_(True)
        value = logdensity(position)
        (score,) = torch.autograd.grad(value.sum(), position)
    return value.detach(), score
