"""A chain seen from outside: where it went, for pictures and demonstrations."""

from __future__ import annotations

import torch
from torch import Tensor

from latent_ebm_text.samplers.base import Sampler, SamplerTrace, ScoredLogDensity


class WatchedLogDensity:
    """A log-density that remembers where it was asked for: a sampler asks at every position it steps from.

    Args:
        logdensity: The log-density, with its score.

    Attributes:
        positions: Copies of the latents it was asked at, each `(batch, latent_dim)`, in order.
    """

    def __init__(self, logdensity: ScoredLogDensity) -> None:
        self._logdensity = logdensity
        self.positions: list[Tensor] = []

    def __call__(self, latents: Tensor) -> Tensor:
        """The log-density; not remembered."""
        return self._logdensity(latents)

    def score(self, latents: Tensor) -> Tensor:
        """The score."""
        return self.value_and_score(latents)[1]

    def value_and_score(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Log-density and score."""
        self.positions.append(latents.clone())
        return self._logdensity.value_and_score(latents)


def watch_chain(
    sampler: Sampler, init: Tensor, logdensity: ScoredLogDensity, *, generator: torch.Generator | None = None
) -> tuple[Tensor, SamplerTrace]:
    """Runs chains and keeps every position. The draws are those of `sampler.sample` with the same generator.

    Args:
        sampler: One that asks once per step, as [`LangevinSampler`] does.
        init: `(batch, latent_dim)`, where the chains start.
        logdensity: The target, with its score.
        generator: Source of the noise.

    Returns:
        Positions `(num_steps + 1, batch, latent_dim)`, the start included, and the [`SamplerTrace`].
    """
    watched = WatchedLogDensity(logdensity)
    trace = sampler.sample(init, watched, generator=generator, return_trace=True).trace
    assert trace is not None  # it was asked for
    return torch.stack(watched.positions), trace
