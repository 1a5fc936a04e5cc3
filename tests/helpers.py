"""A tiny text model that is made in milliseconds, its tokenizer and a batch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from latent_ebm_text import LatentEBMForTextGeneration, LatentEBMTextConfig
from latent_ebm_text.data.tokenizers import train_word_tokenizer

PAD, BOS, EOS = 0, 1, 2
#: More than 50, the `top_k` that transformers samples with unless told otherwise.
VOCAB_SIZE = 60
LATENT_DIM = 4
WORDS = [f"w{i:02d}" for i in range(VOCAB_SIZE - 4)]
SENTENCES = ["w00 w01 w02", "w03", "w04 w05 w06 w07 w08", "w09 w10"]


def tiny_config(**settings: Any) -> LatentEBMTextConfig:
    """A configuration of a few thousand weights, without dropout and with short chains."""
    defaults = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 16,
        "embedding_size": 8,
        "latent_dim": LATENT_DIM,
        "prior_hidden_size": 8,
        "prior_sampler": {"name": "langevin", "num_steps": 3, "step_size": 0.4},
        "posterior_sampler": {"name": "langevin", "num_steps": 2, "step_size": 0.1},
        "dropout": 0.0,
        "max_sequence_length": 12,
    }
    return LatentEBMTextConfig(**{**defaults, **settings})


def tiny_model(seed: int = 0, **settings: Any) -> LatentEBMForTextGeneration:
    """A model whose weights are large enough for its words to depend on its latents."""
    model = LatentEBMForTextGeneration(tiny_config(**settings)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.7, generator=seeded(seed))
    return model


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A word tokenizer that knows exactly the model's words."""
    return train_word_tokenizer([" ".join(WORDS)])


def tiny_batch() -> dict[str, Tensor]:
    """Four sentences of different lengths, with `input_ids`, `attention_mask` and `labels`."""
    batch = dict(tiny_tokenizer()(SENTENCES, padding=True, return_tensors="pt"))
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return batch


def seeded(seed: int = 0) -> torch.Generator:
    """A generator at the start of its stream."""
    return torch.Generator().manual_seed(seed)


def edit_manifest(checkpoint: Path, **changes: Any) -> None:
    """Changes entries of the manifest of a checkpoint, by somebody who knows how to sign it."""
    path = checkpoint / "manifest.json"
    manifest = json.loads(path.read_text()) | changes
    del manifest["sha256"]
    path.write_text(json.dumps(manifest | {"sha256": hashlib.sha256(json.dumps(manifest).encode()).hexdigest()}))


def sign_files(checkpoint: Path) -> None:
    """Makes the manifest of a checkpoint that of its files as they are now."""
    files = {path.name: path.read_bytes() for path in sorted(checkpoint.iterdir()) if path.name != "manifest.json"}
    entries = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    edit_manifest(checkpoint, files=entries)
