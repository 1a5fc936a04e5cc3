"""Stores a stream of rows on disk, in bounded memory; an interrupted reading continues where it was stopped.

Training reads the stored, memory-mapped rows like any corpus. The order of the batches therefore stays a function of
(seed, step), and a resumed run equals one that never stopped; see docs/decisions.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import tqdm

from latent_ebm_text.data.cleaning import choose_column, is_blank, joined_messages
from latent_ebm_text.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

ROWS_PER_PART = 100_000
_ROWS_FOR_COLUMNS = 100  # read where the format does not declare the columns, whose first values may be missing


def store_stream(
    stream: IterableDataset,
    folder: Path,
    *,
    text_column: str | None,
    limit: int | None,
    origin: str,
    notes: list[str] | None = None,
) -> Dataset:
    """Stores the first rows of a stream, and returns them as a memory-mapped data set with the column `text`.

    Rows are written in parts, each followed by the position of the stream after it; a part is complete once both
    exist. An interrupted reading continues after its last complete part, and a finished one is not repeated.

    Args:
        stream: Rows in a fixed order.
        folder: A folder for this stream with this column and limit only.
        text_column: The column to read, as for `load_text_dataset`.
        limit: Stop after this many rows with text; by default read all rows.
        origin: Name of the stream in messages.
        notes: Receives a note if the choice of the column was a guess.

    Raises:
        DataError: If the stream has no rows, or a value of the column is not text.
        UsageError: If the text column is missing or unclear.
    """
    from datasets import Dataset, concatenate_datasets

    folder.mkdir(parents=True, exist_ok=True)
    parts, position, finished = _stored_parts(folder)
    if not finished:
        column = choose_column(_features(stream, origin), text_column, origin, notes)
        stream = stream.select_columns(column)
        rows, usable = 0, 0
        if position is not None:
            stream.load_state_dict(position["stream"])
            rows, usable = position["rows"], position["usable"]
        with tqdm(desc=f"reading {origin}", unit="row", initial=usable, total=limit, dynamic_ncols=True) as bar:
            missing = None if limit is None else limit - usable
            for texts, is_last in _chunks(stream, column, rows, missing, origin):
                path = folder / f"part-{len(parts):05d}.arrow"
                _write(path, texts)
                new = sum(not is_blank(text) for text in texts)
                rows, usable = rows + len(texts), usable + new
                state = {"rows": rows, "usable": usable, "stream": stream.state_dict(), "finished": is_last}
                _publish(path.with_suffix(".json"), json.dumps(state).encode())
                parts.append(path)
                bar.update(new)
    stored = [Dataset.from_file(str(path)) for path in parts]
    stored = [part for part in stored if len(part)]
    if not stored:
        raise DataError(f"{origin} has no rows; give data with at least one sentence.")
    return concatenate_datasets(stored)


def _stored_parts(folder: Path) -> tuple[list[Path], dict[str, Any] | None, bool]:
    """Returns the complete parts, the position after them, and whether that is the end."""
    parts: list[Path] = []
    position: dict[str, Any] | None = None
    while (path := folder / f"part-{len(parts):05d}.arrow").exists() and path.with_suffix(".json").exists():
        position = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        parts.append(path)
    return parts, position, position is not None and position["finished"]


def _features(stream: IterableDataset, origin: str) -> dict[str, Any]:
    """Returns the columns of a stream, from its first rows if the format does not declare them."""
    from datasets import Dataset

    if stream.features is not None:
        return dict(stream.features)
    values: dict[str, Any] = {}
    for row in stream.take(_ROWS_FOR_COLUMNS):
        values |= {column: value for column, value in row.items() if values.get(column) is None}
    if not values:
        raise DataError(f"{origin} has no rows; give data with at least one sentence.")
    return dict(Dataset.from_list([values]).features)


def _chunks(
    stream: IterableDataset, column: str, rows: int, limit: int | None, origin: str
) -> Iterator[tuple[list[str], bool]]:
    """Yields the texts of every further part, with the stream at the end of it, and whether it is the last part.

    `rows` is the number of rows read before, `limit` the number of rows with text that are still to be read.
    """
    texts: list[str] = []
    usable = 0
    for row in stream if limit is None or limit > 0 else ():
        text = row[column]
        rows += 1
        if isinstance(text, list):
            text = joined_messages(text)
        if text is not None and not isinstance(text, str):
            raise DataError(
                f"row {rows:,} of {origin} holds {text!r} in column {column!r}, which is no text; clean the data, or "
                "choose another column with text_column."
            )
        texts.append(text or "")
        usable += not is_blank(texts[-1])
        if usable == limit:
            break
        if len(texts) == ROWS_PER_PART:
            yield texts, False
            texts = []
    yield texts, True


def _write(path: Path, texts: list[str]) -> None:
    from datasets import Features, Value
    from datasets.arrow_writer import ArrowWriter

    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with ArrowWriter(path=str(temporary), features=Features({"text": Value("string")})) as writer:
            for text in texts:
                writer.write({"text": text})
            writer.finalize()
        os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def _publish(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)
