"""The sizes of a model and of its training that follow from the corpus and the device, each with its reason.

Measured on corpora of 5,000 to 40,000 sentences, see docs/results.md; the rules between and beyond are interpolations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from latent_ebm_text.data.statistics import CorpusStatistics

#: The share of a sentence's cost under its unigram frequencies that the latent is to carry,
_INFORMATION_SHARE = 0.2
#: and the most nats for each dimension of the latent, beyond which the prior no longer keeps up.
_NATS_PER_DIMENSION = 0.625


@dataclass(frozen=True)
class Choice:
    """A setting that follows from the corpus.

    Attributes:
        value: The setting.
        reason: What it follows from, for people.
    """

    value: Any
    reason: str


def choose_sizes(
    corpus: CorpusStatistics, *, on_gpu: bool, latent_dim: int, hidden_size: int | None = None
) -> dict[str, Choice]:
    """Every setting that can be `auto`, by its name.

    Args:
        corpus: The training split.
        on_gpu: Whether it is trained on a GPU.
        latent_dim: Size of the latent.
        hidden_size: Width of the decoder, if it is given.
    """
    tokens = f"{corpus.num_tokens:,} tokens"
    device = "a GPU" if on_gpu else "a CPU"
    width = (512 if on_gpu else 256) if corpus.num_tokens < 1_000_000 else (1024 if on_gpu else 512)
    dropout = next(
        rate for limit, rate in ((300_000, 0.5), (2_000_000, 0.4), (10_000_000, 0.2), (float("inf"), 0.1))
        if corpus.num_tokens < limit
    )  # fmt: skip
    epochs = min(40.0, max(2.0, round(12 * (200_000 / corpus.num_tokens) ** (1 / 3))))
    batch = next(
        size for limit, size in ((5_000, 32), (100_000, 64), (float("inf"), 128)) if corpus.num_sentences < limit
    )  # fmt: skip
    share = _INFORMATION_SHARE * corpus.unigram_nats
    most = _NATS_PER_DIMENSION * latent_dim
    return {
        "hidden_size": Choice(width, f"{tokens}, {device}"),
        "embedding_size": Choice((hidden_size or width) // 2, "half of hidden_size"),
        "dropout": Choice(dropout, tokens),
        "num_epochs": Choice(epochs, tokens),
        "train_batch_size": Choice(batch, f"{corpus.num_sentences:,} sentences"),
        "information": Choice(
            float(f"{min(share, most):.2g}"),
            f"{100 * _INFORMATION_SHARE:.0f} % of the {corpus.unigram_nats:.0f} nats that a sentence costs under the "
            f"frequencies of its tokens, and at most {_NATS_PER_DIMENSION} nats for each of {latent_dim} dimensions",
        ),
    }
