"""A language model conditioned on labels: the decoder of a model with a label in place of its latent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latent_ebm_text import LatentEBMForTextGeneration, LatentEBMTextConfig
from latent_ebm_text.data.batching import TextCollator
from latent_ebm_text.latents.rng import derived_generator
from latent_ebm_text.models.sentences import SentenceRows

#: Settings that a model without inference needs in place of those of the model it is compared with.
_WITHOUT_LATENT = {
    "prior_type": "gaussian", "encoder_hidden_size": None, "sentence_encoder": None, "sentence_embedding_size": None,
    "sentence_embedding_weight": 0.0, "bag_of_tokens_weight": 0.0, "moment_weight": 0.0,
}  # fmt: skip


class LabelModel:
    """`p(x | labels)`: its "latent" is one indicator per value of every attribute, all 0 where a label is missing.

    Args:
        values: The values of every attribute.
        model: The decoder with these indicators as its latent.
    """

    def __init__(self, values: Mapping[str, Sequence[str]], model: LatentEBMForTextGeneration) -> None:
        self.values, self.model = values, model

    def indicators(self, labels: Sequence[Mapping[str, str | None]]) -> Tensor:
        """The indicators of labels, `(n, number of values)`."""
        places = [(name, value) for name, values in self.values.items() for value in values]
        return torch.tensor([[float(own.get(name) == value) for name, value in places] for own in labels])

    def generate(self, wanted: Mapping[str, str], num_samples: int, **options: Any) -> Tensor:
        """Token ids of sentences with labels, `(num_samples, length)`; options as those of `generate`."""
        return self.model.generate(latents=self.indicators([wanted] * num_samples), **options)


def fit_label_model(
    like: LatentEBMTextConfig,
    rows: SentenceRows,
    labels: Sequence[Mapping[str, str | None]],
    values: Mapping[str, Sequence[str]],
    *,
    folder: Path,
    num_epochs: int,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    seed: int = 0,
) -> LabelModel:
    """Trains the model on labelled sentences, or reads it from a folder where it was trained before.

    Args:
        like: The configuration whose decoder it has.
        rows: Token ids of the sentences.
        labels: The labels of every sentence.
        values: The values of every attribute.
        folder: Where the trained model is kept.
        num_epochs: Passes over the sentences.
        batch_size: Sentences a step.
        learning_rate: Learning rate of AdamW, which falls linearly to 5 % of it, as in the training of the model.
        seed: Seed of the weights, the order of the sentences and dropout.
    """
    if (folder / "config.json").is_file():
        return LabelModel(values, LatentEBMForTextGeneration.from_pretrained(folder).eval())
    size = sum(map(len, values.values()))
    settings = {name: value for name, value in like.to_diff_dict().items() if name in LatentEBMTextConfig().to_dict()}
    config = LatentEBMTextConfig(**{**settings, **_WITHOUT_LATENT, "latent_dim": size})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LatentEBMForTextGeneration(config).train()
        wrapped = LabelModel(values, model)
        indicators, collate = wrapped.indicators(labels), TextCollator(config.pad_token_id)
        lengths = [len(row) - 1 for row in rows]
        num_steps = num_epochs * -(-len(rows) // batch_size)
        optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, num_steps)
        order = derived_generator(seed, "label model")
        for _ in range(num_epochs):
            for batch in shuffled_batches(lengths, batch_size, order):
                inputs = collate([{"input_ids": rows[index]} for index in batch.tolist()])
                inputs.pop("labels")
                optimizer.zero_grad()
                loss = -model.decoder.log_prob(inputs, indicators[batch]).mean()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 100.0)
                optimizer.step()
                schedule.step()
    model.eval().save_pretrained(folder)
    return wrapped


def shuffled_batches(lengths: Sequence[int], batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Indices in batches of similar lengths, the batches in random order."""
    noise = torch.rand(len(lengths), generator=generator)
    batches = (torch.tensor(lengths) + 2 * noise).argsort().split(batch_size)
    return [batches[place] for place in torch.randperm(len(batches), generator=generator).tolist()]
