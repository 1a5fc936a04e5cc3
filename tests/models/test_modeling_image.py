"""The image model as a Hugging Face user meets it."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from latent_ebm_text import LatentEBMForImageGeneration, LatentEBMImageConfig
from latent_ebm_text.data.image_processing import LatentEBMImageProcessor
from latent_ebm_text.errors import DataError, UsageError
from latent_ebm_text.latents.rng import batch_generators
from latent_ebm_text.latents.samplers import LangevinSampler
from tests.helpers import seeded


def tiny_config(**changes):
    settings = {
        "latent_dim": 4, "image_size": 8, "num_channels": 1, "decoder_channels": [6, 5], "prior_hidden_size": 8,
        "prior_sampler": {"name": "langevin", "num_steps": 3, "step_size": 0.4},
        "posterior_sampler": {"name": "langevin", "num_steps": 2, "step_size": 0.1},
    }  # fmt: skip
    return LatentEBMImageConfig(**settings | changes)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LatentEBMForImageGeneration(tiny_config()).eval()


@pytest.fixture
def pixels():
    return torch.rand(3, 1, 8, 8, generator=seeded(2)) * 2 - 1


def test_save_and_load_gives_the_same_images(model, tmp_path):
    model.save_pretrained(tmp_path)
    LatentEBMImageProcessor(8, 1).save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)

    assert isinstance(again, LatentEBMForImageGeneration)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), LatentEBMImageConfig)
    assert (processor.image_size, processor.num_channels, processor.do_adapt) == (8, 1, False)
    images = [m.generate(num_samples=2, generator=seeded()) for m in (model, again)]
    assert torch.equal(*images)


def test_kinds_of_output(model):
    latents = torch.randn(2, 4, generator=seeded(1))
    tensor = model.generate(latents=latents)
    array = model.generate(latents=latents, output_type="np")
    pictures = model.generate(latents=latents, output_type="pil")

    assert (tensor.shape, array.shape) == ((2, 1, 8, 8), (2, 8, 8, 1))
    assert [(picture.mode, picture.size) for picture in pictures] == [("L", (8, 8))] * 2
    # Pictures are the tensor up to rounding to 256 levels of 2 / 255.
    back = LatentEBMImageProcessor(8, 1)(pictures)["pixel_values"]
    assert float((back - tensor).abs().max()) <= 1 / 255 + 1e-6
    with pytest.raises(UsageError, match="output_type must be 'pt', 'np' or 'pil', got 'jpg'"):
        model.generate(num_samples=1, output_type="jpg")
    with pytest.raises(UsageError, match="num_samples=3 and 2 latents"):
        model.generate(num_samples=3, latents=latents)


def test_the_loss_is_reconstruction_and_gap(model, pixels):
    latents, prior_latents = torch.randn(3, 4, generator=seeded(1)), torch.randn(5, 4, generator=seeded(2))
    output = model(pixels, latents=latents, prior_latents=prior_latents)
    mean = model.decoder.decode(latents)
    nll = -torch.distributions.Normal(mean, 0.3).log_prob(pixels).flatten(1).sum(dim=1).mean()
    gap = model.prior.energy(latents).mean() - model.prior.energy(prior_latents).mean()
    torch.testing.assert_close(output.reconstruction_loss, nll)
    torch.testing.assert_close(output.loss, nll + gap)
    output.loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())


@pytest.mark.parametrize("prior_type", ["energy", "gaussian"])
def test_an_encoder_makes_a_variational_model(pixels, prior_type):
    model = LatentEBMForImageGeneration(tiny_config(encoder_hidden_size=4, prior_type=prior_type))
    model(pixels).loss.backward()
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in model.encoder.parameters())


def test_scores_are_densities(model, pixels):
    scores = model.score(pixels, num_draws=2, generator=seeded())
    generator = seeded()
    latents = torch.stack([model.encode(pixels, generator=generator) for _ in range(2)])
    assert torch.equal(scores.latents, latents)
    nll = -torch.stack([model.log_prob(pixels, latents=z) for z in latents]).mean(dim=0)
    energy = model.prior.energy(latents).mean(dim=0)
    torch.testing.assert_close(scores.reconstruction.float(), nll)
    torch.testing.assert_close(scores.prior_energy.float(), energy)
    torch.testing.assert_close(scores.joint_energy, scores.prior_energy + scores.reconstruction)
    mse = torch.stack([(model.generate(latents=z) - pixels).square().mean(dim=(1, 2, 3)) for z in latents])
    torch.testing.assert_close(scores.squared_error.float(), mse.mean(dim=0))
    assert scores.nll is None


def test_images_that_a_decoder_cannot_explain_score_higher(model):
    ordinary = model.generate(num_samples=4, generator=seeded())
    scores = model.score(torch.cat([ordinary, torch.ones(4, 1, 8, 8)]), generator=seeded())
    for name in ("joint_energy", "reconstruction", "squared_error"):
        assert float(scores.get(name)[:4].max()) < float(scores.get(name)[4:].min())


def test_latents_of_images_are_compared_as_those_of_sentences(model, pixels):
    draws = model.posterior_draws(pixels, num_draws=3, batch_size=2, generator=seeded())
    generator, _ = batch_generators(seeded(), 2, "cpu")
    first = [model.encode(pixels[:2], generator=generator) for _ in range(3)]
    assert torch.equal(draws[:, :2], torch.stack(first))
    means = model.posterior_draws(pixels, generator=seeded()).mean(dim=0)
    torch.testing.assert_close(model.combine(pixels, [1, 0, -1], generator=seeded()), (means[0] - means[2])[None])
    index = model.build_index(pixels, generator=seeded())
    assert model.neighbours(index, pixels, k=1, generator=seeded()).indices.flatten().tolist() == [0, 1, 2]


def test_posterior_chains_find_the_image(model):
    with torch.no_grad():
        for weight in model.decoder.parameters():
            weight.normal_(std=0.4, generator=seeded(3))
    target = model.generate(latents=torch.randn(4, 4, generator=seeded(1)))
    sampler = LangevinSampler(300, step_size=0.05, temperature=0.1)
    start = model.sample_reference(4, seeded(2))
    latents = model.encode(target, initial_latents=start, sampler=sampler, generator=seeded())
    before, after = (nn.functional.mse_loss(model.generate(latents=z), target) for z in (start, latents))
    assert after < before / 2


def test_interpolation_ends_in_its_ends(model):
    ends = torch.randn(2, 4, generator=seeded(1))
    images = model.interpolate(*ends, num_points=5)
    torch.testing.assert_close(images[[0, -1]], model.generate(latents=ends))
    torch.testing.assert_close(images[2:3], model.generate(latents=ends.mean(dim=0, keepdim=True)))
    around = model.interpolate(*ends, num_points=5, path="spherical", output_type="np")
    assert not np.array_equal(around[2], model.generate(latents=ends.mean(dim=0, keepdim=True), output_type="np")[0])
    assert model.reconstruct(images, output_type="np").shape == (5, 8, 8, 1)
    with pytest.raises(UsageError, match="at least 2, got 1"):
        model.interpolate(*ends, num_points=1)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 8, 8), r"\(batch, 1, 8, 8\).*got \(2, 3, 8, 8\)"),
        (torch.zeros(2, 1, 9, 8), r"\(batch, 1, 8, 8\).*got \(2, 1, 9, 8\)"),
        (torch.full((2, 1, 8, 8), 255.0), r"lie in \[255, 255\], but this model knows \[-1, 1\]"),
        (torch.full((2, 1, 8, 8), torch.nan), r"lie in \[nan, nan\]"),
        (torch.zeros(0, 1, 8, 8), "one image or more: let the model's image processor"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "are a tensor of numbers in"),
        ([[0.0]], "are a tensor of numbers in"),
    ],
)
def test_images_of_another_kind_are_refused(model, images, message):
    with pytest.raises(UsageError, match=message):
        model.encode(images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_channels": 2}, "num_channels must be 1"),
        ({"pixel_std": 0}, "pixel_std must be positive"),
        ({"decoder_channels": []}, "decoder_channels must be positive integers"),
        ({"latent_dim": 0, "prior_type": "gaussian"}, "latent_dim must be positive"),
        ({"hidden_size": 5}, "no setting 'hidden_size'"),
    ],
)
def test_settings_that_cannot_be_right(changes, message):
    with pytest.raises(UsageError, match=message):
        tiny_config(**changes)


def test_the_processor_names_what_it_got_and_what_it_wants():
    grey, colour = LatentEBMImageProcessor(8, 1), LatentEBMImageProcessor(8, 3, do_adapt=True)
    with pytest.raises(DataError, match="10 x 9 pixels .* where 8 x 8 are expected"):
        grey(np.zeros((9, 10), dtype=np.uint8))
    with pytest.raises(DataError, match=r"3 channels \(mode 'RGB'\) where 1 \('L'\)"):
        grey(np.zeros((8, 8, 3), dtype=np.uint8))
    with pytest.raises(DataError, match="values from 0 to 300, where integers from 0 to 255"):
        grey(np.arange(64).reshape(8, 8) * 300 // 63)
    with pytest.raises(DataError, match="float64 values"):
        grey(np.zeros((8, 8)))
    assert colour(np.zeros((9, 12), dtype=np.uint8))["pixel_values"].shape == (1, 3, 8, 8)


def test_pictures_are_read_as_viewers_show_them(tmp_path):
    ink = Image.fromarray(np.diag([255] * 8).astype(np.uint8))
    drawn = Image.merge("RGBA", [Image.new("L", (8, 8), 0)] * 3 + [ink])  # black on nothing
    grey, colour = LatentEBMImageProcessor(8, 1, do_adapt=True), LatentEBMImageProcessor(8, 3, do_adapt=True)
    np.testing.assert_array_equal(grey.to_array(drawn)[..., 0], 255 - np.asarray(ink))
    np.testing.assert_array_equal(colour.to_array(drawn)[..., 2], 255 - np.asarray(ink))
    half = np.zeros((8, 8), np.uint8)
    half[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    Image.fromarray(half).save(tmp_path / "turned.png", exif=exif)
    turned = LatentEBMImageProcessor(8, 1).to_array(Image.open(tmp_path / "turned.png"))
    np.testing.assert_array_equal(turned[..., 0], np.rot90(half, -1))
