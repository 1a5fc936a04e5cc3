"""Sizes of the models and batches that are measured; the defaults are the paper's for Penn Treebank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latent_ebm_text import LatentEBMForTextGeneration, LatentEBMTextConfig


@dataclass(frozen=True)
class Sizes:
    """Sizes of model and batch, how far each benchmark goes, and the device of models and batches."""

    device: str = "cpu"

    embedding: int = 128
    hidden: int = 512
    vocab: int = 10_000
    latent: int = 32
    prior_hidden: int = 200
    batch: int = 128
    tokens: int = 22  # predicted tokens of a sentence
    prior_batches: tuple[int, ...] = (128, 4096)
    posterior_steps: int = 20
    prior_steps: int = 60

    # generation: our model and GPT-2 with as many parameters
    generation_embedding: int = 256
    generation_hidden: int = 712
    generation_tokens: int = 40
    gpt2_width: int = 256
    gpt2_layers: int = 4
    control_batch: int = 512

    # learning: validation reconstruction NLL, in nats per sentence, that is to be reached, and how long plain may take
    targets: tuple[float, ...] = (24.0, 20.0)
    learning_sentences: int = 8000
    learning_epochs: float = 16.0
    eval_every: int = 50  # steps
    eval_sentences: int = 512
    plain_seconds: float = 1200.0

    # images: the paper's for SVHN
    image_width: int = 64
    image_latent: int = 100
    image_batch: int = 100

    # scaling: the values that each size takes while the others stay
    batches: tuple[int, ...] = (32, 128, 512)
    lengths: tuple[int, ...] = (11, 22, 44, 88)
    vocabularies: tuple[int, ...] = (2_500, 10_000, 40_000)
    latent_sizes: tuple[int, ...] = (16, 32, 128)

    def model(self, tied: bool, hidden: int | None = None, embedding: int | None = None) -> LatentEBMForTextGeneration:
        """The model with its initial weights, without dropout: the same at every call."""
        torch.manual_seed(0)
        config = LatentEBMTextConfig(
            vocab_size=self.vocab,
            hidden_size=hidden or self.hidden,
            embedding_size=embedding or self.embedding,
            latent_dim=self.latent,
            prior_hidden_size=self.prior_hidden,
            tie_word_embeddings=tied,
            dropout=0.0,
            prior_sampler={"name": "langevin", "num_steps": self.prior_steps, "step_size": 0.4},
            posterior_sampler={"name": "langevin", "num_steps": self.posterior_steps, "step_size": 0.1},
        )
        return LatentEBMForTextGeneration(config).to(self.device)

    def generation_model(self) -> LatentEBMForTextGeneration:
        """The model that generates, as large as the GPT-2 that it is compared with."""
        return self.model(tied=True, hidden=self.generation_hidden, embedding=self.generation_embedding).eval()

    def inputs(self) -> dict[str, Tensor]:
        """Sentences of one length: padding, which the library skips and the plain code would not, plays no part."""
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(self.vocab, (self.batch, self.tokens + 1), generator=generator)
        return {"input_ids": ids.to(self.device), "attention_mask": torch.ones_like(ids, device=self.device)}


QUICK = Sizes(
    embedding=16, hidden=32, vocab=200, latent=8, prior_hidden=16, batch=8, tokens=5,
    prior_batches=(8, 64), posterior_steps=3, prior_steps=4,
    generation_embedding=16, generation_hidden=32, generation_tokens=4, gpt2_width=16, gpt2_layers=1, control_batch=8,
    targets=(1000.0, 1.0), plain_seconds=0.5,
    learning_sentences=128, learning_epochs=1.0, eval_every=1, eval_sentences=8,
    image_width=2, image_latent=4, image_batch=3,
    batches=(4, 8), lengths=(3,), vocabularies=(100,), latent_sizes=(4,),
)  # fmt: skip
