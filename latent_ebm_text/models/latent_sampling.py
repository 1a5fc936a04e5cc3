"""What a model of any modality draws: latents of its prior, of its posteriors, with attributes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents import Control, ControlledDensity
from latent_ebm_text.latents.distillation import DistilledPrior, distil
from latent_ebm_text.latents.fitting import fit_gaussian
from latent_ebm_text.latents.flow import FlowQuality
from latent_ebm_text.latents.posterior import LatentPosterior
from latent_ebm_text.latents.prior import EnergyPrior, GaussianPrior
from latent_ebm_text.latents.samplers import Sampler, SamplerOutput, sampler_from_dict
from latent_ebm_text.models.configuration import LatentEBMConfig
from latent_ebm_text.models.safe_loading import SafetensorsModel
from latent_ebm_text.networks.base import GaussianPosterior, LatentDecoder, LatentEncoder, is_exporting

logger = logging.get_logger(__name__)


class LatentSamplingModel(SafetensorsModel):
    """Prior, decoder and encoder of a latent energy-based model of any modality, and the samplers that draw from them.

    Methods with arguments `*data, **named_data` take data as users have them, and every model says what that is: see
    [`~latent_ebm_text.models.sentences.SentenceModel`] for text; for images it is `pixel_values`. Methods with an
    argument `inputs` take a batch as the decoder does, a dictionary of tensors on the model's device.

    Every random draw comes from the argument `generator`, a `torch.Generator` on the model's device; `None` is torch's
    global random number generator.

    Attributes:
        prior: The [`EnergyPrior`], or a [`GaussianPrior`] where the configuration says so.
        prior_flow: What `distil_prior` has made of it, or `None`.
        decoder: The [`~latent_ebm_text.networks.base.LatentDecoder`].
        encoder: The [`~latent_ebm_text.networks.base.LatentEncoder`] whose draws posterior chains start from, or
            `None` where chains start from N(0, I). Under a Gaussian prior (a VAE) its draws replace the chains.
    """

    config_class = LatentEBMConfig
    prior: EnergyPrior | GaussianPrior
    prior_flow: DistilledPrior | None
    decoder: LatentDecoder
    encoder: LatentEncoder | None

    def _build_prior(self) -> EnergyPrior | GaussianPrior:
        config = self.config
        if config.prior_type == "gaussian":
            return GaussianPrior(config.latent_dim)
        return EnergyPrior(
            config.latent_dim,
            config.prior_hidden_size,
            config.prior_num_hidden_layers,
            config.prior_activation,
            config.num_latent_vectors,
        )

    def _build_prior_flow(self) -> DistilledPrior | None:
        layers = self.config.prior_flow_num_layers
        return DistilledPrior(self.config.latent_dim, layers).requires_grad_(False) if layers else None

    @property
    def prior_sampler(self) -> Sampler:
        """The sampler that the model's prior was trained with."""
        return sampler_from_dict(self.config.prior_sampler)

    @property
    def posterior_sampler(self) -> Sampler:
        """The sampler that infers the latent of data not seen before."""
        return sampler_from_dict(self.config.posterior_sampler)

    def posterior(self, inputs: dict[str, Tensor], likelihood_weight: float | None = None) -> LatentPosterior:
        """The posterior of a batch as a log-density in z, for any sampler.

        Args:
            inputs: The decoder's inputs.
            likelihood_weight: `w` of `p(z) p(x | z)^w`, in place of the model's own.
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
        """Draws latents from the energy-based prior: by its own chain, or in one pass if it has been distilled.

        A distilled prior is used where neither a start nor a sampler nor a trace is asked for, and not in training.

        Args:
            num_samples: Number of latents.
            initial_latents: Where the chains start, `(num_samples, latent_dim)`; draws from N(0, I) by default.
            sampler: A sampler in place of the model's own.
            generator: Random number generator of the noise.
            return_trace: Whether to keep the energies of every step.

        Returns:
            [`~latent_ebm_text.latents.samplers.SamplerOutput`] with latents of shape `(num_samples, latent_dim)`.

        Raises:
            UsageError: If `num_samples` is not positive, or initial latents do not fit.
        """
        if num_samples < 1:
            raise UsageError(f"num_samples must be a positive integer, got {num_samples}")
        if initial_latents is None:
            if not (self.prior_flow is None or sampler is not None or return_trace or self.training):
                if self.prior_flow.belongs_to(self.prior):
                    with self._full_precision():
                        return self.prior_flow.flow.sample(num_samples, self.prior, generator=generator)
                logger.warning_once("the prior has changed since it was distilled and is drawn from by its chain")
            initial_latents = self.sample_reference(num_samples, generator)
            if sampler is None and isinstance(self.prior, GaussianPrior):
                return SamplerOutput(initial_latents)  # exact draws need no chain
        else:
            initial_latents = self.check_latents(initial_latents, num_samples)
        sampler = self.prior_sampler if sampler is None else sampler
        with self._full_precision():
            return sampler.sample(initial_latents, self.prior, generator=generator, return_trace=return_trace)

    def distil_prior(self, **settings: Any) -> FlowQuality:
        """Distils the prior into a normalising flow, from which `sample_prior` and `generate` draw from then on.

        Each of its draws is corrected once by the energy. The flow is saved with the model. A prior that learns on
        after it is drawn from by its chain again.

        Args:
            **settings: Settings of [`~latent_ebm_text.latents.distillation.distil`].

        Returns:
            [`~latent_ebm_text.latents.flow.FlowQuality`]: an effective share well below a half means that the flow
            does not have the shape of the prior; take more layers or steps.

        Raises:
            UsageError: If the prior is Gaussian, and as `distil`.
            DivergenceError: If the loss is not finite.
        """
        if not isinstance(self.prior, EnergyPrior):
            raise UsageError("a Gaussian prior is drawn from exactly: there is nothing to distil")
        self.prior_flow, quality = distil(self.prior, self.prior_sampler, **settings)
        self.config.prior_flow_num_layers = len(self.prior_flow.flow.layers)
        return quality

    def sample_controlled(
        self,
        controls: Sequence[Control],
        num_samples: int,
        *,
        initial_latents: Tensor | None = None,
        sampler: Sampler | None = None,
        generator: torch.Generator | None = None,
        return_trace: bool = False,
    ) -> SamplerOutput:
        """Draws latents with desired attributes, from the prior times classifiers: `p(z) * product of p(c | z)^w`.

        Args:
            controls: The desired attributes, see [`~latent_ebm_text.latents.Control`].
            num_samples: Number of latents.
            initial_latents: Where the chains start; by default at draws from the prior.
            sampler: A sampler in place of the prior's own.
            generator: Random number generator of the noise.
            return_trace: Whether to keep the energies of every step.

        Returns:
            [`~latent_ebm_text.latents.samplers.SamplerOutput`] with latents of shape `(num_samples, latent_dim)`.

        Raises:
            UsageError: If there is no control, or a classifier does not fit the model's latents.
        """
        fitting = [control.to(self.device, self.decoder.latent_dtype) for control in controls]
        density = ControlledDensity(self.prior, fitting)
        if initial_latents is None:
            initial_latents = self.sample_prior(num_samples, generator=generator).latents
        initial_latents = self.check_latents(initial_latents, num_samples)
        sampler = self.prior_sampler if sampler is None else sampler
        with self._full_precision():
            return sampler.sample(initial_latents, density, generator=generator, return_trace=return_trace)

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
        """Draws one latent per example of a batch from the posterior; arguments as in `posterior` and `sample_prior`.

        If the model has an encoder, the chains start from its draws; with `config.num_fit_steps`, from draws of what
        `fit_posterior` has found. Under a Gaussian prior (a VAE) such draws are the result, unless a sampler is
        given.
        """
        batch = len(next(iter(inputs.values())))
        if self.config.latent_dim == 0:
            return SamplerOutput(self.sample_reference(batch, generator))  # nothing to infer
        if initial_latents is not None:
            initial_latents = self.check_latents(initial_latents, batch)
        elif self.encoder is not None or self.config.num_fit_steps > 0:
            proposal = self.fit_posterior(inputs, likelihood_weight=likelihood_weight, generator=generator)
            initial_latents = proposal.sample(generator).to(self.decoder.latent_dtype)
            if sampler is None and isinstance(self.prior, GaussianPrior):
                return SamplerOutput(initial_latents)
        else:
            initial_latents = self.sample_reference(batch, generator)
        sampler = self.posterior_sampler if sampler is None else sampler
        with self._full_precision():
            posterior = self.posterior(inputs, likelihood_weight)
            return sampler.sample(initial_latents, posterior, generator=generator, return_trace=return_trace)

    @torch.no_grad()
    def fit_posterior(
        self,
        inputs: dict[str, Tensor],
        *,
        num_steps: int | None = None,
        initial: GaussianPosterior | None = None,
        likelihood_weight: float | None = None,
        generator: torch.Generator | None = None,
    ) -> GaussianPosterior:
        """Fits a diagonal Gaussian to the posterior of every example of a batch; the model's weights do not change.

        This is stochastic variational inference, see [`~latent_ebm_text.latents.fitting.fit_gaussian`].

        Args:
            inputs: The decoder's inputs.
            num_steps: Steps of the fit, by default `config.num_fit_steps`. With 0 the Gaussian is the initial one.
            initial: Where the fit starts; by default at the encoder's proposal, or at N(0, I) without an encoder.
            likelihood_weight: `w` of the posterior `p(z) p(x | z)^w`, in place of the model's own.
            generator: Random number generator of the draws.

        Returns:
            Mean and log standard deviation, each `(batch, latent_dim)`.

        Raises:
            UsageError: If the number of steps is negative.
            DivergenceError: If a mean or standard deviation is not finite.
        """
        num_steps = self.config.num_fit_steps if num_steps is None else num_steps
        if initial is None and self.encoder is not None:
            initial = self.encoder.propose(inputs)
        elif initial is None:
            start = self.sample_reference(len(next(iter(inputs.values())))).zero_()
            initial = GaussianPosterior(start, start.clone())
        if num_steps == 0:
            return initial
        dtype = self.decoder.latent_dtype
        with self._full_precision():
            mean, log_std = fit_gaussian(
                self.posterior(inputs, likelihood_weight),
                initial.mean.to(dtype),
                initial.log_std.to(dtype),
                num_steps=num_steps,
                learning_rate=self.config.fit_learning_rate,
                generator=generator,
            )
        return GaussianPosterior(mean, log_std)

    def _full_precision(self) -> torch.autocast:
        """Chains and energies run in the precision of the weights: bfloat16 loses differences of energies."""
        return torch.autocast(self.device.type, enabled=False)

    def sample_reference(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws from N(0, I), `(num_samples, latent_dim)`, in the decoder's precision and on the model's device."""
        like = torch.empty(0, device=self.device, dtype=self.decoder.latent_dtype)
        return self.prior.sample_reference(num_samples, generator, like=like)

    def check_latents(self, latents: Tensor, batch: int | None = None) -> Tensor:
        """Moves latents to the model's device.

        In training mode values are not looked at, because the host would wait for a GPU; there a loss that is not
        finite tells as much.

        Args:
            latents: `(batch, latent_dim)`.
            batch: The number of latents that is needed; any number by default.

        Raises:
            UsageError: If the shape is wrong, or values are not finite or have no finite energy.
        """
        expected = self.config.latent_dim
        if not isinstance(latents, Tensor):
            raise UsageError(f"latents are a tensor (batch, {expected}), got {type(latents).__name__}")
        if latents.dim() != 2 or latents.shape[1] != expected or (batch is not None and latents.shape[0] != batch):
            wanted = f"({'batch' if batch is None else batch}, {expected})"
            raise UsageError(f"latents must have shape {wanted}, got {tuple(latents.shape)}")
        moved = latents.to(self.device, self.decoder.latent_dtype)
        if self.training or is_exporting():  # values are not known while a graph is recorded
            return moved
        if not bool(moved.float().square().sum(dim=-1).isfinite().all()):
            if not bool(latents.isfinite().all()):
                raise UsageError("latents contain values that are not finite (nan or inf)")
            raise UsageError(
                "latents contain values so large that their energy is infinite; those of a prior are a few units long"
            )
        return moved
