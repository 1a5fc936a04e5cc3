"""Images from a latent with an energy-based prior, as a Hugging Face model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from latent_ebm_text.configuration import LatentEBMImageConfig
from latent_ebm_text.decoders.conv import ConvDecoder
from latent_ebm_text.encoders.conv import ConvEncoder
from latent_ebm_text.errors import UsageError
from latent_ebm_text.image_processing import convert_images
from latent_ebm_text.modeling_base import LatentEBMPreTrainedModel
from latent_ebm_text.samplers import Sampler

#: Images that are decoded at a time.
GENERATION_BATCH_SIZE = 256


@dataclass
class LatentEBMImageOutput(ModelOutput):
    """Output of [`LatentEBMForImageGeneration`].

    Args:
        loss: Scalar: `reconstruction_loss + prior_loss + penalty`, in nats per image.
        reconstruction_loss: Scalar, `-log p(x | z+)`.
        prior_loss: Scalar, `E(z+) - E(z-)`, the posterior-prior energy gap; `KL(q || N(0, I))` of a VAE.
        penalty: Scalar, the weighted squared tilt.
        latents: `(batch, latent_dim)`, the latents that were used.
    """

    loss: Tensor | None = None
    reconstruction_loss: Tensor | None = None
    prior_loss: Tensor | None = None
    penalty: Tensor | None = None
    latents: Tensor | None = None


@dataclass
class ImageScores:
    """How probable images are together with a posterior draw of their latent, each `(batch,)` in nats.

    Attributes:
        log_joint: `log p(x, z) = log p(z) + log p(x | z)` up to the constant `log Z`: the score of the paper's anomaly
            detection. An anomaly has a low one.
        log_likelihood: `log p(x | z)`.
        reconstruction: Squared error per value, of pixels in [-1, 1]: the paper's MSE.
        prior_energy: `E(z)`.
        latents: `(batch, latent_dim)`, the draws.
    """

    log_joint: Tensor
    log_likelihood: Tensor
    reconstruction: Tensor
    prior_energy: Tensor
    latents: Tensor


class LatentEBMForImageGeneration(LatentEBMPreTrainedModel):
    """A convolutional decoder p(x | z) under an energy-based prior p(z).

    ```python
    >>> from latent_ebm_text import LatentEBMForImageGeneration, LatentEBMImageConfig

    >>> config = LatentEBMImageConfig(image_size=8, num_channels=1, decoder_channels=[16, 8], latent_dim=4)
    >>> LatentEBMForImageGeneration(config).generate(num_samples=2).shape
    torch.Size([2, 1, 8, 8])

    ```
    """

    config_class = LatentEBMImageConfig
    main_input_name = "pixel_values"
    decoder: ConvDecoder

    def __init__(self, config: LatentEBMImageConfig) -> None:
        super().__init__(config)
        sizes = {"image_size": config.image_size, "num_channels": config.num_channels}
        self.prior = self._build_prior()
        self.decoder = ConvDecoder(
            config.latent_dim,
            config.decoder_channels or [],
            first_size=config.decoder_first_size,
            pixel_std=config.pixel_std,
            **sizes,
        )
        self.encoder = None
        if config.encoder_hidden_size is not None:
            self.encoder = ConvEncoder(config.latent_dim, hidden_size=config.encoder_hidden_size, **sizes)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            init.xavier_normal_(module.weight)
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    def forward(
        self,
        pixel_values: Tensor,
        latents: Tensor | None = None,
        prior_latents: Tensor | None = None,
        likelihood_weight: float | None = None,
        generator: torch.Generator | None = None,
        return_dict: bool | None = None,
    ) -> LatentEBMImageOutput | tuple[Any, ...]:
        """The learning objective.

        Args:
            pixel_values: `(batch, num_channels, image_size, image_size)` in [-1, 1].
            latents: `(batch, latent_dim)`, posterior draws `z+`; drawn if not given, by the encoder with a gradient
                where the model has one.
            prior_latents: `(samples, latent_dim)`, prior draws `z-`; drawn if not given.
            likelihood_weight: Another `w` than the model's own, for the draws that are made here.
            generator: Source of the noise of these draws.
            return_dict: False for a tuple.
        """
        inputs = self._inputs(pixel_values)
        loss = self.learning_objective(inputs, latents, prior_latents, likelihood_weight, generator)
        output = LatentEBMImageOutput(**vars(loss))
        return output if return_dict is not False else output.to_tuple()

    @torch.no_grad()
    def generate(
        self,
        *,
        num_samples: int | None = None,
        latents: Tensor | None = None,
        sampler: Sampler | None = None,
        generator: torch.Generator | None = None,
        output_type: str = "pt",
    ) -> Any:
        """Draws latents from the prior and decodes them to mean images `g(z)`, as the paper shows and measures them.

        Args:
            num_samples: How many images; 1 by default.
            latents: `(batch, latent_dim)` to decode, in place of draws from the prior.
            sampler: Another sampler than the model's own.
            generator: Source of the prior chain's noise.
            output_type: `"pt"`, `"np"` or `"pil"`, see
                [`~latent_ebm_text.image_processing.LatentEBMImageProcessor.post_process`].

        Returns:
            Images `(batch, num_channels, image_size, image_size)` in [-1, 1], or what `output_type` says.

        Raises:
            UsageError: If the numbers of samples and latents contradict each other, or latents are not finite or of
                the wrong shape.
        """
        if latents is None:
            latents = self.sample_prior(
                1 if num_samples is None else num_samples, sampler=sampler, generator=generator
            ).latents
        elif num_samples is not None and num_samples != len(latents):
            raise UsageError(
                f"generate() was given contradicting numbers of images: num_samples={num_samples} and "
                f"{len(latents)} latents"
            )
        latents = self.check_latents(latents)
        images = torch.cat([self.decoder.decode(part) for part in latents.split(GENERATION_BATCH_SIZE)])
        return convert_images(images.float(), output_type)

    def encode(
        self,
        pixel_values: Tensor,
        *,
        initial_latents: Tensor | None = None,
        sampler: Sampler | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """One posterior draw of the latent per image.

        Args:
            pixel_values: `(batch, num_channels, image_size, image_size)` in [-1, 1].
            initial_latents: Where the chains start; by default a draw from the encoder where the model has one, else
                from N(0, I).
            sampler: Another sampler than the model's own.
            generator: Source of the noise.

        Returns:
            Latents of shape `(batch, latent_dim)`.
        """
        inputs = self._inputs(pixel_values)
        return self.sample_posterior(
            inputs, initial_latents=initial_latents, sampler=sampler, generator=generator
        ).latents

    def log_prob(self, pixel_values: Tensor, *, latents: Tensor) -> Tensor:
        """`log p(x | z)` in nats per image, a density of pixels in [-1, 1]; `(batch,)`."""
        return self.decoder.log_prob(self._inputs(pixel_values), self.check_latents(latents, len(pixel_values)))

    @torch.no_grad()
    def score(
        self,
        pixel_values: Tensor,
        *,
        latents: Tensor | None = None,
        sampler: Sampler | None = None,
        generator: torch.Generator | None = None,
    ) -> ImageScores:
        """How probable images are, together with a latent each.

        Args:
            pixel_values: `(batch, num_channels, image_size, image_size)` in [-1, 1].
            latents: `(batch, latent_dim)`; posterior draws by default.
            sampler: Another sampler of these draws than the model's own.
            generator: Source of their noise.
        """
        if latents is None:
            latents = self.encode(pixel_values, sampler=sampler, generator=generator)
        inputs, latents = self._inputs(pixel_values), self.check_latents(latents, len(pixel_values))
        mean = self.decoder.decode(latents)
        log_likelihood = self.decoder.log_density(inputs["pixel_values"], mean)
        log_prior = self.prior.log_prob(latents)
        return ImageScores(
            log_joint=log_prior + log_likelihood,
            log_likelihood=log_likelihood,
            reconstruction=(inputs["pixel_values"] - mean).square().flatten(1).mean(dim=1),
            prior_energy=self.prior.energy(latents),
            latents=latents,
        )

    def reconstruct(
        self, pixel_values: Tensor, *, generator: torch.Generator | None = None, output_type: str = "pt"
    ) -> Any:
        """Encodes images and decodes the latents again."""
        return self.generate(latents=self.encode(pixel_values, generator=generator), output_type=output_type)

    def interpolate(self, start: Tensor, end: Tensor, num_points: int = 8, *, output_type: str = "pt") -> Any:
        """Decodes points on the straight line between two latents, both ends included.

        Args:
            start: `(latent_dim,)` or `(1, latent_dim)`.
            end: The same.
            num_points: Number of images, at least 2.
            output_type: As of `generate`.
        """
        if num_points < 2:
            raise UsageError(f"num_points must be at least 2, got {num_points}")
        start, end = (self.check_latents(z.reshape(1, -1), 1) for z in (start, end))
        weights = torch.linspace(0, 1, num_points, device=start.device, dtype=start.dtype)[:, None]
        return self.generate(latents=torch.lerp(start, end, weights), output_type=output_type)

    def _inputs(self, pixel_values: Tensor) -> dict[str, Tensor]:
        config = self.config
        expected = (config.num_channels, config.image_size, config.image_size)
        if not isinstance(pixel_values, Tensor) or not pixel_values.is_floating_point() or len(pixel_values) == 0:
            raise UsageError(
                "pixel_values are a tensor of numbers in [-1, 1], one image or more: let the model's image processor "
                "prepare the images"
            )
        if pixel_values.dim() != 4 or tuple(pixel_values.shape[1:]) != expected:
            raise UsageError(
                f"pixel_values must have shape (batch, {', '.join(map(str, expected))}), that is channels, height and "
                f"width of this model's images, got {tuple(pixel_values.shape)}"
            )
        low, high = (float(value) for value in pixel_values.aminmax())
        if not (low >= -1.001 and high <= 1.001):
            raise UsageError(
                f"pixel_values lie in [{low:g}, {high:g}], but this model knows [-1, 1]: let its image processor "
                "prepare the images"
            )
        return {"pixel_values": pixel_values.to(self.device, self.dtype)}


AutoModel.register(LatentEBMImageConfig, LatentEBMForImageGeneration, exist_ok=True)
