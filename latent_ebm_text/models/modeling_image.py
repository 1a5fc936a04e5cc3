"""Images from a latent with an energy-based prior, as a Hugging Face model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from latent_ebm_text.data.image_processing import convert_images
from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents.samplers import Sampler
from latent_ebm_text.models.attributes import STRENGTH, AttributeModel
from latent_ebm_text.models.configuration import LatentEBMImageConfig
from latent_ebm_text.models.scoring import AnomalyScores, Marginal, score_data
from latent_ebm_text.networks.conv import ConvDecoder, ConvEncoder

#: Latents that are decoded at a time.
GENERATION_BATCH_SIZE = 256


@dataclass
class LatentEBMImageOutput(ModelOutput):
    """Output of [`LatentEBMForImageGeneration`].

    Args:
        loss: Scalar: `reconstruction_loss + prior_loss + penalty`, and what trains an encoder where there is one, in
            nats per image.
        reconstruction_loss: Scalar, `-log p(x | z+)`.
        prior_loss: Scalar, `E(z+) - E(z-)`, the posterior-prior energy gap; `KL(q || N(0, I))` for a VAE.
        penalty: Scalar, the weighted squared tilt.
        latents: `(batch, latent_dim)`, the latents that were used.
    """

    loss: Tensor | None = None
    reconstruction_loss: Tensor | None = None
    prior_loss: Tensor | None = None
    penalty: Tensor | None = None
    latents: Tensor | None = None


class LatentEBMForImageGeneration(AttributeModel):
    """A convolutional decoder p(x | z) under an energy-based prior p(z).

    Every method that takes images takes `pixel_values`, a tensor `(batch, num_channels, image_size, image_size)` in
    [-1, 1], as the model's image processor makes it.

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
        self.prior_flow = self._build_prior_flow()
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
        return_loss: bool = True,
    ) -> LatentEBMImageOutput | tuple[Any, ...]:
        """The learning objective.

        Args:
            pixel_values: The images.
            latents: `(batch, latent_dim)`, posterior draws `z+`. If they are not given, they are drawn: by the
                encoder, with a gradient, if the model has one.
            prior_latents: `(samples, latent_dim)`, prior draws `z-`; drawn if not given.
            likelihood_weight: `w` in place of the model's own, for the draws that are made here.
            generator: Random number generator of these draws.
            return_dict: Whether to return a [`LatentEBMImageOutput`] or a tuple; by default `config.return_dict`.
            return_loss: Always true. `transformers.Trainer` evaluates the loss of a model without labels only if
                `forward` has an argument of this name.

        Raises:
            UsageError: If images or latents do not fit, or `return_loss` is false.
        """
        if not return_loss:
            raise UsageError("the loss is all that forward() computes of images: leave return_loss at True")
        inputs = {"pixel_values": self._read(pixel_values)}
        loss = self.learning_objective(inputs, latents, prior_latents, likelihood_weight, generator)
        output = LatentEBMImageOutput(**vars(loss))
        is_dict = self.config.return_dict if return_dict is None else return_dict
        return output if is_dict else output.to_tuple()

    @torch.no_grad()
    def generate(
        self,
        *,
        num_samples: int | None = None,
        latents: Tensor | None = None,
        attributes: Mapping[str, str | float] | None = None,
        strength: float | Mapping[str, float] = STRENGTH,
        sampler: Sampler | None = None,
        generator: torch.Generator | None = None,
        output_type: str = "pt",
    ) -> Any:
        """Draws latents from the prior and decodes them to mean images `g(z)`, as the paper shows and measures them.

        Args:
            num_samples: Number of images; 1 by default.
            latents: `(batch, latent_dim)` to decode, in place of draws from the prior.
            attributes: What is wanted of each attribute, such as `{"digit": "3"}`, after
                [`~latent_ebm_text.models.attributes.AttributeModel.fit_attributes`].
            strength: Exponent of what the model reads from the latents, one for all attributes or one per attribute.
            sampler: A sampler in place of the model's own.
            generator: Random number generator of the prior's chains.
            output_type: `"pt"`, `"np"` or `"pil"`, see
                [`~latent_ebm_text.data.image_processing.LatentEBMImageProcessor.post_process`].

        Returns:
            Images `(batch, num_channels, image_size, image_size)` in [-1, 1], or what `output_type` says.

        Raises:
            UsageError: If the numbers of samples and latents contradict each other, latents are not finite or of the
                wrong shape, or an attribute is not known.
        """
        if attributes is not None and latents is not None:
            raise UsageError("generate() draws latents with these attributes: leave out latents, or attributes")
        size, options = 1 if num_samples is None else num_samples, dict[str, Any](sampler=sampler, generator=generator)
        if attributes is not None:
            latents = self.sample_controlled(self.controls(attributes, strength), size, **options).latents
        elif latents is None:
            latents = self.sample_prior(size, **options).latents
        elif num_samples is not None and num_samples != len(latents):
            raise UsageError(
                f"generate() was given contradicting numbers of images: num_samples={num_samples} and "
                f"{len(latents)} latents"
            )
        latents = self.check_latents(latents)
        images = torch.cat([self.decoder.decode(part) for part in latents.split(GENERATION_BATCH_SIZE)])
        return convert_images(images.float(), output_type)

    @torch.no_grad()
    def score(self, pixel_values: Tensor, *, marginal: Marginal = "none", **options: Any) -> AnomalyScores:
        """How anomalous images are, see [`~latent_ebm_text.models.scoring.AnomalyScores`].

        Log-densities are of pixels in [-1, 1], with all constants.

        Args:
            pixel_values: The images.
            marginal: How `-log p(x)` is estimated. It is left out by default, since it takes hundreds of passes of the
                decoder.
            **options: Options of [`~latent_ebm_text.models.scoring.score_data`], the same for text and images:
                `latents`, `num_draws`, `num_samples`, `num_levels`, `log_partition`, `batch_size`, `sampler`,
                `generator` and `progress`.

        Raises:
            UsageError: If the images do not fit the model, or an option cannot be right.
        """
        scores = score_data(self, pixel_values, marginal=marginal, **options)
        return replace(scores, squared_error=self.decoder.squared_error(-scores.reconstruction))

    def reconstruct(
        self,
        pixel_values: Tensor,
        *,
        sampler: Sampler | None = None,
        generator: torch.Generator | None = None,
        output_type: str = "pt",
    ) -> Any:
        """Encodes images, each as one posterior draw, and decodes the latents.

        Args:
            pixel_values: The images.
            sampler: A sampler in place of the model's own.
            generator: Random number generator of the chains.
            output_type: The type of the result, see `generate`.
        """
        latents = self.encode(pixel_values, sampler=sampler, generator=generator)
        return self.generate(latents=latents, output_type=output_type)

    def _collate(self, data: Tensor, indices: Tensor) -> dict[str, Tensor]:
        return {"pixel_values": data[indices]}

    def _read(self, pixel_values: Tensor) -> Tensor:
        """The images on the model's device, checked."""
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
        return pixel_values.to(self.device, self.dtype)


AutoModel.register(LatentEBMImageConfig, LatentEBMForImageGeneration, exist_ok=True)
