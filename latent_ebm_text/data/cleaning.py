"""Reduces data sets to a column of stripped, non-blank text, and passes over it in bounded memory.

A corpus may be larger than memory: it is kept in memory-mapped Arrow files, which are read a batch at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from latent_ebm_text.errors import DataError, UsageError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

_TEXT_COLUMNS = ("text", "sentence", "content")
_BATCH = 10_000  # rows in memory at a time
_ROWS_PER_PROCESS = 10_000  # fewer rows take less time than starting a process


def choose_column(features: Mapping[str, Any], text_column: str | None, name: str) -> str:
    """Returns the column that holds the text, or raises a `UsageError` that lists the columns if that is unclear."""
    strings = [column for column, feature in features.items() if getattr(feature, "dtype", "").endswith("string")]
    listing = f"its columns are {', '.join(features)}; text columns: {', '.join(strings) or 'none'}"
    if text_column is not None:
        if text_column not in strings:
            problem = "is no text column" if text_column in features else "does not exist"
            raise UsageError(f"column {text_column!r} {problem} in {name}: {listing}.")
        return text_column
    if not strings:
        kinds = [
            f"{column} ({getattr(kind, 'dtype', None) or type(kind).__name__})" for column, kind in features.items()
        ]
        raise UsageError(
            f"{name} has no text column: its columns are {', '.join(kinds)}; give data with a column that holds "
            "nothing but strings."
        )
    for column in _TEXT_COLUMNS:
        if column in strings:
            return column
    if len(strings) == 1:
        return strings[0]
    raise UsageError(f"cannot tell which column of {name} is the text: {listing}; choose one with text_column.")


def clean(dataset: Dataset, column: str, origin: str, num_proc: int = 1) -> tuple[Dataset, int]:
    """Names the text column `text`, strips its values and drops blank ones; also returns how many were dropped.

    Other columns are kept, except for one named `text` that was not chosen.

    Raises:
        DataError: If no text is left.
    """
    from datasets import Value

    if column != "text":
        if "text" in dataset.column_names:
            dataset = dataset.remove_columns("text")
        dataset = dataset.rename_column(column, "text")
    if dataset.features["text"] != Value("string"):
        dataset = dataset.cast_column("text", Value("string"))
    cleaned = dataset.with_format("arrow").map(
        _strip_and_drop_blank, batched=True, num_proc=processes(dataset, num_proc), desc="Reading text"
    )
    blank = len(dataset) - len(cleaned)
    if blank == len(dataset):
        raise DataError(
            f"{origin} has no sentence ({blank:,} blank lines); give data with at least one in each split."
        )
    return cleaned.with_format(None), blank


def _strip_and_drop_blank(table: pa.Table) -> pa.Table:
    import pyarrow as pa

    texts = [(text or "").strip() for text in table["text"].to_pylist()]
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
