"""Sentences of a corpus with the values of attributes: from its column of labels, counted, or read by its grammar."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy.typing as npt
from attribute_metrics import AttributeReader

from latent_ebm_text.commands.train_text import PreparedText
from latent_ebm_text.data.newswire import newswire_grammar
from latent_ebm_text.errors import UsageError

#: Reads an attribute from sentences and their embeddings.
Reader = Callable[[Sequence[str], npt.NDArray[Any]], list[str]]

LABEL, LENGTH = "label", "length"


class LabelledSplit:
    """Sentences, and for every attribute the value of each."""

    def __init__(self, texts: list[str], labels: dict[str, list[str]]) -> None:
        self.texts, self.labels = texts, labels

    def __len__(self) -> int:
        return len(self.texts)

    def has(self, row: int, values: Mapping[str, str] | None) -> bool:
        """Whether a sentence has all of some values; not if there are none."""
        return bool(values) and all(self.labels[name][row] == value for name, value in (values or {}).items())

    def rows(self) -> list[dict[str, str]]:
        """The values of each sentence."""
        return [{name: column[row] for name, column in self.labels.items()} for row in range(len(self))]


class LabelledText:
    """The splits of a corpus with attributes.

    `label` is the column of that name. `length` is `long` for a sentence of more words than the median of the
    training sentences, otherwise `short`. All others are those of the embedded corpus.

    Args:
        text: The corpus.
        attributes: The names of the attributes.
        label_names: Names of the labels 0, 1, ... where the column holds numbers.
    """

    def __init__(self, text: PreparedText, attributes: Sequence[str], label_names: list[str] | None = None) -> None:
        texts = {split: list(rows["text"][:]) for split, rows in text.corpus.splits.items()}
        #: What reads an attribute without error, so that it needs no judge that is trained.
        self.readers: dict[str, Reader] = {}
        if LENGTH in attributes and not text.corpus.name.startswith("grammar"):
            median = statistics.median(len(sentence.split()) for sentence in texts["train"])
            self.readers[LENGTH] = lambda texts, _: [
                "long" if len(sentence.split()) > median else "short" for sentence in texts
            ]
        elif any(name != LABEL for name in attributes):
            self.readers |= _of_grammar(text, [name for name in attributes if name != LABEL])
        self.splits: dict[str, LabelledSplit] = {}
        for split, sentences in texts.items():
            labels = {name: read(sentences, None) for name, read in self.readers.items()}
            if LABEL in attributes:
                labels[LABEL] = _labels(text, split, label_names)
            self.splits[split] = LabelledSplit(sentences, labels)

    def values(self, attribute: str) -> list[str]:
        """The values of an attribute among training sentences."""
        return sorted(set(self.splits["train"].labels[attribute]))


def _of_grammar(text: PreparedText, attributes: Sequence[str]) -> dict[str, Reader]:
    grammar = newswire_grammar()
    known = [attribute.name for attribute in grammar.attributes]
    if not text.corpus.name.startswith("grammar") or not set(attributes) <= set(known):
        raise UsageError(
            f"{text.corpus.name} has the attributes {LABEL} and {LENGTH}, and the embedded corpus {', '.join(known)}; "
            f"got {', '.join(attributes)}"
        )
    reader = AttributeReader(grammar, grammar.sample(4000, (0, 100)))

    def of(name: str) -> Reader:
        return lambda texts, _: [reader.read(sentence, name, grammar.parse(sentence)) for sentence in texts]

    return {name: of(name) for name in attributes}


def _labels(text: PreparedText, split: str, names: list[str] | None) -> list[str]:
    """The names of the labels of a split."""
    dataset = text.corpus.splits[split]
    if LABEL not in dataset.column_names:
        raise UsageError(f"{text.corpus.name} has no column `label`, whose values are what is controlled")
    labels = [value if isinstance(value, str) else int(value) for value in dataset[LABEL][:]]
    if names is not None and not all(isinstance(v, int) and 0 <= v < len(names) for v in labels):
        raise UsageError("label_names name the labels 0, 1, ..., and the column holds others: leave them out")
    return [str(value) if names is None else names[int(value)] for value in labels]
