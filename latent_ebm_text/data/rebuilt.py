"""SNLI and Yahoo answers as text sets, rebuilt from the Hub.

The literature on generative models of text uses a down-sample of each (100,000 training, 10,000 validation and 10,000
test texts), whose files are not on the Hub. Here they are drawn again from the full sets, by a fixed seed: of the same
kind and size as the published ones, but not the same texts. The functions are pure: they take the Hub's splits and
give `text` columns.
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
    "rebuilt: unique premises and hypotheses of the Hub's splits, split into words, none in two splits, drawn by a "
    "fixed seed; the published down-sample has other sentences"
)
YAHOO_NOTE = (
    "rebuilt: question and best answer, in lower case and split into words, at most 200 of them, as many of each of "
    "the ten topics, train and validation drawn from the Hub's train split by a fixed seed; the published set has "
    "other documents"
)
_SEED = 0

# The conventions of the Penn Treebank, as far as one expression goes: n't and 's are words, so are marks.
_WORDS = re.compile(
    r"(?:[a-z]\.){2,}"  # u.s.
    r"|[a-z]+(?=n't\b)|n't\b|'(?:s|m|d|ll|re|ve)\b"
    r"|[^\W_]+(?:(?:[-/]|(?<=\d)[.,:](?=\d)|'(?!(?:s|m|d|ll|re|ve)\b))[^\W_]+)*"
    r"|\.{2,}|``|''|\S",
    re.IGNORECASE,
)
_OPENING_QUOTE = re.compile(r'(^|[\s(\[{])"')
_MARKUP = re.compile(r"\\[nr]|<br\s*/?>")  # how the Hub's Yahoo answers write the end of a line


def split_words(text: str) -> str:
    """Words and marks, separated by single spaces, after the conventions of the Penn Treebank."""
    return " ".join(_WORDS.findall(_OPENING_QUOTE.sub(r"\1`` ", text).replace('"', " '' ")))


def rebuild_snli(hub: Mapping[str, Dataset], sizes: Mapping[str, int] = SIZES) -> dict[str, Dataset]:
    """Sentences of SNLI, each once.

    Args:
        hub: The splits train, validation and test with the columns `premise` and `hypothesis`.
        sizes: Sentences of each split.

    Raises:
        DataError: If there are fewer.
    """
    from datasets import Dataset

    taken: set[str] = set()
    drawn = {}
    for split in ("test", "validation", "train"):  # train gives way: nothing is tested on what was trained on
        texts = (text for column in ("premise", "hypothesis") for text in _column(hub[split], column))
        unique = [text for text in dict.fromkeys(map(split_words, texts)) if text and text not in taken]
        _require(len(unique), sizes[split], f"{SNLI_HUB_ID}, {split}")
        order = np.random.default_rng(_SEED).permutation(len(unique))[: sizes[split]]
        drawn[split] = [unique[index] for index in order]
        taken.update(unique)
    return {split: Dataset.from_dict({"text": drawn[split]}) for split in sizes}


def rebuild_yahoo(hub: Mapping[str, Dataset], sizes: Mapping[str, int] = SIZES) -> dict[str, Dataset]:
    """Documents of Yahoo answers: question and best answer, at most `YAHOO_MAX_WORDS` words.

    Args:
        hub: The splits train and test with the columns `topic`, `question_title`, `question_content`, `best_answer`.
        sizes: Documents of each split, the topics sharing them equally; train and validation come of the Hub's train.

    Returns:
        Splits with the columns `text` and `topic`.

    Raises:
        DataError: If there are fewer.
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
    """Documents in a fixed pseudo-random order, topic after topic, so that any beginning has all topics equally."""
    topics = np.asarray(dataset["topic"][:])
    waiting: dict[int, list[str]] = {topic: [] for topic in np.unique(topics).tolist()}
    _require(len(topics), number, origin)
    quota = -(-number // len(waiting))
    order, found = np.random.default_rng(_SEED).permutation(len(topics)), Counter[int]()
    for start in range(0, len(order), 10_000):
        # Most of a set this large is never looked at.
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
