"""The interface of all samplers. A sampler knows log-densities and positions, never a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from latent_ebm_text.latents.density import LogDensity


@dataclass(frozen=True)
class SamplerTrace:
    """The course of a batch of chains, step by step; kept only on request.

    Attributes:
        energies: `(num_steps + 1, batch)`, minus the log-density before the first step and after every step, in nats.
        score_norms: `(num_steps, batch)`, norm of the score where each step starts.
        displacements: `(num_steps, batch)`, distance moved by each step.
    """

    energies: Tensor
    score_norms: Tensor
    displacements: Tensor


@dataclass(frozen=True)
class FiniteCheck:
    """Whether chains have stayed finite: a number on their device, and what is to be done with it.

    Attributes:
        finite_steps: The number of steps after which all chains were finite, a tensor without dimensions.
        verify: Takes that number, and raises a `DivergenceError` if there should have been more.
    """

    finite_steps: Tensor
    verify: Callable[[int], None]

    def now_or_later(self) -> None:
        """Reads the number and verifies it, or leaves that to a [`deferred_checks`]."""
        deferred = _deferred.get()
        if deferred is None:
            self.verify(int(self.finite_steps))
        else:
            deferred.append(self)


_deferred: ContextVar[list[FiniteCheck] | None] = ContextVar("deferred", default=None)


@contextmanager
def deferred_checks() -> Iterator[list[FiniteCheck]]:
    """A context in which the ends of Langevin chains are not checked, so that the host does not wait for a GPU.

    Whoever enters it is given the checks, reads all their numbers at once, and verifies them.
    """
    checks: list[FiniteCheck] = []
    token = _deferred.set(checks)
    try:
        yield checks
    finally:
        _deferred.reset(token)


class TraceRecorder:
    """Collects a [`SamplerTrace`] step by step."""

    def __init__(self) -> None:
        self._energies: list[Tensor] = []
        self._score_norms: list[Tensor] = []
        self._displacements: list[Tensor] = []

    def start_step(self, value: Tensor, score: Tensor) -> None:
        """Records log-density `(batch,)` and score `(batch, latent_dim)` where a step starts."""
        self._energies.append(-value)
        self._score_norms.append(score.norm(dim=-1))

    def end_step(self, displacement: Tensor) -> None:
        """Records by how much the step has moved the chains, `(batch, latent_dim)`."""
        self._displacements.append(displacement.norm(dim=-1))

    def finish(self, value: Tensor) -> SamplerTrace:
        """Returns the trace, given the log-density `(batch,)` after the last step."""
        energies = torch.stack([*self._energies, -value])
        return SamplerTrace(energies, torch.stack(self._score_norms), torch.stack(self._displacements))


@dataclass(frozen=True)
class SamplerOutput:
    """The result of a batch of chains.

    Attributes:
        latents: `(batch, latent_dim)`, the final positions, detached.
        trace: The [`SamplerTrace`], if it was requested.
        acceptance_rate: `(batch,)`, mean acceptance probability, from samplers with a Metropolis correction.
        step_sizes: `(batch,)`, final step sizes, from the same samplers.
        swap_rates: `(temperatures - 1,)`, mean acceptance probability of swaps between neighbouring temperatures, from
            parallel tempering.
    """

    latents: Tensor
    trace: SamplerTrace | None = None
    acceptance_rate: Tensor | None = None
    step_sizes: Tensor | None = None
    swap_rates: Tensor | None = None


class Sampler(Protocol):
    """A sampler. Its settings are plain numbers, so it is saved as JSON and easily exchanged for another."""

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
