"""The model p(x, z) = p(z) p(x | z) of any modality: prior, decoder, the two samplers, the learning objective."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init

from latent_ebm_text.configuration import LatentEBMConfig
from latent_ebm_text.decoders.base import LatentDecoder
from latent_ebm_text.errors import UsageError
from latent_ebm_text.posterior import LatentPosterior
from latent_ebm_text.prior import EnergyPrior
from latent_ebm_text.samplers import Sampler, SamplerOutput, sampler_from_dict


@dataclass
class LatentEBMLoss:
    """The learning objective and its parts, each a scalar in nats per example, averaged over the batch.

    Attributes:
        loss: What is minimised: `reconstruction + prior + penalty`.
        reconstruction: `-log p(x | z+)`.
        prior: `E(z+) - E(z-)`, the posterior-prior energy gap; its gradient trains the prior (paper, eq. 6).
        penalty: The weighted squared tilt.
        posterior_energy: `E(z+)`.
        prior_energy: `E(z-)`.
    """

    loss: Tensor
    reconstruction: Tensor
    prior: Tensor
    penalty: Tensor
    posterior_energy: Tensor
    prior_energy: Tensor


class LatentEBMPreTrainedModel(PreTrainedModel):
    """What every latent energy-based model has, whatever its decoder.

    Attributes:
        prior: The [`EnergyPrior`].
        decoder: The [`~latent_ebm_text.decoders.LatentDecoder`].
    """

    config_class = LatentEBMConfig
    prior: EnergyPrior
    decoder: LatentDecoder

    @property
    def prior_sampler(self) -> Sampler:
        """The sampler that the model's prior was trained with."""
        return sampler_from_dict(self.config.prior_sampler)

    @property
    def posterior_sampler(self) -> Sampler:
        """The sampler that infers the latent of data not seen before."""
        return sampler_from_dict(self.config.posterior_sampler)

    def _init_weights(self, module: nn.Module) -> None:
        """Called by transformers for every layer that holds weights of its own."""
        if isinstance(module, nn.Linear):
            # The energy starts nearly flat, so that the first prior is nearly the reference Gaussian.
            gain = 0.1 if module is self.prior.out else 1.0
            init.xavier_uniform_(module.weight, gain=gain)
            if module.bias is not None:
                init.zeros_(module.bias)

    def posterior(self, inputs: dict[str, Tensor], likelihood_weight: float | None = None) -> LatentPosterior:
        """The posterior of the latents of a batch, as a log-density in z for any sampler.

        Args:
            inputs: The data.
            likelihood_weight: Another `w` of `p(z) p(x|z)^w` than the model's own.
        """
        weight = self.config.likelihood_weight if likelihood_weight is None else likelihood_weight
        return LatentPosterior(self.prior, self.decoder.likelihood(inputs), weight)

    def sample_prior(
        self,
        num_samples: int,
        *,
        initial_latents: Tensor | None = None,
        sampler: Sampler | None = None,
        generator: torch.Generator | None = None,
        return_trace: bool = False,
    ) -> SamplerOutput:
        """Draws latents from the energy-based prior.

        Args:
            num_samples: How many.
            initial_latents: Where the chains start, `(num_samples, latent_dim)`; N(0, I) by default.
            sampler: Another sampler than the model's own.
            generator: Source of the noise, on the model's device.
            return_trace: Whether to keep the energies of every step.

        Returns:
            [`~latent_ebm_text.samplers.SamplerOutput`] with latents of shape `(num_samples, latent_dim)`.
        """
        if num_samples < 1:
            raise UsageError(f"num_samples must be a positive integer, got {num_samples}")
        if initial_latents is None:
            initial_latents = self.prior.sample_reference(num_samples, generator)
        initial_latents = self.check_latents(initial_latents, num_samples)
        sampler = self.prior_sampler if sampler is None else sampler
        return sampler.sample(initial_latents, self.prior, generator=generator, return_trace=return_trace)

    def sample_posterior(
        self,
        inputs: dict[str, Tensor],
        *,
        likelihood_weight: float | None = None,
        initial_latents: Tensor | None = None,
        sampler: Sampler | None = None,
        generator: torch.Generator | None = None,
        return_trace: bool = False,
    ) -> SamplerOutput:
        """Draws one latent per example from the posterior; arguments as in `posterior` and `sample_prior`."""
        batch = len(next(iter(inputs.values())))
        if initial_latents is None:
            initial_latents = self.prior.sample_reference(batch, generator)
        initial_latents = self.check_latents(initial_latents, batch)
        sampler = self.posterior_sampler if sampler is None else sampler
        posterior = self.posterior(inputs, likelihood_weight)
        return sampler.sample(initial_latents, posterior, generator=generator, return_trace=return_trace)

    def objective(self, inputs: dict[str, Tensor], latents: Tensor, prior_latents: Tensor) -> LatentEBMLoss:
        """The loss whose gradient is the paper's learning gradient of both parts (section 2.3, eq. 6-7).

        Args:
            inputs: The data.
            latents: `(batch, latent_dim)` posterior draws `z+`; no gradient flows into them.
            prior_latents: `(samples, latent_dim)` prior draws `z-`.
        """
        latents, prior_latents = latents.detach(), prior_latents.detach()
        reconstruction = -self.decoder.log_prob(inputs, latents).mean()
        tilts = self.prior.tilt(torch.cat([latents, prior_latents])).split([len(latents), len(prior_latents)])
        posterior_energy, prior_energy = (
            0.5 * z.square().sum(dim=-1).mean() - tilt.mean()
            for z, tilt in zip((latents, prior_latents), tilts, strict=True)
        )
        penalty = self.config.energy_penalty * sum(tilt.square().mean() for tilt in tilts)
        gap = posterior_energy - prior_energy
        return LatentEBMLoss(
            reconstruction + gap + penalty, reconstruction, gap, penalty, posterior_energy, prior_energy
        )

    def check_latents(self, latents: Tensor, batch: int | None = None) -> Tensor:
        """Latents on the model's device, or a `UsageError` that names the wrong shape or the values not finite."""
        expected = self.config.latent_dim
        if latents.dim() != 2 or latents.shape[1] != expected or (batch is not None and len(latents) != batch):
            wanted = f"({'batch' if batch is None else batch}, {expected})"
            raise UsageError(f"latents must have shape {wanted}, got {tuple(latents.shape)}")
        if not bool(torch.isfinite(latents).all()):
            raise UsageError("latents contain values that are not finite (nan or inf)")
        return latents.to(self.prior.out.weight)
