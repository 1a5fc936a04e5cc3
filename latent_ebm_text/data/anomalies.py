"""Tasks of text anomaly detection made from corpora at hand: shuffled words, and documents of another source."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latent_ebm_text.errors import DataError, UsageError

_NUMBER = re.compile(r"[+-]?\d[\d.,:/-]*")


@dataclass(frozen=True)
class AnomalyTask:
    """Ordinary sentences and anomalies, one of the same number of words for each.

    Attributes:
        name: What the task is.
        normal: `n` ordinary sentences.
        anomalous: `n` anomalies.
    """

    name: str
    normal: list[str]
    anomalous: list[str]

    @property
    def texts(self) -> list[str]:
        """The ordinary ones, then the anomalies."""
        return [*self.normal, *self.anomalous]

    @property
    def labels(self) -> list[int]:
        """0 and 1, in the order of `texts`."""
        return [0] * len(self.normal) + [1] * len(self.anomalous)


def shuffled_words_task(sentences: Sequence[str], num_pairs: int, *, seed: int = 0) -> AnomalyTask:
    """Sentences against themselves with their words shuffled: neither length nor choice of words tells them apart.

    Args:
        sentences: To draw from; those of fewer than four words, or of one word again and again, are left out.
        num_pairs: How many.
        seed: Of the choice and of the orders.

    Raises:
        UsageError: If `num_pairs` is not positive.
        DataError: If there are too few sentences.
    """
    rng = np.random.default_rng(seed)
    eligible = [text for text in sentences if len(text.split()) >= 4 and len(set(text.split())) > 1]
    normal = _choose(eligible, num_pairs, rng, "sentences of four or more words")
    anomalous = []
    for text in normal:
        words = text.split()
        shuffled = words
        while shuffled == words:
            shuffled = [words[index] for index in rng.permutation(len(words))]
        anomalous.append(" ".join(shuffled))
    return AnomalyTask("shuffled words", normal, anomalous)


def other_source_task(
    sentences: Sequence[str], documents: Sequence[str], num_pairs: int, *, seed: int = 0
) -> AnomalyTask:
    """Sentences against the beginnings of documents of another source, cut to the same number of words.

    The documents are first written as the sentences are (`plain_words`), lest the spelling give them away.

    Args:
        sentences: Ordinary ones, to draw from.
        documents: Of the other source, to draw from.
        num_pairs: How many.
        seed: Of the choice.

    Raises:
        UsageError: If `num_pairs` is not positive.
        DataError: If there are too few sentences, or too few documents that are long enough.
    """
    rng = np.random.default_rng(seed)
    normal = _choose(list(sentences), num_pairs, rng, "sentences")
    written = [words for document in documents if (words := plain_words(document).split())]
    order = sorted(rng.permutation(len(written))[: 20 * num_pairs].tolist(), key=lambda i: len(written[i]))
    anomalous: dict[int, str] = {}
    # The longest sentence takes a document first, at random among those that are long enough.
    for place in sorted(range(num_pairs), key=lambda i: -len(normal[i].split())):
        length = len(normal[place].split())
        first = next((k for k, index in enumerate(order) if len(written[index]) >= length), len(order))
        if first == len(order):
            raise DataError(f"too few documents of {length} words or more: give more documents or fewer pairs")
        index = order.pop(int(rng.integers(first, len(order))))
        anomalous[place] = " ".join(written[index][:length])
    return AnomalyTask("another source", normal, [anomalous[place] for place in range(num_pairs)])


def plain_words(text: str) -> str:
    """A text in the spelling of Penn Treebank's usual preparation: lower case, no punctuation, `N` for numbers, and
    `<unk>` for `_UNK`."""
    words = []
    for word in text.split():
        if word == "_UNK":
            words.append("<unk>")
        elif _NUMBER.fullmatch(word):
            words.append("N")
        elif any(character.isalnum() for character in word):
            words.append(word.lower())
    return " ".join(words)


def _choose(texts: list[str], number: int, rng: np.random.Generator, kind: str) -> list[str]:
    if number < 1:
        raise UsageError(f"num_pairs must be a positive integer, got {number}")
    if len(texts) < number:
        raise DataError(f"{number} pairs need as many {kind}, but there are {len(texts)}")
    return [texts[index] for index in rng.choice(len(texts), number, replace=False)]
