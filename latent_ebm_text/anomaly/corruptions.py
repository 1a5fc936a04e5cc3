"""Tasks of text anomaly detection, made from available corpora: shuffled words, and documents of another source."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from latent_ebm_text.data.inputs import each_sentence
from latent_ebm_text.errors import DataError, UsageError

_NUMBER = re.compile(r"[+-]?\d[\d.,:/-]*")


@dataclass(frozen=True)
class AnomalyTask:
    """Pairs of an ordinary sentence and an anomaly with the same number of words.

    Attributes:
        name: The name of the task.
        normal: `n` ordinary sentences.
        anomalous: `n` anomalies.
    """

    name: str
    normal: list[str]
    anomalous: list[str]

    @property
    def texts(self) -> list[str]:
        """The ordinary sentences, then the anomalies."""
        return [*self.normal, *self.anomalous]

    @property
    def labels(self) -> list[int]:
        """0 for ordinary sentences and 1 for anomalies, in the order of `texts`."""
        return [0] * len(self.normal) + [1] * len(self.anomalous)


def shuffled_words_task(sentences: Iterable[str], num_pairs: int, *, seed: int = 0) -> AnomalyTask:
    """Sentences against themselves with their words shuffled: neither length nor vocabulary tells them apart.

    Args:
        sentences: The sentences to draw from. Those of fewer than four words, or with only one distinct word, are left
            out.
        num_pairs: Number of pairs.
        seed: Seed of the choice and of the shuffling.

    Raises:
        UsageError: If `num_pairs` is not positive.
        DataError: If there are too few sentences.
    """
    rng = np.random.default_rng(seed)
    eligible = [text for text in each_sentence(sentences) if len(text.split()) >= 4 and len(set(text.split())) > 1]
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
    sentences: Iterable[str], documents: Iterable[str], num_pairs: int, *, seed: int = 0
) -> AnomalyTask:
    """Sentences against the beginnings of documents of another source, cut to the same number of words.

    The documents are first brought into the spelling of the sentences (`plain_words`), which would otherwise give them
    away.

    Args:
        sentences: The ordinary sentences to draw from.
        documents: The documents of the other source to draw from.
        num_pairs: Number of pairs.
        seed: Seed of the choice.

    Raises:
        UsageError: If `num_pairs` is not positive.
        DataError: If there are too few sentences, or too few documents that are long enough.
    """
    rng = np.random.default_rng(seed)
    normal = _choose(list(each_sentence(sentences)), num_pairs, rng, "sentences")
    written = [words for document in each_sentence(documents, "documents") if (words := plain_words(document).split())]
    order = sorted(rng.permutation(len(written))[: 20 * num_pairs].tolist(), key=lambda i: len(written[i]))
    anomalous: dict[int, str] = {}
    # The longest sentence chooses first, at random, before shorter ones use up the documents that are long enough.
    for place in sorted(range(num_pairs), key=lambda i: -len(normal[i].split())):
        length = len(normal[place].split())
        first = next((k for k, index in enumerate(order) if len(written[index]) >= length), len(order))
        if first == len(order):
            raise DataError(f"too few documents of {length} words or more: give more documents or fewer pairs")
        index = order.pop(int(rng.integers(first, len(order))))
        anomalous[place] = " ".join(written[index][:length])
    return AnomalyTask("another source", normal, [anomalous[place] for place in range(num_pairs)])


def plain_words(text: str) -> str:
    """A text in the spelling of the usual Penn Treebank corpus.

    It is lower-cased and without punctuation, with `N` for numbers and `<unk>` for `_UNK`.
    """
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
