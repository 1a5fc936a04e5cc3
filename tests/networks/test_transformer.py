"""A new transformer: how its logits depend on the latent and on the tokens before any training."""

import pytest
import torch

from latent_ebm_text import LatentEBMForTextGeneration
from tests.helpers import BOS, VOCAB_SIZE, seeded, tiny_config


@pytest.mark.parametrize("injection", ["prefix", "embedding", "layers", "attention"])
@pytest.mark.parametrize("hidden_size", [32, 128, 512])
def test_logits_of_a_new_model_depend_on_the_latent_and_the_tokens_alike(injection: str, hidden_size: int) -> None:
    torch.manual_seed(0)
    config = tiny_config(
        decoder_type="transformer", latent_injection=injection, hidden_size=hidden_size, num_attention_heads=2,
        tie_word_embeddings=True, num_latent_vectors=2 if injection == "attention" else 1,
    )  # fmt: skip
    model = LatentEBMForTextGeneration(config).eval()
    tokens = torch.randint(3, VOCAB_SIZE, (16, 6), generator=seeded())
    tokens[:, 0] = BOS
    latents = torch.randn(16, config.latent_dim, generator=seeded(1))
    with torch.no_grad():
        logits, other_latents, other_tokens = (
            model(ids, latents=z).logits[:, -1]
            for ids, z in ((tokens, latents), (tokens, latents.roll(1, 0)), (tokens.roll(1, 0), latents))
        )
    by_latents, by_tokens = float((other_latents - logits).std()), float((other_tokens - logits).std())
    assert 0.5 < by_latents < 2.5, "neither lost in the layers nor larger than for tokens"
    assert 0.25 < by_latents / by_tokens < 4
