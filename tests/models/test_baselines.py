"""The baselines of the paper's tables: a Gaussian prior, a VAE, and a language model without a latent."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from latent_ebm_text import LatentEBMForTextGeneration
from latent_ebm_text.errors import UsageError
from latent_ebm_text.networks.base import GaussianPosterior
from tests.helpers import LATENT_DIM, seeded, tiny_batch, tiny_config, tiny_model


def vae(**settings: Any) -> LatentEBMForTextGeneration:
    return tiny_model(prior_type="gaussian", encoder_hidden_size=10, **settings)


def language_model() -> LatentEBMForTextGeneration:
    return tiny_model(prior_type="gaussian", latent_dim=0)


def sentences() -> dict[str, Tensor]:
    return {name: value for name, value in tiny_batch().items() if name != "labels"}


# --- Gaussian prior ---


def test_a_gaussian_prior_has_the_energy_of_the_reference_and_exact_draws() -> None:
    model = tiny_model(prior_type="gaussian")
    latents = torch.randn(5, LATENT_DIM, generator=seeded(1))
    torch.testing.assert_close(model.prior.energy(latents), 0.5 * latents.square().sum(dim=1))
    torch.testing.assert_close(model.prior.score(latents), -latents)
    draws = model.sample_prior(7, generator=seeded(2)).latents
    assert torch.equal(draws, torch.randn(7, LATENT_DIM, generator=seeded(2))), "no chain where draws are exact"
    assert not list(model.prior.parameters())


def test_a_gaussian_prior_learns_nothing_and_its_decoder_does() -> None:
    model = tiny_model(prior_type="gaussian")
    output = model(**tiny_batch(), generator=seeded(1))
    output.loss.backward()
    assert all(weight.grad is not None for weight in model.decoder.parameters())


# --- VAE ---


def test_divergence_is_that_of_torch_distributions() -> None:
    posterior = GaussianPosterior(torch.randn(6, 3, generator=seeded(1)), torch.randn(6, 3, generator=seeded(2)))
    law = torch.distributions.Normal(posterior.mean, posterior.log_std.exp())
    expected = torch.distributions.kl_divergence(law, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(posterior.divergence(), expected)
    draws = torch.stack([posterior.sample(seeded(seed)) for seed in range(3_000)])
    assert bool(((draws.mean(dim=0) - posterior.mean).abs() < 5 * law.scale / 3_000**0.5).all())


def test_encoder_draws_take_the_place_of_chains_and_padding_does_not_matter() -> None:
    model, batch = vae(), sentences()
    latents = model.encode(**batch, generator=seeded(3))
    proposal = model.encoder(batch)
    noise = torch.randn(latents.shape, generator=seeded(3))
    torch.testing.assert_close(latents, proposal.mean + proposal.log_std.exp() * noise)
    wider = {name: torch.nn.functional.pad(value, (0, 3)) for name, value in batch.items()}
    torch.testing.assert_close(model.encoder(wider).mean, proposal.mean)


@pytest.mark.parametrize(("free_bits", "weight"), [(0.0, 1.0), (0.0, 4.0), (1.5, 1.0)])
def test_the_variational_loss_by_hand(free_bits: float, weight: float) -> None:
    model, batch = vae(free_bits=free_bits), sentences()
    torch.manual_seed(5)
    output = model(**tiny_batch(), likelihood_weight=weight)
    torch.manual_seed(5)
    proposal = model.encoder(batch)
    latents = proposal.sample()
    reconstruction = -model.log_prob(**batch, latents=latents).mean()
    per_dimension = proposal.divergence().mean(dim=0)
    charged = per_dimension.clamp(min=free_bits).sum()
    torch.testing.assert_close(output.loss, reconstruction + charged / weight)
    torch.testing.assert_close(output.prior_loss, per_dimension.sum())
    torch.testing.assert_close(output.latents, latents.detach())
    output.loss.backward()
    assert all(weight.grad is not None for weight in model.encoder.parameters())


def test_a_vae_is_saved_and_loaded_with_its_encoder(tmp_path: Any) -> None:
    model = vae()
    model.save_pretrained(tmp_path)
    again = LatentEBMForTextGeneration.from_pretrained(tmp_path)
    batch = sentences()
    assert torch.equal(again.encode(**batch, generator=seeded(1)), model.encode(**batch, generator=seeded(1)))


# --- language model ---


def test_a_model_without_a_latent_is_a_language_model() -> None:
    model, batch = language_model(), sentences()
    latents = model.encode(**batch)
    assert latents.shape == (len(batch["input_ids"]), 0)
    log_prob = model.log_prob(**batch, latents=latents)
    logits = model(input_ids=batch["input_ids"][:, :-1]).logits.log_softmax(dim=-1)
    words = logits.gather(2, batch["input_ids"][:, 1:, None]).squeeze(2) * batch["attention_mask"][:, 1:]
    torch.testing.assert_close(log_prob, words.sum(dim=1))
    torch.testing.assert_close(model.decoder.likelihood(batch)(latents), log_prob)
    output = model(**tiny_batch())
    torch.testing.assert_close(output.loss, -log_prob.mean())


def test_a_language_model_generates_is_saved_and_loaded_without_a_word_of_warning(tmp_path: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = language_model()
        model.save_pretrained(tmp_path)
        again = LatentEBMForTextGeneration.from_pretrained(tmp_path)
        ids = again.generate(num_samples=3, generator=seeded(1))
    assert torch.equal(ids, model.generate(num_samples=3, generator=seeded(1)))


# --- settings that contradict each other ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latent_dim": 0}, "latent_dim must be positive for an energy prior"),
        ({"latent_dim": -1}, "latent_dim must be zero or positive"),
        ({"encoder_hidden_size": 8, "prior_type": "gaussian", "latent_dim": 0}, "latent_dim above 0"),
        ({"free_bits": -0.1}, "free_bits must be zero or positive"),
    ],
)
def test_refused_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tiny_config(**settings)
