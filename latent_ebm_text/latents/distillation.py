"""Distils a prior into a flow, which is drawn from in place of its chain."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents.flow import FlowQuality, LatentFlow, fit_flow, flow_quality
from latent_ebm_text.latents.prior import EnergyPrior, TiltedGaussianPrior
from latent_ebm_text.latents.rng import derived_generator, derived_seed
from latent_ebm_text.latents.samplers.base import Sampler

#: Latents whose energies tell one prior from another.
_NUM_PROBES = 16
_CHAINS_AT_ONCE = 4096
_LEAST_DRAWS = 100


class DistilledPrior(nn.Module):
    """A flow and the prior it was distilled from, told by that prior's energies of a few fixed latents.

    Args:
        latent_dim: Size of the latent.
        num_layers: Layers of the flow.
    """

    probed_energies: Tensor

    def __init__(self, latent_dim: int, num_layers: int) -> None:
        super().__init__()
        self.flow = LatentFlow(latent_dim, num_layers=num_layers)
        self.register_buffer("probed_energies", torch.zeros(_NUM_PROBES))

    def belongs_to(self, prior: TiltedGaussianPrior) -> bool:
        """Whether the prior is still the one that was distilled."""
        return torch.allclose(_probe(prior).to(self.probed_energies), self.probed_energies, rtol=1e-3, atol=1e-3)


def distil(
    prior: EnergyPrior,
    chain: Sampler,
    *,
    num_layers: int = 6,
    num_steps: int = 2000,
    num_draws: int = 16_384,
    seed: int = 0,
    progress: Callable[[range], Any] = iter,
) -> tuple[DistilledPrior, FlowQuality]:
    """Fits a flow to a prior and to draws of its own chain, see [`~latent_ebm_text.latents.flow.fit_flow`].

    Args:
        prior: The prior, which stays as it is.
        chain: The sampler whose draws, started from N(0, I), the flow is fitted to and judged by.
        num_layers: Layers of the flow.
        num_steps: Steps of its training.
        num_draws: Draws of the chain, half of which the flow is fitted to and half of which judge it.
        seed: Seed of the flow's first weights and of all draws.
        progress: Wraps the range of steps, to show progress.

    Raises:
        UsageError: If the latent is of one dimension, or there are fewer than 100 draws or no step.
        DivergenceError: If the loss is not finite.
    """
    if num_draws < _LEAST_DRAWS or num_steps < 1:
        raise UsageError(
            f"num_draws must be at least {_LEAST_DRAWS} and num_steps positive, got {num_draws} and {num_steps}"
        )
    like = next(prior.parameters())
    generator = derived_generator(seed, "distillation", device=like.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "flow"))
        distilled = DistilledPrior(prior.latent_dim, num_layers).to(like)
    sizes = [min(_CHAINS_AT_ONCE, num_draws - first) for first in range(0, num_draws, _CHAINS_AT_ONCE)]
    starts = (prior.sample_reference(size, generator, like=like) for size in sizes)
    draws = torch.cat([chain.sample(start, prior, generator=generator).latents for start in starts])
    known, unseen = draws.tensor_split([num_draws // 2])
    target = copy.deepcopy(prior).requires_grad_(False)
    fit_flow(distilled.flow, target, known, num_steps=num_steps, generator=generator, progress=progress)
    distilled.probed_energies.copy_(_probe(prior))
    quality = flow_quality(distilled.flow, prior, unseen, generator=generator)
    return distilled.requires_grad_(False).eval(), quality


@torch.no_grad()
def _probe(prior: TiltedGaussianPrior) -> Tensor:
    like = next(prior.parameters())
    return prior.energy(torch.linspace(-1, 1, _NUM_PROBES * prior.latent_dim).view(_NUM_PROBES, -1).to(like))
