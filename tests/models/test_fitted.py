"""Posteriors that are fitted to every example: what `encode` returns, where chains start, what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latent_ebm_text import LatentEBMForImageGeneration, LatentEBMForTextGeneration, LatentEBMImageConfig
from latent_ebm_text.commands.runs import run_identity
from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents.integrals import LogPartition
from latent_ebm_text.training.arguments import TrainingArguments
from tests.helpers import LATENT_DIM, seeded, tiny_batch, tiny_model

DECODERS: dict[str, dict[str, Any]] = {
    "lstm": {},
    "many vectors": {"decoder_type": "transformer", "num_attention_heads": 2, "num_latent_vectors": 2},
}


def sentences() -> dict[str, Tensor]:
    return {name: value for name, value in tiny_batch().items() if name != "labels"}


@pytest.mark.parametrize("encoder", [None, 6], ids=["no encoder", "encoder"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_more_steps_give_a_better_bound(decoder: str, encoder: int | None) -> None:
    model = tiny_model(**DECODERS[decoder], encoder_hidden_size=encoder, prior_type="gaussian", fit_learning_rate=0.1)
    steps = (0, 4, 16, 64) if encoder else (1, 4, 16, 64)  # a bound needs an encoder or a fit
    options = {"marginal": "elbo", "num_draws": 40, "log_partition": LogPartition.known()}
    bounds = [
        model.score(**sentences(), **options, num_fit_steps=number, generator=seeded()).nll.mean() for number in steps
    ]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] - bounds[-1] > (1 if encoder else 0.2)


def test_encode_returns_the_fitted_mean() -> None:
    model, batch = tiny_model(encoder_hidden_size=6), sentences()
    assert torch.equal(model.encode(**batch, num_steps=0), model.encoder.propose(batch).mean)
    assert torch.equal(tiny_model().encode(**batch, num_steps=0), torch.zeros(4, LATENT_DIM))
    fitted = model.fit_posterior(batch, num_steps=5, generator=seeded())
    mean = model.encode(**batch, num_steps=5, generator=seeded())
    assert torch.equal(mean, fitted.mean)
    assert not mean.requires_grad
    assert fitted.log_std.shape == (4, LATENT_DIM)
    assert not torch.equal(mean, model.encode(**batch, num_steps=6, generator=seeded()))
    for chains in ({"sampler": model.posterior_sampler}, {"initial_latents": mean}):
        with pytest.raises(UsageError, match="num_steps asks for the mean of a fit, without a chain: leave"):
            model.encode(**batch, num_steps=5, **chains)
    with pytest.raises(UsageError, match="num_steps of a fit must be zero or positive, got -1"):
        model.encode(**batch, num_steps=-1)


def test_chains_start_from_draws_of_the_fit() -> None:
    model, batch = tiny_model(num_fit_steps=3), sentences()
    generator = seeded(3)
    start = model.fit_posterior(batch, num_steps=3, generator=generator).sample(generator)
    expected = model.posterior_sampler.sample(start, model.posterior(batch), generator=generator).latents
    assert torch.equal(model.encode(**batch, generator=seeded(3)), expected)
    vae = tiny_model(num_fit_steps=3, prior_type="gaussian")
    generator = seeded(3)
    start = vae.fit_posterior(batch, generator=generator).sample(generator)
    assert torch.equal(vae.encode(**batch, generator=seeded(3)), start), "under a Gaussian prior without a chain"


@pytest.mark.parametrize("decoder", DECODERS)
def test_saved_and_loaded_it_infers_and_writes_the_same(decoder: str, tmp_path: Path) -> None:
    model = tiny_model(**DECODERS[decoder], num_fit_steps=2)
    model.save_pretrained(tmp_path)
    loaded = LatentEBMForTextGeneration.from_pretrained(tmp_path)
    assert loaded.config.num_fit_steps == 2
    for each in ({"generator": seeded()}, {"num_steps": 2, "generator": seeded()}):
        expected = model.encode(**sentences(), **each)
        each["generator"].manual_seed(0)
        assert torch.equal(loaded.encode(**sentences(), **each), expected)
    for options in ({"do_sample": False, "num_beams": 3}, {}):
        first, second = (m.generate(num_samples=3, generator=seeded(), **options) for m in (model, loaded))
        assert torch.equal(first, second)


def test_images_are_fitted_as_texts_are_and_have_one_vector() -> None:
    torch.manual_seed(0)
    sizes = {"latent_dim": 4, "image_size": 8, "num_channels": 1, "decoder_channels": [6]}
    model = LatentEBMForImageGeneration(LatentEBMImageConfig(**sizes)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.3)
    pixels = model.generate(latents=torch.randn(16, 4, generator=seeded()))
    posterior = model.posterior({"pixel_values": pixels})
    means = [model.encode(pixels, num_steps=steps, generator=seeded()) for steps in (0, 4, 16, 64)]
    values = [float(posterior(mean).mean().detach()) for mean in means]
    assert values == sorted(values)
    with pytest.raises(UsageError, match="num_latent_vectors is for transformers of text; an image has one vector"):
        LatentEBMImageConfig(latent_dim=4, num_latent_vectors=2)


@pytest.mark.parametrize(
    ("inference", "num_fit_steps", "message"),
    [
        (
            "fitted",
            0,
            "inference 'fitted' and num_fit_steps 0 do not go together: set inference to",
        ),
        ("short_run", 4, "inference 'short_run' and num_fit_steps 4 do not go together"),
    ],
)
def test_inference_and_steps_go_together(inference: Any, num_fit_steps: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainingArguments(inference=inference).check_inference(False, num_fit_steps)


def test_checkpoints_from_before_these_settings_are_resumed() -> None:
    args = TrainingArguments()
    assert not {f"config.{name}" for name in ("num_latent_vectors", "num_fit_steps", "fit_learning_rate")} & set(
        run_identity(tiny_model(), args)
    )
    assert run_identity(tiny_model(num_fit_steps=2), args)["config.num_fit_steps"] == 2
