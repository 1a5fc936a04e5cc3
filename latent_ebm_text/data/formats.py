"""Formats of text files: which reader of `datasets` takes a file, with which options, and whether the file is sound.

The readers themselves would read some unsound files without a word, crash on others, and name neither file nor line.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, TextIO

import numpy as np

from latent_ebm_text.data.cleaning import TEXT_COLUMNS
from latent_ebm_text.errors import DataError, UsageError

#: The reader of `datasets` for every ending.
FORMATS = {
    ".txt": "text",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_COMPRESSIONS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
ENDINGS = f"{', '.join(FORMATS)} (texts and tables also with {', '.join(_COMPRESSIONS)} after it)"
#: From this depth on the readers give up on JSON, and at some ten thousand they crash.
MAX_JSON_DEPTH = 50
#: A text file is a table if this share of its lines has the same number of tabs.
_TABLE_SHARE = 0.95

_ENCODING = "utf-8-sig"  # UTF-8 with or without a byte order mark
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_JSON_STRING = re.compile(rb'"[^"\\\n]*(?:\\.[^"\\\n]*)*"')  # none goes over the end of a line
_CHUNK = 1 << 20  # bytes in memory at a time
#: How names of columns look, in contrast to the sentences in the first row of a table without names: three words at
#: most and a remark in brackets, or nothing, as above the row numbers that pandas writes.
_COLUMN_NAME = re.compile(r"|[^\W\d][\w/#-]*([ .:_-]+[\w/#-]+){0,2}( *\([^()]*\))?")


def ending(path: Path) -> str:
    """The ending that tells a file's format, in lower case and without that of a compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for reading, decompressed if its ending says that it is compressed.

    Raises:
        DataError: If it cannot be decompressed.
    """
    try:
        with _COMPRESSIONS.get(path.suffix.lower(), open)(path, "rb") as file:
            yield file
    except (gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError) as error:
        raise DataError(f"{path} cannot be decompressed: {error}") from error


def reader_of(path: Path, text_column: str | None, notes: list[str]) -> tuple[str, dict[str, Any]]:
    """Checks a file, and returns the name and the options of the reader of `datasets` for it.

    Args:
        path: A file with an ending of `FORMATS`.
        text_column: The column that will be used, if it was named.
        notes: Receives what the user should know about the reading.

    Raises:
        UsageError: If the lines of a text file are those of a table, and no column was named.
        DataError: If the file is empty, damaged or not UTF-8, rows of a table differ in their number of fields, or
            JSON is nested too deep.
    """
    with open_bytes(path) as file:
        if not file.read(1):
            raise DataError(f"{path} is empty; give a file with at least one sentence.")
    reader = FORMATS[ending(path)]
    options: dict[str, Any] = {}
    if reader in ("parquet", "arrow"):
        return reader, options
    with open_bytes(path) as file:
        check_utf8(file, str(path))
    if reader == "text":
        with open_bytes(path) as file:
            fields = num_fields(file)
        check_whole_lines(fields, text_column, str(path))
        options = {"encoding": _ENCODING}
        if fields > 1 and text_column != "text":
            _check_rows(path, "\t", csv.QUOTE_NONE)
            reader, options = "csv", _table_options("\t", csv.QUOTE_NONE, _numbered(fields))
    elif reader == "csv":
        options = _find_table_options(path, text_column, notes)
    else:
        with open_bytes(path) as file:
            _check_json_depth(file, str(path))
        if field := _json_field(path):
            options = {"field": field}
            notes.append(f"the rows of {path.name} are those of its key {field!r}")
    return reader, options


def check_utf8(stream: BinaryIO, origin: str) -> None:
    """Refuses bytes that are not UTF-8 text, and names the line.

    Args:
        stream: The bytes, from their beginning.
        origin: Where they come from, for the message.

    Raises:
        DataError: If they are not UTF-8, or hold NUL bytes; the message says where, and how to convert them.
    """
    offset = 0
    for number, line in enumerate(stream, start=1):
        if number == 1 and (encoding := next((name for mark, name in _MARKS.items() if line.startswith(mark)), None)):
            raise DataError(
                f"{origin} is {encoding.upper()}, not UTF-8; convert it, e.g. with iconv -f {encoding} -t utf-8."
            )
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{origin} is not UTF-8: line {number}, byte offset {offset + error.start}, holds "
                f"0x{line[error.start]:02x}; convert it, e.g. with iconv -f latin1 -t utf-8."
            ) from error
        if (place := line.find(0)) >= 0:
            encoding = "utf-16le" if (offset + place) % 2 else "utf-16be"  # as it is for text in Latin letters
            raise DataError(
                f"{origin} holds a NUL byte, which no text has: line {number}, byte offset {offset + place}; if it is "
                f"UTF-16 without a byte order mark, convert it, e.g. with iconv -f {encoding} -t utf-8."
            )
        offset += len(line)


# Text


def num_fields(lines: Iterable[bytes]) -> int:
    """The number of fields between tabs that nearly all lines have; 1 if they are no table."""
    tabs = Counter(line.count(b"\t") for line in lines if line.strip())
    most_common, times = max(tabs.items(), key=lambda item: item[1], default=(0, 0))
    return most_common + 1 if 1 < tabs.total() * _TABLE_SHARE <= times else 1


def check_whole_lines(fields: int, text_column: str | None, origin: str) -> None:
    """Raises a `UsageError` if lines are rows of a table, and it was not said which of their fields is the text."""
    if fields > 1 and text_column is None:
        raise UsageError(
            f"the lines of {origin} have {fields} fields with tabs between them: say which is the sentence with "
            f"--text_column {' or '.join(_numbered(fields))}, or --text_column text for whole lines."
        )


def _numbered(fields: int) -> list[str]:
    """Names for columns that have none."""
    return [str(number + 1) for number in range(fields)]


# Tables


def _find_table_options(path: Path, text_column: str | None, notes: list[str]) -> dict[str, Any]:
    """Finds the separator of a table, whether its fields are quoted, and whether its first row holds names."""
    separator = "\t"
    if ending(path) == ".csv":
        with _open_text(path) as lines:
            first_line = next(lines, "")
        separator = max(",;\t", key=first_line.count)
        if separator != ",":
            notes.append(f"the fields of {path.name} are separated by {separator!r}")
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL
    try:
        first, numbers_below = _check_rows(path, separator, quoting)
    except DataError as error:
        quoting = csv.QUOTE_NONE  # raw text, as most tables with tabs hold it, may begin with a quotation mark
        try:
            first, numbers_below = _check_rows(path, separator, quoting)
        except DataError:
            raise error from None
        notes.append(f"the quotation marks of {path.name} are part of the text")
    names = None
    holds_names = bool({text_column, *TEXT_COLUMNS}.intersection(first)) or all(map(_COLUMN_NAME.fullmatch, first))
    # A word above nothing but numbers is a name, and so are its neighbours, even those that look like sentences.
    if not holds_names and not any(first[column] and not _is_number(first[column]) for column in numbers_below):
        names = _numbered(len(first))
        notes.append(f"{path.name} begins without names of columns; they are called {', '.join(names)}")
    return _table_options(separator, quoting, names)


def _table_options(separator: str, quoting: int, names: list[str] | None) -> dict[str, Any]:
    """The options of the reader `csv`, with which a text such as NA or null is no missing value."""
    options = {"sep": separator, "quoting": quoting, "encoding": _ENCODING, "keep_default_na": False, "na_values": ""}
    return options if names is None else {**options, "names": names, "header": None}


def _check_rows(path: Path, separator: str, quoting: Literal[0, 3]) -> tuple[list[str], set[int]]:
    """Returns the first row of a table, and which of its fields have nothing but numbers below.

    Raises:
        DataError: If a row has more or fewer fields than the first, or there is none.
    """
    first: list[str] = []
    numbers_below: set[int] | None = None
    limit = csv.field_size_limit(sys.maxsize)  # a document may be long
    try:
        with _open_text(path) as lines:
            rows = csv.reader(lines, delimiter=separator, quoting=quoting, strict=True)
            for row in rows:
                if row and first:
                    if len(row) != len(first):
                        raise csv.Error(f"{len(row)} fields, where the first row has {len(first)}")
                    columns = range(len(row)) if numbers_below is None else numbers_below
                    numbers_below = {column for column in columns if _is_number(row[column])}
                first = first or row
    except csv.Error as error:
        raise DataError(
            f"{path}, line {rows.line_num}: {error}; put quotation marks around a field that holds {separator!r} or "
            "quotation marks, and double those."
        ) from error
    finally:
        csv.field_size_limit(limit)
    if not first:
        raise DataError(f"{path} has no rows; give a table with at least one sentence.")
    return first, numbers_below or set()


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    with open_bytes(path) as file:
        yield io.TextIOWrapper(file, encoding=_ENCODING, newline="")


# JSON


def _check_json_depth(stream: BinaryIO, origin: str) -> None:
    """Raises a `DataError` for JSON that is nested too deep for its readers."""
    depth, number = 0, 1
    while lines := stream.readlines(_CHUNK):
        codes = np.frombuffer(_JSON_STRING.sub(b"", b"".join(lines)), np.uint8)
        steps = np.isin(codes, np.frombuffer(b"[{", np.uint8)).astype(np.int64)
        steps -= np.isin(codes, np.frombuffer(b"]}", np.uint8))
        depths = depth + steps.cumsum()
        if (too_deep := np.flatnonzero(depths > MAX_JSON_DEPTH)).size:
            number += codes[: too_deep[0]].tobytes().count(b"\n")
            raise DataError(
                f"{origin}, line {number}, nests JSON more than {MAX_JSON_DEPTH} levels deep; give rows with a column "
                "of text."
            )
        depth, number = depth + int(steps.sum()), number + len(lines)


def _json_field(path: Path) -> str | None:
    """The key that holds the rows, if a file is a single object such as `{"version": 1, "data": [...]}`."""
    with _open_text(path) as file:
        first_line = next((line for line in file if line.strip()), "")
        try:
            value = json.loads(first_line)
            is_single = not any(line.strip() for line in file)
        except ValueError:  # an object over several lines, if it is one
            file.seek(0)
            is_single = True
            try:
                value = json.load(file)
            except ValueError:
                return None  # its reader says what is wrong
    if not is_single or not isinstance(value, dict) or set(TEXT_COLUMNS) & set(value):
        return None
    keys = [key for key, rows in value.items() if isinstance(rows, list) and rows and isinstance(rows[0], dict)]
    return keys[0] if len(keys) == 1 else None
