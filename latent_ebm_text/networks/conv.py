"""Convolutional networks for images: the decoder of the paper (section 4.1) with Gaussian noise, and an encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latent_ebm_text.errors import UsageError
from latent_ebm_text.networks.base import GaussianPosterior, LatentDecoder, LatentEncoder

LEAKY_RELU_SLOPE = 0.2
_leaky_relu_backward = torch.ops.aten.leaky_relu_backward


class ConvDecoder(LatentDecoder):
    r"""`p(x | z) = N(x; g(z), pixel_std^2 I)`, where `g` is a stack of transposed convolutions.

    The first layer turns z into `channels[0]` maps of `first_size` by `first_size` pixels, and every hidden layer
    doubles the size (kernel 4, stride 2), with leaky ReLUs in between. The last layer doubles the size once more if
    `image_size` requires it and else keeps it (kernel 3); a tanh bounds its output. The paper's networks are:

    | | image | `first_size` | `channels` |
    |---|---|---|---|
    | SVHN | 32 | 4 | 512, 256, 128 |
    | CIFAR-10 | 32 | 8 | 1024, 512, 256 |
    | CelebA | 64 | 4 | 1024, 512, 256, 128 |
    | MNIST | 28 | 7 | 1024, 512, 256 |

    `inputs` is always a dictionary with `pixel_values` of shape `(batch, num_channels, image_size, image_size)`
    in [-1, 1].

    Args:
        latent_dim: Size of the latent.
        channels: Number of maps after the first and every hidden layer.
        image_size: Height and width of an image.
        num_channels: 1 for grey, 3 for colour.
        first_size: Height and width after the first layer.
        pixel_std: Standard deviation of the noise (0.3 in the paper), for pixels in [-1, 1].

    Raises:
        UsageError: If the layers do not give images of `image_size`.
    """

    def __init__(
        self,
        latent_dim: int,
        channels: Sequence[int],
        *,
        image_size: int,
        num_channels: int,
        first_size: int,
        pixel_std: float,
    ) -> None:
        super().__init__()
        last_size = first_size * 2 ** (len(channels) - 1)
        if image_size not in (last_size, 2 * last_size):
            raise UsageError(
                f"{len(channels)} layers that begin at {first_size} pixels give images of {last_size} or "
                f"{2 * last_size}, not of {image_size}: change decoder_first_size or the number of decoder_channels"
            )
        self.pixel_std = pixel_std
        self.first = nn.ConvTranspose2d(latent_dim, channels[0], first_size)
        self.hidden = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 4, stride=2, padding=1) for a, b in zip(channels[:-1], channels[1:], strict=True)
        )
        kernel, stride = (3, 1) if image_size == last_size else (4, 2)
        self.out = nn.ConvTranspose2d(channels[-1], num_channels, kernel, stride=stride, padding=1)
        self.num_values = num_channels * image_size**2

    def decode(self, latents: Tensor) -> Tensor:
        """`g(z)`, the mean images in [-1, 1]; `(batch, latent_dim)` to `(batch, num_channels, size, size)`."""
        layers = [(layer.weight, layer.bias) for layer in (self.first, *self.hidden, self.out)]
        return _decode(latents, layers, self.out.stride[0])[-1]

    def log_prob(self, inputs: dict[str, Tensor], latents: Tensor) -> Tensor:
        """`log p(x | z)` in nats, summed over pixels and channels, shape `(batch,)`; differentiable in the weights."""
        return self.log_density(inputs["pixel_values"], self.decode(latents))

    @torch.no_grad()
    def averaged_log_prob(self, inputs: dict[str, Tensor], latents: Tensor) -> Tensor:
        """The mean image is averaged over the latents; see [`LatentDecoder`]."""
        mean = torch.stack([self.decode(z) for z in latents]).mean(dim=0)
        return self.log_density(inputs["pixel_values"], mean)

    def log_density(self, pixel_values: Tensor, mean: Tensor) -> Tensor:
        """The log-density in nats, `(batch,)`, of images `(batch, num_channels, size, size)` around mean images."""
        squares = (pixel_values - mean).square().flatten(1).sum(dim=1)
        constant = 0.5 * self.num_values * math.log(2 * math.pi * self.pixel_std**2)
        return -0.5 * squares / self.pixel_std**2 - constant

    def squared_error(self, log_prob: Tensor) -> Tensor:
        """The squared error per pixel that belongs to a log-density of [`log_density`], of the same shape."""
        constant = 0.5 * self.num_values * math.log(2 * math.pi * self.pixel_std**2)
        return -2 * self.pixel_std**2 * (log_prob + constant) / self.num_values

    def likelihood(self, inputs: dict[str, Tensor]) -> ConvLikelihood:
        """`log p(x | z)` as a function of z alone, see [`ConvLikelihood`]."""
        return ConvLikelihood(self, inputs)


class ConvLikelihood:
    """`log p(x | z)` of a batch of images as a function of z, for the inner loop of posterior sampling.

    The backward pass is written out by hand: no graph is built and no gradient of a weight is formed. The adjoint of a
    transposed convolution is the convolution with the same weight. Weights and images are laid out channels last.
    With `torch.set_float32_matmul_precision("medium")`, on a processor with bfloat16 tiles (AMX), the convolutions run
    in bfloat16, which changes a score by a few per cent; sums stay in float32.

    Args:
        decoder: The decoder, whose current weights are frozen.
        inputs: The images.
    """

    @torch.no_grad()
    def __init__(self, decoder: ConvDecoder, inputs: dict[str, Tensor]) -> None:
        self.decoder = decoder
        self._stride = decoder.out.stride[0]
        self._pixels = inputs["pixel_values"].contiguous(memory_format=torch.channels_last)
        dtype = _convolution_dtype(decoder.first.weight)
        self._layers = [
            (_channels_last(layer.weight.detach().to(dtype)), _detached(layer.bias, dtype))
            for layer in (decoder.first, *decoder.hidden, decoder.out)
        ]

    def __call__(self, latents: Tensor) -> Tensor:
        """`log p(x | z)` in nats; `(batch, latent_dim)` to `(batch,)`, differentiable in z."""
        return self.decoder.log_density(self._pixels, _decode(latents, self._layers, self._stride)[-1])

    def score(self, latents: Tensor) -> Tensor:
        """`d log p(x | z) / d z`; `(batch, latent_dim)` to the same shape."""
        features = self._features(latents)
        return self._backward(features, self._pixels - features[-1]).to(latents.dtype)

    def value_and_score(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """`log p(x | z)` of shape `(batch,)` and its score of shape `(batch, latent_dim)`."""
        features = self._features(latents)
        value = self.decoder.log_density(self._pixels, features[-1])
        return value, self._backward(features, self._pixels - features[-1]).to(latents.dtype)

    @torch.no_grad()
    def _features(self, latents: Tensor) -> list[Tensor]:
        return _decode(latents, self._layers, self._stride)

    @torch.no_grad()
    def _backward(self, features: list[Tensor], residual: Tensor) -> Tensor:
        """Returns the gradient in z, given the decoded images and their residual."""
        grad = (1 - features[-1].square()) * residual / self.decoder.pixel_std**2
        grad = grad.to(self._layers[-1][0].dtype)
        strides = [2] * (len(self._layers) - 2) + [self._stride]
        for feature, (weight, _), stride in zip(features[-2::-1], self._layers[:0:-1], strides[::-1], strict=True):
            grad = F.conv2d(grad, weight, stride=stride, padding=1)
            # A leaky ReLU keeps the sign, so its slope follows from its output.
            grad = _leaky_relu_backward(grad, feature, LEAKY_RELU_SLOPE, True)
        first, _ = self._layers[0]
        return grad.permute(0, 2, 3, 1).flatten(1) @ first.permute(0, 2, 3, 1).flatten(1).t()


def _decode(latents: Tensor, layers: Sequence[tuple[Tensor, Tensor | None]], last_stride: int) -> list[Tensor]:
    """Returns the output of every layer, given weights and biases of all layers; the images come last."""
    first, bias = layers[0]
    # For a 1 x 1 input the transposed convolution is a matrix product, whose result is laid out channels last.
    maps = first.permute(0, 2, 3, 1)
    x = (latents.to(first.dtype) @ maps.flatten(1)).view(len(latents), *maps.shape[1:]).permute(0, 3, 1, 2)
    features = [F.leaky_relu(x if bias is None else x + bias[:, None, None], LEAKY_RELU_SLOPE)]
    for weight, bias in layers[1:-1]:
        x = F.conv_transpose2d(features[-1], weight, bias, stride=2, padding=1)
        features.append(F.leaky_relu(x, LEAKY_RELU_SLOPE))
    weight, bias = layers[-1]
    x = F.conv_transpose2d(features[-1], weight, bias, stride=last_stride, padding=1)
    # In full precision, because near its bounds the slope of tanh is a small difference of numbers close to 1.
    features.append(torch.tanh(x.to(torch.promote_types(x.dtype, torch.float32))))
    return features


def _convolution_dtype(weight: Tensor) -> torch.dtype:
    """The type in which frozen convolutions run: bfloat16 if it is allowed and the processor is fast at it."""
    allowed = weight.dtype == torch.float32 and torch.get_float32_matmul_precision() == "medium"
    has_tiles = weight.device.type == "cpu" and torch.cpu.get_capabilities().get("amx_bf16", False)
    return torch.bfloat16 if allowed and has_tiles else weight.dtype


def _channels_last(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=torch.channels_last)


def _detached(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if bias is None else bias.detach().to(dtype)


class ConvEncoder(LatentEncoder):
    """q(z | x) by convolutions that halve an image while its size is even and above 4, and a final linear layer.

    Args:
        latent_dim: Size of the latent.
        image_size: Height and width of an image.
        num_channels: Channels of an image.
        hidden_size: Number of maps after the first convolution; every further one doubles it.
    """

    def __init__(self, latent_dim: int, *, image_size: int, num_channels: int, hidden_size: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList()
        size, channels, width = image_size, num_channels, hidden_size
        while size > 4 and size % 2 == 0:
            self.convolutions.append(nn.Conv2d(channels, width, 4, stride=2, padding=1))
            size, channels, width = size // 2, width, 2 * width
        self.out = nn.Linear(channels * size**2, 2 * latent_dim)

    def forward(self, inputs: dict[str, Tensor]) -> GaussianPosterior:
        """Returns the proposal for `pixel_values` of shape `(batch, num_channels, image_size, image_size)`."""
        x = inputs["pixel_values"].contiguous(memory_format=torch.channels_last)
        for convolution in self.convolutions:
            x = F.leaky_relu(convolution(x), LEAKY_RELU_SLOPE)
        proposal = self.out(x.flatten(1))
        proposal = proposal.to(torch.promote_types(proposal.dtype, torch.float32))  # also under autocast
        mean, log_std = proposal.chunk(2, dim=-1)
        return GaussianPosterior(mean, log_std)
