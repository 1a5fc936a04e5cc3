"""Distils a model's prior into a flow, from which `sample_prior` then draws in place of a chain."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents.flow import FlowQuality, LatentFlow, fit_flow, flow_quality
from latent_ebm_text.latents.prior import EnergyPrior, TiltedGaussianPrior
from latent_ebm_text.latents.rng import derived_generator, derived_seed

if TYPE_CHECKING:
    from latent_ebm_text.models.modeling_base import LatentEBMPreTrainedModel

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
    model: LatentEBMPreTrainedModel,
    *,
    num_layers: int,
    num_steps: int,
    num_draws: int,
    seed: int,
    progress: Callable[[range], Any],
) -> FlowQuality:
    """See [`~latent_ebm_text.models.modeling_base.LatentEBMPreTrainedModel.distil_prior`]."""
    if not isinstance(model.prior, EnergyPrior):
        raise UsageError("a Gaussian prior is drawn from exactly: there is nothing to distil")
    if num_draws < _LEAST_DRAWS or num_steps < 1:
        raise UsageError(
            f"num_draws must be at least {_LEAST_DRAWS} and num_steps positive, got {num_draws} and {num_steps}"
        )
    generator = derived_generator(seed, "distillation", device=model.device)
    sizes = [min(_CHAINS_AT_ONCE, num_draws - first) for first in range(0, num_draws, _CHAINS_AT_ONCE)]
    chain = model.prior_sampler
    draws = torch.cat([model.sample_prior(size, sampler=chain, generator=generator).latents for size in sizes])
    known, unseen = draws.tensor_split([num_draws // 2])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "flow"))
        distilled = DistilledPrior(model.config.latent_dim, num_layers).to(draws)
    learns = [weight.requires_grad for weight in model.prior.parameters()]
    model.prior.requires_grad_(False)
    try:
        fit_flow(distilled.flow, model.prior, known, num_steps=num_steps, generator=generator, progress=progress)
    finally:
        for weight, required in zip(model.prior.parameters(), learns, strict=True):
            weight.requires_grad_(required)
    distilled.probed_energies.copy_(_probe(model.prior))
    model.prior_flow = distilled.requires_grad_(False).eval()
    model.config.prior_flow_num_layers = num_layers
    return flow_quality(distilled.flow, model.prior, unseen, generator=generator)


@torch.no_grad()
def _probe(prior: TiltedGaussianPrior) -> Tensor:
    like = next(prior.parameters())
    return prior.energy(torch.linspace(-1, 1, _NUM_PROBES * prior.latent_dim).view(_NUM_PROBES, -1).to(like))
