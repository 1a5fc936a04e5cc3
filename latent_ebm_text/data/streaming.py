"""A stream of rows, stored on disk once: read in order, in bounded memory, from where an earlier reading was stopped.

Training reads the stored rows, memory-mapped, as it reads any corpus. So the order of the batches stays a function of
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

from latent_ebm_text.data.cleaning import choose_column
from latent_ebm_text.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

ROWS_PER_PART = 100_000


def store_stream(
    stream: IterableDataset, folder: Path, *, text_column: str | None, limit: int | None, origin: str
) -> Dataset:
    """The first rows of a stream, as a memory-mapped data set with the column `text`.

    Rows are written in parts, each with the position of the stream after it; a part counts once both are there. What
    was stopped goes on after its last part, what is finished is not read again.

    Args:
        stream: Rows in a fixed order.
        folder: Holds this stream with this column and limit, and nothing else.
        text_column: As of `load_text_dataset`.
        limit: Read on until there are so many rows with text; all by default.
        origin: What the stream is called in messages.

    Raises:
        DataError: A stream without rows, or with a text that is none.
        UsageError: A column that cannot be the text's.
    """
    from datasets import Dataset, concatenate_datasets

    folder.mkdir(parents=True, exist_ok=True)
    parts, position, finished = _stored_parts(folder)
    if not finished:
        column = choose_column(_features(stream, origin), text_column, origin)
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
                new = sum(map(is_usable, texts))
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
    """The parts that are complete, the position after them, and whether that is the end."""
    parts: list[Path] = []
    position: dict[str, Any] | None = None
    while (path := folder / f"part-{len(parts):05d}.arrow").exists() and path.with_suffix(".json").exists():
        position = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        parts.append(path)
    return parts, position, position is not None and position["finished"]


def _features(stream: IterableDataset, origin: str) -> dict[str, Any]:
    """The columns of a stream; JSON tells them only by its rows."""
    from datasets import Dataset

    if stream.features is not None:
        return dict(stream.features)
    first = list(stream.take(1))
    if not first:
        raise DataError(f"{origin} has no rows; give data with at least one sentence.")
    return dict(Dataset.from_list(first).features)


def _chunks(
    stream: IterableDataset, column: str, rows: int, limit: int | None, origin: str
) -> Iterator[tuple[list[str], bool]]:
    """The texts of each part to come, and whether it is the last. The stream stands where the part ends.

    rows: read before. limit: how many with text are still to be read.
    """
    texts: list[str] = []
    usable = 0
    for row in stream if limit is None or limit > 0 else ():
        text = row[column]
        rows += 1
        if text is not None and not isinstance(text, str):
            raise DataError(
                f"row {rows:,} of {origin} holds {text!r} in column {column!r}, which is no text; clean the data, or "
                "choose another column with text_column."
            )
        texts.append(text or "")
        usable += is_usable(texts[-1])
        if usable == limit:
            break
        if len(texts) == ROWS_PER_PART:
            yield texts, False
            texts = []
    yield texts, True


def is_usable(text: str) -> bool:
    """Whether a text is more than white space; cleaning drops the others."""
    return bool(text.strip())


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
