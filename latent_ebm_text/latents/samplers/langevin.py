"""Unadjusted Langevin dynamics, the sampler of the paper (section 2.3, eq. 8), with two integrators."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from latent_ebm_text.errors import DivergenceError, UsageError
from latent_ebm_text.latents.density import LogDensity, score_function, value_and_score_function
from latent_ebm_text.latents.rng import normal_
from latent_ebm_text.latents.samplers.base import FiniteCheck, SamplerOutput, TraceRecorder
from latent_ebm_text.latents.samplers.schedules import Schedule, number, schedule_values

Integrator = Literal["euler", "leimkuhler_matthews"]


@dataclass(frozen=True)
class LangevinSampler:
    r"""Unadjusted Langevin dynamics with step-size and temperature schedules.

    Each step of size `s` at temperature `T` moves a position `z` by the score of the log-density:

        z <- z + s^2 / 2 * score(z) + sqrt(T) * s * noise,        noise ~ N(0, I)

    At `T = 1` the chain targets the log-density up to a discretisation error of order `s^2`; at `T = 0` it is
    gradient ascent; a general `T` targets `logdensity / T`. The paper runs 60 steps of 0.4 on the prior and
    20 steps of 0.1 on the posterior. (`s^2 / 2` is the step size `epsilon` of other conventions.)

    The step above is the Euler-Maruyama integrator. Its draws are too widely spread: along a direction where the
    target has variance `V`, the chain has variance `V / (1 - s^2 / 4V)`. The integrator of Leimkuhler and Matthews
    (2013) averages each step's noise with the next one's,

        z <- z + s^2 / 2 * score(z) + sqrt(T) * s * (noise + next noise) / 2,

    costs the same and has no such error for Gaussian targets, whatever the step size. Its first step is a half step
    (`s^2 / 4`), so that a chain that starts with the target's distribution keeps it under the correlated noise.

    Args:
        num_steps: Number of steps `K`.
        step_size: Langevin step size `s`: a number, a list or a start/end mapping, see
            [`~latent_ebm_text.latents.samplers.schedules.Schedule`].
        temperature: Noise temperature `T`, in the same forms.
        max_score_norm: Longer scores are shortened to this norm, so that chains that start far from the mass of the
            density walk there instead of overshooting (the truncated drift of Roberts and Tweedie, 1996). A value well
            above the scores of a converged chain does not change the target.
        integrator: `"euler"`, as in the paper, or `"leimkuhler_matthews"`.

    Raises:
        UsageError: If a setting is zero, negative or not finite (the temperature may be zero), or the integrator is
            unknown.
    """

    name: ClassVar[str] = "langevin"

    num_steps: int
    step_size: Schedule = 0.1
    temperature: Schedule = 1.0
    max_score_norm: float | None = None
    integrator: Integrator = "euler"

    def __post_init__(self) -> None:
        if isinstance(self.num_steps, bool) or not isinstance(self.num_steps, int) or self.num_steps < 1:
            raise UsageError(f"num_steps of a Langevin sampler must be a positive integer, got {self.num_steps!r}")
        if self.max_score_norm is not None and not 0 < number(self.max_score_norm, "max_score_norm") < math.inf:
            raise UsageError(
                f"max_score_norm of a Langevin sampler must be positive and finite, got {self.max_score_norm}"
            )
        if self.integrator not in get_args(Integrator):
            known = " or ".join(get_args(Integrator))
            raise UsageError(f"integrator of a Langevin sampler must be {known}, got {self.integrator!r}")
        if max(drift for drift, _ in self._coefficients()) > torch.finfo(torch.float32).max:
            raise UsageError(f"step_size of a Langevin sampler is far too large, got {self.step_size}")

    def _coefficients(self) -> list[tuple[float, float]]:
        """Returns the drift coefficient `s^2 / 2` and the noise scale `sqrt(T) s` of every step."""
        step_sizes = schedule_values(self.step_size, self.num_steps, name="step_size")
        temperatures = schedule_values(self.temperature, self.num_steps, name="temperature", allow_zero=True)
        return [(0.5 * s * s, math.sqrt(t) * s) for s, t in zip(step_sizes, temperatures, strict=True)]

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
        """Runs one chain per row.

        Args:
            init: Starting positions of shape `(batch, latent_dim)`; not modified.
            logdensity: The unnormalised log-density of the target. Its closed-form `score` is used if it has one.
            generator: Source of the noise. One generator drives the whole batch, so the path of a chain depends on
                its row in the batch.
            return_trace: Whether to keep energies, score norms and displacements of every step.

        Returns:
            [`SamplerOutput`] with latents of shape `(batch, latent_dim)`.

        Raises:
            DivergenceError: If a chain is not finite; the message names the first such step and what to change.
        """
        score_of = score_function(logdensity)
        value_and_score_of = value_and_score_function(logdensity)
        with torch.no_grad():
            position = init.detach().clone()
            noise = _Noise(position, generator, averaged=self.integrator == "leimkuhler_matthews")
            norms: list[Tensor] = []  # read once at the end, so that a chain never waits for the host
            recorder = TraceRecorder()
            for step, (drift, noise_scale) in enumerate(self._coefficients()):
                if return_trace:
                    value, score = value_and_score_of(position)
                    recorder.start_step(value, score)
                    previous = position.clone()
                else:
                    score = score_of(position)
                if self.max_score_norm is not None:
                    score = torch.renorm(score, p=2, dim=0, maxnorm=float(self.max_score_norm))
                position.add_(score, alpha=drift * (0.5 if noise.averaged and step == 0 else 1.0))
                if noise_scale > 0:
                    position.add_(noise.draw(), alpha=noise_scale)
                norms.append(torch.linalg.vector_norm(position))
                if return_trace:
                    recorder.end_step(position - previous)
            finite_steps = torch.stack(norms).isfinite().sum()
            FiniteCheck(finite_steps, partial(self._require_finite, position)).now_or_later()
            trace = recorder.finish(value_and_score_of(position)[0]) if return_trace else None
        return SamplerOutput(position, trace)

    def _require_finite(self, position: Tensor, finite_steps: int) -> None:
        if finite_steps == self.num_steps:
            return
        rows = (~torch.linalg.vector_norm(position, dim=-1).isfinite()).nonzero().flatten().tolist()
        raise DivergenceError(
            f"Langevin chain not finite from step {finite_steps + 1} of {self.num_steps} on "
            f"({len(rows)} of {position.shape[0]} chains): lower step_size (now {self.step_size}); if it persists, "
            f"lower prior_learning_rate or raise energy_penalty, because the energy has grown too steep",
            rows,
        )


class _Noise:
    """Standard normal noise step by step; if averaged, the mean of two draws, one of which the next step shares."""

    def __init__(self, like: Tensor, generator: torch.Generator | None, *, averaged: bool) -> None:
        self.averaged = averaged
        self._generator = generator
        self._fresh = torch.empty_like(like)
        self._kept = normal_(torch.empty_like(like), generator) if averaged else None

    def draw(self) -> Tensor:
        """Returns the noise of the next step, valid until the following call."""
        normal_(self._fresh, self._generator)
        if self._kept is None:
            return self._fresh
        mean = self._kept.add_(self._fresh).mul_(0.5)
        self._kept, self._fresh = self._fresh, mean
        return mean
