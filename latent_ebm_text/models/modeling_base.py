"""The model p(x, z) = p(z) p(x | z) of any modality: what it minimises, its first weights, its place on the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils import logging

from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents.prior import EnergyOfVectors, EnergyPrior, GaussianPrior
from latent_ebm_text.models.latent_sampling import LatentSamplingModel

logger = logging.get_logger(__name__)


@dataclass
class LatentEBMLoss:
    """The learning objective and its parts, each a scalar in nats per example, averaged over the batch.

    Attributes:
        loss: What is minimised: `reconstruction_loss + prior_loss + penalty`, and what trains an encoder where there
            is one, see `objective` and `variational_objective`.
        reconstruction_loss: `-log p(x | z+)`.
        prior_loss: `E(z+) - E(z-)`, the posterior-prior energy gap; its gradient trains the prior (paper, eq. 6). For
            a VAE it is the divergence `KL(q(z | x) || N(0, I))`.
        penalty: The weighted squared tilt.
        latents: `z+`, of shape `(batch, latent_dim)`.
    """

    loss: Tensor
    reconstruction_loss: Tensor
    prior_loss: Tensor
    penalty: Tensor
    latents: Tensor


class LatentEBMPreTrainedModel(LatentSamplingModel):
    """A latent energy-based model of any modality: everything that does not depend on what the data are."""

    # The loss is a mean over examples: transformers.Trainer must itself divide it by the steps that it accumulates.
    accepts_loss_kwargs = False

    def _init_weights(self, module: nn.Module) -> None:
        """Called by transformers for every layer that holds weights of its own."""
        if isinstance(module, EnergyOfVectors):
            init.normal_(module.embedding)
        if isinstance(module, nn.Linear):
            # The energy starts nearly flat, so that the first prior is nearly the reference Gaussian.
            is_energy = any(module is part.out for part in self.prior.modules() if isinstance(part, EnergyPrior))
            init.xavier_uniform_(module.weight, gain=0.1 if is_energy else 1.0)
            if module.bias is not None:
                init.zeros_(module.bias)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:
        """Uploads the model as transformers does, and adds a model card to a repository that has none.

        A card beside the files that the model was loaded from is used. Otherwise one is written from the
        configuration.

        Args:
            repo_id: `name` or `namespace/name`.
            **kwargs: Options of [`~transformers.PreTrainedModel.push_to_hub`].
        """
        from latent_ebm_text.hub.pushing import push_first_card

        push_first_card(self, repo_id, private=kwargs.get("private"), token=kwargs.get("token"))
        return super().push_to_hub(repo_id, **kwargs)

    # -------- learning

    def learning_objective(
        self,
        inputs: dict[str, Tensor],
        latents: Tensor | None = None,
        prior_latents: Tensor | None = None,
        likelihood_weight: float | None = None,
        generator: torch.Generator | None = None,
    ) -> LatentEBMLoss:
        """What `forward` minimises: `objective` at posterior draws, or `variational_objective` if an encoder draws.

        Args:
            inputs: The decoder's inputs.
            latents: `(batch, latent_dim)`, posterior draws `z+`. If they are not given, they are drawn: by the
                encoder, with a gradient, if the model has one.
            prior_latents: `(samples, latent_dim)`, prior draws `z-`; drawn if not given.
            likelihood_weight: `w` in place of the model's own, for the draws that are made here.
            generator: Random number generator of these draws.

        Raises:
            UsageError: If latents do not fit, or peft has adapted layers whose weights the chains read.
        """
        self._check_learning_weights()
        batch = len(next(iter(inputs.values())))
        is_variational = self.encoder is not None and latents is None
        if latents is None and not is_variational:
            latents = self.sample_posterior(inputs, likelihood_weight=likelihood_weight, generator=generator).latents
        if is_variational and isinstance(self.prior, GaussianPrior):
            prior_latents = self.sample_reference(0)  # a VAE's loss needs none
        elif prior_latents is None:
            prior_latents = self.sample_prior(batch, generator=generator).latents
        prior_latents = self.check_latents(prior_latents)
        if latents is None:
            weight = self.config.likelihood_weight if likelihood_weight is None else likelihood_weight
            return self.variational_objective(inputs, weight, prior_latents)
        return self.objective(inputs, self.check_latents(latents, batch), prior_latents)

    def pretrained_weights(self) -> list[nn.Parameter]:
        """The weights that were trained before, by others; adapters beside them are new."""
        return []

    def _check_learning_weights(self) -> None:
        """Refuses adapters that chains would not see, and says so where the prior does not learn at all."""
        if not self.training:
            return
        for name, module in self.named_modules():
            # Scores in z of the prior and of other decoders are computed from the weights of a layer, without a call.
            if hasattr(module, "base_layer") and not name.startswith(("decoder.lm.", "encoder.")):
                raise UsageError(
                    f"the adapter of {name} would change the loss but not the chains: peft can adapt layers of "
                    "decoder.lm, the language model of a transformer decoder, so give target_modules that lie there"
                )
        weights = list(self.prior.parameters())
        if weights and not any(weight.requires_grad for weight in weights):
            logger.warning_once(
                "the prior does not learn, since none of its weights requires a gradient. peft freezes it: give "
                "modules_to_save=['prior', 'injection'], or set decoder_training to 'lora' in place of peft"
            )

    def objective(self, inputs: dict[str, Tensor], latents: Tensor, prior_latents: Tensor) -> LatentEBMLoss:
        """The loss whose gradient is the paper's learning gradient of both parts (section 2.3, eq. 6-7).

        An encoder, if there is one, learns to propose what the chains have found, by `-log q(z+ | x)`.

        Args:
            inputs: The decoder's inputs.
            latents: `(batch, latent_dim)` posterior draws `z+`; no gradient flows into them.
            prior_latents: `(samples, latent_dim)` prior draws `z-`.
        """
        latents = latents.detach()
        reconstruction = -self.decoder.mean_log_prob(inputs, latents)
        gap, penalty = self._prior_objective(latents, prior_latents)
        loss = reconstruction + gap + penalty
        if self.encoder is not None:
            loss = loss - self.encoder(inputs).log_prob(latents).mean()
        return LatentEBMLoss(loss, reconstruction, gap, penalty, latents)

    def _prior_objective(self, latents: Tensor, prior_latents: Tensor) -> tuple[Tensor, Tensor]:
        """`E(z+) - E(z-)` and the penalty; no gradient flows into the latents."""
        latents, prior_latents = latents.detach(), prior_latents.detach()
        with self._full_precision():
            tilts = self.prior.tilt(torch.cat([latents, prior_latents])).split([len(latents), len(prior_latents)])
        posterior_energy, prior_energy = (
            0.5 * z.square().sum(dim=-1).mean() - tilt.mean()
            for z, tilt in zip((latents, prior_latents), tilts, strict=True)
        )
        penalty = self.config.energy_penalty * sum(tilt.square().mean() for tilt in tilts)
        return posterior_energy - prior_energy, penalty

    def variational_objective(
        self, inputs: dict[str, Tensor], likelihood_weight: float | Tensor, prior_latents: Tensor
    ) -> LatentEBMLoss:
        """The loss of a model with an encoder q(z | x) in place of posterior chains: a negative evidence lower bound.

        It is `-log p(x | z) + KL(q(z | x) || p(z)) / w` with z drawn from the encoder, up to `log Z`. A likelihood
        weight that falls to 1 is the annealing of the divergence of Bowman et al. (2016). `config.free_bits` nats per
        dimension of the divergence from N(0, I) cost nothing. `config.moment_weight` holds the posterior's first two
        moments at those of N(0, I), so that the energy has their shape to learn and not a scale that drifts. The prior
        learns as in `objective`. The noise comes from
        torch's global random number generator, as the noise of dropout does.

        Args:
            inputs: The decoder's inputs.
            likelihood_weight: `w`, a number or a scalar on the device.
            prior_latents: `(samples, latent_dim)` prior draws; may be empty if the prior is Gaussian.
        """
        assert self.encoder is not None
        proposal = self.encoder(inputs)
        latents = proposal.sample().to(self.decoder.latent_dtype)
        reconstruction = -self.decoder.mean_log_prob(inputs, latents)
        divergence = proposal.divergence().mean(dim=0)  # (latent_dim,), from N(0, I)
        charged = divergence.clamp(min=self.config.free_bits).sum()
        auxiliary = self._auxiliary_loss(inputs, latents)
        if isinstance(self.prior, GaussianPrior):
            loss = reconstruction + charged / likelihood_weight + auxiliary
            return LatentEBMLoss(loss, reconstruction, divergence.sum(), torch.zeros_like(loss), latents.detach())
        gap, penalty = self._prior_objective(latents, prior_latents)
        rate = charged - self._frozen_tilt(latents).mean()
        moments = self.config.moment_weight * moment_divergence(latents)
        loss = reconstruction + rate / likelihood_weight + gap + penalty + auxiliary + moments
        return LatentEBMLoss(loss, reconstruction, gap, penalty, latents.detach())

    def _auxiliary_loss(self, inputs: dict[str, Tensor], latents: Tensor) -> Tensor:
        """A further loss that teaches an encoder what to tell, differentiable in its draws; a scalar in nats."""
        return latents.new_zeros(())

    def _frozen_tilt(self, latents: Tensor) -> Tensor:
        """`f(z)`, differentiable only in z: the encoder's loss must not train the prior a second time."""
        weights = {name: weight.detach() for name, weight in self.prior.named_parameters()}
        with self._full_precision():
            log_density: Tensor = torch.func.functional_call(self.prior, weights, (latents,))
        return log_density + 0.5 * latents.square().sum(dim=-1)


def moment_divergence(latents: Tensor) -> Tensor:
    """`KL(N(m, v) || N(0, I))` in nats for the mean and the variance of every dimension over a batch, summed.

    Args:
        latents: `(batch, latent_dim)`; of fewer than two rows there is no variance, and the result is 0.
    """
    if len(latents) < 2:
        return latents.new_zeros(())
    mean, variance = latents.mean(dim=0), latents.var(dim=0)
    return 0.5 * (mean.square() + variance - 1.0 - variance.log()).sum()
