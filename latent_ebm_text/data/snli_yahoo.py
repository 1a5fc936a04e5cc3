"""SNLI and Yahoo answers as text corpora, rebuilt from the Hub.

The literature on generative models of text uses a subset of each (100,000 training, 10,000 validation and 10,000 test
texts), whose files are not on the Hub. Here subsets of the same kind and size are drawn from the full data sets with a
fixed seed; they do not hold the same texts as the published ones. The functions are pure: they take the splits of the
Hub and return splits with a column `text`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from latent_ebm_text.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

SNLI_HUB_ID = "stanfordnlp/snli"
YAHOO_HUB_ID = "community-datasets/yahoo_answers_topics"
SIZES = {"train": 100_000, "validation": 10_000, "test": 10_000}
YAHOO_MAX_WORDS = 200
SNLI_NOTE = (
    "rebuilt: unique premises and hypotheses of the Hub's splits, split into words, none in two splits, drawn with a "
    "fixed seed; the published subset has other sentences"
)
YAHOO_NOTE = (
    "rebuilt: question and best answer, in lower case and split into at most 200 words, the ten topics equally "
    "frequent, train and validation drawn from the Hub's train split with a fixed seed; the published subset has "
    "other documents"
)
_SEED = 0

# The conventions of the Penn Treebank, approximated by one expression: n't, 's and punctuation marks are words.
_WORDS = re.compile(
    r"(?:[a-z]\.){2,}"  # u.s.
    r"|[a-z]+(?=n't\b)|n't\b|'(?:s|m|d|ll|re|ve)\b"
    r"|[^\W_]+(?:(?:[-/]|(?<=\d)[.,:](?=\d)|'(?!(?:s|m|d|ll|re|ve)\b))[^\W_]+)*"
    r"|\.{2,}|``|''|\S",
    re.IGNORECASE,
)
_OPENING_QUOTE = re.compile(r'(^|[\s(\[{])"')
_MARKUP = re.compile(r"\\[nr]|<br\s*/?>")  # line breaks in the Hub's Yahoo answers


def split_words(text: str) -> str:
    """Splits words and punctuation marks by single spaces, following the conventions of the Penn Treebank."""
    return " ".join(_WORDS.findall(_OPENING_QUOTE.sub(r"\1`` ", text).replace('"', " '' ")))


def rebuild_snli(hub: Mapping[str, Dataset], sizes: Mapping[str, int] = SIZES) -> dict[str, Dataset]:
    """Draws sentences of SNLI, each of them once.

    Args:
        hub: The splits train, validation and test with the columns `premise` and `hypothesis`.
        sizes: Number of sentences of every split.

    Raises:
        DataError: If the Hub has fewer.
    """
    from datasets import Dataset

    taken: set[str] = set()
    drawn = {}
    for split in ("test", "validation", "train"):  # train comes last, without the sentences of the others
        texts = (text for column in ("premise", "hypothesis") for text in _column(hub[split], column))
        unique = [text for text in dict.fromkeys(map(split_words, texts)) if text and text not in taken]
        _require(len(unique), sizes[split], f"{SNLI_HUB_ID}, {split}")
        order = np.random.default_rng(_SEED).permutation(len(unique))[: sizes[split]]
        drawn[split] = [unique[index] for index in order]
        taken.update(unique)
    return {split: Dataset.from_dict({"text": drawn[split]}) for split in sizes}


def rebuild_yahoo(hub: Mapping[str, Dataset], sizes: Mapping[str, int] = SIZES) -> dict[str, Dataset]:
    """Draws documents of Yahoo answers: a question and its best answer, with at most `YAHOO_MAX_WORDS` words.

    Args:
        hub: The splits train and test with the columns `topic`, `question_title`, `question_content`, `best_answer`.
        sizes: Number of documents of every split, with equally many of every topic. Train and validation come from the
            Hub's train split.

    Returns:
        Splits with the columns `text` and `topic`.

    Raises:
        DataError: If the Hub has fewer.
    """
    from datasets import Dataset

    splits = {}
    for source, parts in (("train", ("train", "validation")), ("test", ("test",))):
        rows = list(_draw_documents(hub[source], sum(sizes[part] for part in parts), f"{YAHOO_HUB_ID}, {source}"))
        for part in parts:
            own, rows = rows[: sizes[part]], rows[sizes[part] :]
            splits[part] = Dataset.from_dict({"text": [text for text, _ in own], "topic": [topic for _, topic in own]})
    return {split: splits[split] for split in sizes}


def _draw_documents(dataset: Dataset, number: int, origin: str) -> Iterator[tuple[str, int]]:
    """Yields documents in a fixed pseudo-random order that alternates topics, so any prefix is balanced."""
    topics = np.asarray(dataset["topic"][:])
    waiting: dict[int, list[str]] = {topic: [] for topic in np.unique(topics).tolist()}
    _require(len(topics), number, origin)
    quota = -(-number // len(waiting))
    order, found = np.random.default_rng(_SEED).permutation(len(topics)), Counter[int]()
    for start in range(0, len(order), 10_000):
        # Most rows of the data set are never read.
        chunk = [index for index in order[start : start + 10_000] if found[topics[index]] < quota]
        rows = dataset.select(chunk).to_dict()
        parts = zip(rows["question_title"], rows["question_content"], rows["best_answer"], strict=True)
        for topic, document in zip(rows["topic"], parts, strict=True):
            text = split_words(_MARKUP.sub(" ", " ".join(part or "" for part in document)).lower())
            if 0 < len(text.split()) <= YAHOO_MAX_WORDS and found[topic] < quota:
                waiting[topic].append(text)
                found[topic] += 1
        if all(found[topic] == quota for topic in waiting):
            break
    for topic in waiting:
        _require(found[topic], quota, f"{origin}, topic {topic}")
    documents = ((waiting[topic][place], topic) for place in range(quota) for topic in waiting)
    yield from (document for document, _ in zip(documents, range(number), strict=False))


def _column(dataset: Dataset, column: str) -> Iterator[str]:
    for batch in dataset.select_columns(column).iter(10_000):
        yield from (text for text in batch[column] if text)


def _require(available: int, wanted: int, origin: str) -> None:
    if available < wanted:
        raise DataError(
            f"{origin} has {available:,} texts that can be used, and {wanted:,} are drawn from it; is the copy whole?"
        )
