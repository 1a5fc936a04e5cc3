"""Reduces data sets to a column of stripped, non-blank text, and passes over it in bounded memory.

A corpus may be larger than memory: it is kept in memory-mapped Arrow files, which are read a batch at a time.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from latent_ebm_text.errors import DataError, UsageError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

#: Columns that are taken for the text where none is named, the most likely one first.
TEXT_COLUMNS = ("text", "sentence", "content", "messages", "conversations")
_MESSAGE_KEYS = ("content", "value")  # where a message of a conversation has its text
_BATCH = 10_000  # rows in memory at a time
_ROWS_PER_PROCESS = 10_000  # fewer rows take less time than starting a process


def is_blank(text: str) -> bool:
    """Whether there is nothing to see in a text: only white space, control and format characters."""
    if text[:1].isalnum():  # as most texts begin
        return False
    return all(character.isspace() or unicodedata.category(character) in ("Cc", "Cf") for character in text)


def choose_column(
    features: Mapping[str, Any], text_column: str | None, name: str, notes: list[str] | None = None
) -> str:
    """Returns the column that holds the text: strings, or conversations, which are lists of messages.

    Args:
        features: The columns.
        text_column: The column that was asked for.
        name: What the data is called in messages.
        notes: Receives a note if the choice was a guess.

    Raises:
        UsageError: If there is no such column or no column of text, or it is unclear which one is meant; the message
            lists the columns.
    """
    texts = [column for column, feature in features.items() if _is_string(feature) or _message_key(feature)]
    listing = f"its columns are {', '.join(features)}; text columns: {', '.join(texts) or 'none'}"
    if text_column is not None:
        if text_column not in texts:
            problem = "is no text column" if text_column in features else "does not exist"
            raise UsageError(f"column {text_column!r} {problem} in {name}: {listing}.")
        return text_column
    if not texts:
        kinds = [f"{column} ({_kind(feature)})" for column, feature in features.items()]
        raise UsageError(
            f"{name} has no text column: its columns are {', '.join(kinds)}; give data with a column that holds "
            "nothing but strings."
        )
    known = next((column for column in TEXT_COLUMNS if column in features), None)
    if known is not None and known not in texts:
        raise UsageError(
            f"column {known!r} of {name} holds no text ({_kind(features[known])}): {listing}; choose one with "
            "text_column."
        )
    if known is None and len(texts) > 1:
        raise UsageError(f"cannot tell which column of {name} is the text: {listing}; choose one with text_column.")
    column = known or texts[0]
    others = [other for other in features if other != column]
    if notes is not None and others and column != "text":
        notes.append(f"the text is column {column!r}; other columns: {', '.join(others)}")
    if notes is not None and _message_key(features[column]):
        notes.append(f"the texts are the messages of each conversation in {column!r}, one a line, without their roles")
    return column


def _kind(feature: Any) -> str:
    return getattr(feature, "dtype", None) or type(feature).__name__


def _is_string(feature: Any) -> bool:
    """Whether a column holds strings, in whichever way Arrow stores them."""
    import pyarrow as pa
    from datasets import Value

    return isinstance(feature, Value) and feature.pa_type in (pa.string(), pa.large_string(), pa.string_view())


def _message_key(feature: Any) -> str | None:
    """The key of the texts if a column holds lists of messages, such as `[{"role": "user", "content": "Hi"}]`."""
    message = getattr(feature, "feature", None)
    keys = [key for key in _MESSAGE_KEYS if isinstance(message, dict) and _is_string(message.get(key))]
    return keys[0] if keys else None


def joined_messages(messages: Iterable[Mapping[str, str | None]] | None) -> str:
    """The texts of the messages of a conversation, one a line."""
    texts = (next((message[key] for key in _MESSAGE_KEYS if message.get(key)), None) for message in messages or ())
    return "\n".join(text for text in texts if text)


def clean(dataset: Dataset, column: str, origin: str, notes: list[str], num_proc: int = 1) -> tuple[Dataset, int]:
    """Names the text column `text`, strips its values and drops blank ones; also returns how many were dropped.

    Other columns are kept, except for one named `text` that was not chosen.

    Args:
        dataset: The rows.
        column: The column that `choose_column` chose.
        origin: Name of the data in messages.
        notes: Receives a note if most texts are blank and other columns hold text.
        num_proc: Number of processes for a large data set.

    Raises:
        DataError: If no text is left.
    """
    from datasets import Features, Value

    others = [name for name, feature in dataset.features.items() if name != column and _is_string(feature)]
    if column != "text":
        if "text" in dataset.column_names:
            dataset = dataset.remove_columns("text")
        dataset = dataset.rename_column(column, "text")
    if _message_key(dataset.features["text"]):
        features = Features({**dataset.features, "text": Value("string")})
        dataset = dataset.map(_join_messages, input_columns="text", features=features, desc="Joining messages")
    if dataset.features["text"] != Value("string"):
        dataset = dataset.cast_column("text", Value("string"))
    cleaned = dataset.with_format("arrow").map(
        _strip_and_drop_blank, batched=True, num_proc=processes(dataset, num_proc), desc="Reading text"
    )
    blank = len(dataset) - len(cleaned)
    choice = f"; its other text columns are {', '.join(others)}: choose one with text_column" if others else ""
    if blank == len(dataset):
        raise DataError(
            f"{origin} has no sentence ({blank:,} blank lines); give data with at least one in each split{choice}."
        )
    if others and blank > len(dataset) / 2:
        notes.append(f"column {column!r} of {origin} is blank in {blank:,} of {len(dataset):,} rows{choice}")
    return cleaned.with_format(None), blank


def _join_messages(messages: list[Mapping[str, str | None]]) -> dict[str, str]:
    return {"text": joined_messages(messages)}


def _strip_and_drop_blank(table: pa.Table) -> pa.Table:
    import pyarrow as pa

    texts = ["" if text is None or is_blank(text) else text.strip() for text in table["text"].to_pylist()]
    position, field = table.column_names.index("text"), table.schema.field("text")
    return table.set_column(position, field, pa.array(texts, field.type)).filter(
        pa.array(map(bool, texts), pa.bool_())
    )


def processes(dataset: Dataset, num_proc: int) -> int | None:
    """Returns how many processes `map` should start for a data set; `None`, for none, if it is small."""
    useful = min(num_proc, len(dataset) // _ROWS_PER_PROCESS)
    return useful if useful > 1 else None


def iterate_texts(dataset: Dataset) -> Iterator[str]:
    """Yields the texts of a cleaned data set, with one batch in memory at a time."""
    for table in dataset.select_columns("text").with_format("arrow").iter(_BATCH):
        yield from table["text"].to_pylist()


def column_array(dataset: Dataset, column: str) -> npt.NDArray[Any]:
    """Returns a column of numbers as an array, without a Python object for every number."""
    tables = dataset.select_columns(column).with_format("arrow").iter(_BATCH)
    return np.concatenate([table[column].to_numpy() for table in tables])


def fingerprint(splits: Mapping[str, Dataset]) -> str:
    """Returns the first 16 hex digits of the SHA-256 over the texts of all splits, in the given order."""
    digest = hashlib.sha256()
    for split, dataset in splits.items():
        digest.update(f"{split} {len(dataset)}\n".encode())
        for text in iterate_texts(dataset):
            encoded = text.encode()
            digest.update(b"%d " % len(encoded) + encoded)
    return digest.hexdigest()[:16]


def repetition_notes(splits: Mapping[str, Dataset]) -> list[str]:
    """Says of every other split how many of its texts also stand in train, where that is a tenth of them or more."""
    held_out = {text for split, dataset in splits.items() if split != "train" for text in iterate_texts(dataset)}
    repeated = held_out.intersection(iterate_texts(splits["train"]))
    notes = []
    for split, dataset in splits.items():
        number = sum(text in repeated for text in iterate_texts(dataset))
        if split != "train" and 10 * number >= len(dataset):
            notes.append(
                f"{number:,} of {len(dataset):,} {split} sentences also stand in train: figures on {split} say little "
                "of new text; leave repeated sentences out"
            )
    return notes
