"""What a corpus is like, in the numbers from which the sizes of a model and its training follow."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from latent_ebm_text.data.cleaning import column_array

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class CorpusStatistics:
    """Numbers of a training split, in its own tokens.

    Attributes:
        num_sentences: Number of sentences.
        num_tokens: Number of predicted tokens, the ends of sentences included.
        vocab_size: Number of different tokens that occur.
        unigram_nats: What a sentence costs on average if its tokens are predicted from their frequencies alone.
    """

    num_sentences: int
    num_tokens: int
    vocab_size: int
    unigram_nats: float

    @classmethod
    def of_rows(cls, rows: Iterable[np.ndarray], num_sentences: int) -> CorpusStatistics:
        """Counts the tokens of a corpus.

        Args:
            rows: Token ids in parts of any size, without those that nothing predicts.
            num_sentences: Number of sentences.
        """
        counts = np.zeros(0, dtype=np.int64)
        for ids in rows:
            new = np.bincount(ids, minlength=len(counts))
            new[: len(counts)] += counts
            counts = new
        total = int(counts.sum())
        shares = counts[counts > 0] / total
        nats = float(-(shares * np.log(shares)).sum()) * total / num_sentences
        return cls(num_sentences, total, len(shares), nats)

    @classmethod
    def of_dataset(cls, dataset: Dataset, bos_token_id: int) -> CorpusStatistics:
        """The statistics of a tokenized split with the column `input_ids`, whose rows begin with bos."""
        import pyarrow.compute as pc

        def rows() -> Iterable[np.ndarray]:
            for table in dataset.select_columns("input_ids").with_format("arrow").iter(10_000):
                ids = pc.list_flatten(table["input_ids"]).to_numpy()
                yield ids[ids != bos_token_id]

        return cls.of_rows(rows(), len(column_array(dataset, "length")))
