"""Records every position of a chain, for plots and demonstrations."""

from __future__ import annotations

import torch
from torch import Tensor

from latent_ebm_text.latents.density import ScoredLogDensity
from latent_ebm_text.latents.samplers.base import Sampler, SamplerTrace


class WatchedLogDensity:
    """A log-density that records where its score is evaluated: a sampler does so at every position it steps from.

    Args:
        logdensity: The log-density, with its score.

    Attributes:
        positions: Copies of the latents at which the score was evaluated, each `(batch, latent_dim)`, in order.
    """

    def __init__(self, logdensity: ScoredLogDensity) -> None:
        self._logdensity = logdensity
        self.positions: list[Tensor] = []

    def __call__(self, latents: Tensor) -> Tensor:
        """The log-density; this call is not recorded."""
        return self._logdensity(latents)

    def score(self, latents: Tensor) -> Tensor:
        """The score of shape `(batch, latent_dim)`."""
        return self.value_and_score(latents)[1]

    def value_and_score(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """The log-density of shape `(batch,)` and the score of shape `(batch, latent_dim)`."""
        self.positions.append(latents.clone())
        return self._logdensity.value_and_score(latents)


def watch_chain(
    sampler: Sampler, init: Tensor, logdensity: ScoredLogDensity, *, generator: torch.Generator | None = None
) -> tuple[Tensor, SamplerTrace]:
    """Runs chains and keeps every position. The draws are those of `sampler.sample` with the same generator.

    Args:
        sampler: A sampler that evaluates the score once per step, as
            [`~latent_ebm_text.latents.samplers.langevin.LangevinSampler`] does.
        init: `(batch, latent_dim)`, where the chains start.
        logdensity: The target, with its score.
        generator: Source of the noise.

    Returns:
        Positions `(num_steps + 1, batch, latent_dim)`, the start included, and the [`SamplerTrace`].
    """
    watched = WatchedLogDensity(logdensity)
    trace = sampler.sample(init, watched, generator=generator, return_trace=True).trace
    assert trace is not None  # it was requested
    return torch.stack(watched.positions), trace
