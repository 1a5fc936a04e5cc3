"""A stack of convolutions that looks at an image and proposes its latent."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latent_ebm_text.encoders.base import GaussianPosterior, LatentEncoder

LEAKY_RELU_SLOPE = 0.2


class ConvEncoder(LatentEncoder):
    """Convolutions that halve an image while it has an even size above 4, then a linear map of what is left.

    Args:
        latent_dim: Size of the latent.
        image_size: Height and width of an image.
        num_channels: Channels of an image.
        hidden_size: Maps after the first convolution; each further one doubles them.
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
        """The proposal for images `pixel_values` of shape `(batch, num_channels, image_size, image_size)`."""
        x = inputs["pixel_values"].contiguous(memory_format=torch.channels_last)
        for convolution in self.convolutions:
            x = F.leaky_relu(convolution(x), LEAKY_RELU_SLOPE)
        proposal = self.out(x.flatten(1))
        proposal = proposal.to(torch.promote_types(proposal.dtype, torch.float32))  # also under autocast
        mean, log_std = proposal.chunk(2, dim=-1)
        return GaussianPosterior(mean, log_std)
