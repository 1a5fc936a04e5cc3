"""Tiny causal language models, whose weights are large enough for their words to depend on what they see."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from latent_ebm_text import LatentEBMForTextGeneration
from tests.helpers import BOS, EOS, LATENT_DIM, PAD, VOCAB_SIZE, seeded

IDS = {"vocab_size": VOCAB_SIZE, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
WIDTHS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
ATTENTION = {"num_key_value_heads": 1, "head_dim": 16}
SETTINGS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 40, "tie_word_embeddings": False},
    "llama": {**WIDTHS, **ATTENTION},
    "qwen2": {**WIDTHS, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen3": {**WIDTHS, **ATTENTION},
    "gemma2": {**WIDTHS, **ATTENTION, "tie_word_embeddings": False, "final_logit_softcapping": 3.0},  # no plain output
}


def tiny_language_model(kind: str, **changes: Any) -> PreTrainedModel:
    """A model of some thousand weights."""
    config = AutoConfig.for_model(kind, **{**IDS, **SETTINGS[kind], **changes})
    lm = AutoModelForCausalLM.from_config(config).eval()
    generator = seeded(1)
    with torch.no_grad():
        for weight in lm.parameters():
            weight.normal_(mean=float(weight.dim() == 1), std=0.25, generator=generator)
    return lm


def tiny_wrapped(kind: str, folder: Path, **settings: Any) -> LatentEBMForTextGeneration:
    """That model as a decoder, which hears its latent clearly."""
    tiny_language_model(kind).save_pretrained(folder)
    sampler = {"name": "langevin", "num_steps": 2, "step_size": 0.1}
    defaults = {
        "latent_dim": LATENT_DIM, "prior_hidden_size": 8, "max_sequence_length": 12,
        "prior_sampler": sampler, "posterior_sampler": sampler,
    }  # fmt: skip
    if settings.get("latent_injection") == "attention":
        defaults["num_latent_vectors"] = 2  # one a layer
    model = LatentEBMForTextGeneration.from_decoder_pretrained(folder, **{**defaults, **settings})
    with torch.no_grad():
        for seed, (name, weight) in enumerate(model.decoder.injection.named_parameters(), start=2):
            weight.normal_(std=weight.shape[-1] ** -0.5 if name == "query" else 1.0, generator=seeded(seed))
    return model
