"""The convolutional decoder: the paper's layers, its density, its score."""

import math

import pytest
import torch
from torch import nn

from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents.density import ScoredLogDensity, autograd_value_and_score
from latent_ebm_text.networks.conv import ConvDecoder
from tests.helpers import seeded

SIZES = [
    {"channels": [6, 5], "image_size": 8, "num_channels": 1, "first_size": 4},  # ends in a 3 x 3 kernel
    {"channels": [6, 5], "image_size": 12, "num_channels": 3, "first_size": 3},  # ends in a doubling
    {"channels": [4], "image_size": 7, "num_channels": 1, "first_size": 7},
]


def make(seed=0, std=0.3, **sizes):
    decoder = ConvDecoder(4, pixel_std=std, **sizes).double()
    with torch.no_grad():
        for weight in decoder.parameters():
            weight.normal_(std=0.4, generator=seeded(seed))
    return decoder


def images_for(decoder, batch=3):
    size = decoder.decode(torch.zeros(1, 4, dtype=torch.float64)).shape[1:]
    return {"pixel_values": torch.rand(batch, *size, dtype=torch.float64, generator=seeded(2)) * 2 - 1}


@pytest.mark.parametrize(
    ("settings", "layers"),
    [
        (
            {"channels": [512, 256, 128], "image_size": 32, "num_channels": 3, "first_size": 4},  # SVHN
            [(512, 4, 1, 0), (256, 4, 2, 1), (128, 4, 2, 1), (3, 4, 2, 1)],
        ),
        (
            {"channels": [1024, 512, 256], "image_size": 32, "num_channels": 3, "first_size": 8},  # CIFAR-10
            [(1024, 8, 1, 0), (512, 4, 2, 1), (256, 4, 2, 1), (3, 3, 1, 1)],
        ),
        (
            {"channels": [1024, 512, 256, 128], "image_size": 64, "num_channels": 3, "first_size": 4},  # CelebA
            [(1024, 4, 1, 0), (512, 4, 2, 1), (256, 4, 2, 1), (128, 4, 2, 1), (3, 4, 2, 1)],
        ),
        (
            {"channels": [1024, 512, 256], "image_size": 28, "num_channels": 1, "first_size": 7},  # MNIST
            [(1024, 7, 1, 0), (512, 4, 2, 1), (256, 4, 2, 1), (1, 3, 1, 1)],
        ),
    ],
)
def test_the_networks_of_the_paper(settings, layers):
    with torch.device("meta"):
        decoder = ConvDecoder(100, pixel_std=0.3, **settings)
    found = [
        (layer.out_channels, layer.kernel_size[0], layer.stride[0], layer.padding[0])
        for layer in decoder.modules()
        if isinstance(layer, nn.ConvTranspose2d)
    ]
    assert found == layers


@pytest.mark.parametrize("sizes", SIZES)
def test_it_is_the_stack_of_its_layers(sizes):
    decoder, latents = make(**sizes), torch.randn(3, 4, dtype=torch.float64, generator=seeded(1))
    parts = []
    for layer in (decoder.first, *decoder.hidden):
        parts += [layer, nn.LeakyReLU(0.2)]
    plain = nn.Sequential(*parts, decoder.out, nn.Tanh())
    torch.testing.assert_close(decoder.decode(latents), plain(latents[:, :, None, None]))


def test_the_density_is_that_of_independent_normals():
    decoder, latents = make(std=0.7, **SIZES[0]), torch.randn(3, 4, dtype=torch.float64, generator=seeded(1))
    inputs = images_for(decoder)
    normal = torch.distributions.Normal(decoder.decode(latents), 0.7)
    expected = normal.log_prob(inputs["pixel_values"]).sum(dim=(1, 2, 3))
    torch.testing.assert_close(decoder.log_prob(inputs, latents), expected)


def test_a_perfect_reconstruction_has_the_density_of_the_mode():
    decoder, latents = make(**SIZES[0]), torch.zeros(1, 4, dtype=torch.float64)
    value = decoder.log_prob({"pixel_values": decoder.decode(latents)}, latents)
    assert value.item() == pytest.approx(-64 * math.log(0.3 * math.sqrt(2 * math.pi)))


@pytest.mark.parametrize("sizes", SIZES)
def test_the_score_is_the_gradient(sizes):
    decoder, latents = make(**sizes), torch.randn(3, 4, dtype=torch.float64, generator=seeded(1))
    inputs = images_for(decoder)
    likelihood = decoder.likelihood(inputs)
    assert isinstance(likelihood, ScoredLogDensity)
    value, score = autograd_value_and_score(lambda z: decoder.log_prob(inputs, z), latents)
    for found in (
        likelihood.value_and_score(latents),
        (likelihood(latents), likelihood.score(latents)),
        autograd_value_and_score(lambda z: likelihood(z), latents),
    ):
        torch.testing.assert_close(found[0], value)
        torch.testing.assert_close(found[1], score)
    assert all(weight.grad is None for weight in decoder.parameters())


def test_medium_precision_moves_the_score_a_little():
    decoder, latents = make(**SIZES[0]).float(), torch.randn(3, 4, generator=seeded(1))
    inputs = {"pixel_values": images_for(make(**SIZES[0]))["pixel_values"].float()}
    exact = decoder.likelihood(inputs).score(latents)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        rounded = decoder.likelihood(inputs).score(latents)
    finally:
        torch.set_float32_matmul_precision(before)
    assert rounded.dtype == torch.float32
    assert float((rounded - exact).norm() / exact.norm()) < 0.05


def test_layers_that_do_not_arrive_are_refused():
    with pytest.raises(UsageError, match="begin at 4 pixels give images of 8 or 16, not of 32"):
        ConvDecoder(4, [6, 5], image_size=32, num_channels=3, first_size=4, pixel_std=0.3)


def test_averaging_over_latents_averages_the_mean_images():
    decoder = make(**SIZES[1])
    inputs, latents = images_for(decoder), torch.randn(5, 3, 4, dtype=torch.float64, generator=seeded(3))
    mean = sum(decoder.decode(z) for z in latents) / 5
    expected = torch.distributions.Normal(mean, 0.3).log_prob(inputs["pixel_values"]).flatten(1).sum(dim=1)
    torch.testing.assert_close(decoder.averaged_log_prob(inputs, latents), expected)
