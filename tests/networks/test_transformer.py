"""A transformer from scratch: what it hears of its latent and of the words before it has learned anything."""

import pytest
import torch

from latent_ebm_text import LatentEBMForTextGeneration
from tests.helpers import BOS, VOCAB_SIZE, seeded, tiny_config


@pytest.mark.parametrize("injection", ["prefix", "embedding", "layers"])
@pytest.mark.parametrize("hidden_size", [32, 128, 512])
def test_a_new_model_hears_the_latent_and_the_words_alike(injection: str, hidden_size: int) -> None:
    torch.manual_seed(0)
    config = tiny_config(
        decoder_type="transformer", latent_injection=injection, hidden_size=hidden_size, num_attention_heads=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = LatentEBMForTextGeneration(config).eval()
    words = torch.randint(3, VOCAB_SIZE, (16, 6), generator=seeded())
    words[:, 0] = BOS
    latents = torch.randn(16, config.latent_dim, generator=seeded(1))
    with torch.no_grad():
        logits, other_latents, other_words = (
            model(ids, latents=z).logits[:, -1]
            for ids, z in ((words, latents), (words, latents.roll(1, 0)), (words.roll(1, 0), latents))
        )
    by_latents, by_words = float((other_latents - logits).std()), float((other_words - logits).std())
    assert 0.5 < by_latents < 2.5, "neither lost in the layers nor louder than words can be"
    assert 0.25 < by_latents / by_words < 4
