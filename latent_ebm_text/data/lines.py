"""Sentences from lines of text: one reader for training files, standard input and whatever else users hand over."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path

from latent_ebm_text.data.cleaning import choose_column, clean, is_blank, iterate_texts
from latent_ebm_text.data.files import read_local
from latent_ebm_text.data.formats import (
    FORMATS,
    check_utf8,
    check_whole_lines,
    ending,
    num_fields,
    open_bytes,
)
from latent_ebm_text.errors import DataError, UsageError


def read_sentences(file: str | Path, *, text_column: str | None = None) -> list[str]:
    """The sentences of a file as training reads them: stripped, without blank ones.

    A line of text ends at a line feed, a carriage return, or both, and at no other character. A byte order mark is
    dropped. The ending of a file tells whether it is a table, JSON or compressed; with any other it is text.

    Args:
        file: A path, or `"-"` for text on standard input.
        text_column: The column of a file that holds the sentences, as for `load_text_dataset`.

    Raises:
        UsageError: If the file cannot be opened, or its column is missing or unclear.
        DataError: If it is damaged, not UTF-8, or holds no sentence.
    """
    path, origin = Path(file), "standard input" if file == "-" else str(file)
    if file != "-" and (FORMATS.get(ending(path), "text") != "text" or text_column not in (None, "text")):
        return _read_column(path, text_column)
    if text_column not in (None, "text"):
        raise UsageError("text_column is for files; cut the field out of standard input, e.g. with cut -f 2")
    try:
        with nullcontext(sys.stdin.buffer) if file == "-" else open_bytes(path) as stream:
            data = stream.read()
    except OSError as error:
        raise UsageError(f"{origin} cannot be read: {error.strerror}") from error
    check_utf8(io.BytesIO(data), origin)
    check_whole_lines(num_fields(io.BytesIO(data)), text_column, origin)
    with io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig") as lines:
        sentences = _strip_lines(lines)
    if not sentences:
        raise DataError(f"{origin} holds no sentence")
    return sentences


def _read_column(path: Path, text_column: str | None) -> list[str]:
    splits, _ = read_local(path, str(path), [], text_column=text_column)
    column = choose_column(splits["train"].features, text_column, str(path))
    return list(iterate_texts(clean(splits["train"], column, str(path), [])[0]))


def split_sentences(text: str) -> list[str]:
    """As `read_sentences`, from text in memory."""
    return _strip_lines(io.StringIO(text.removeprefix("\ufeff"), newline=None))


def _strip_lines(lines: Iterable[str]) -> list[str]:
    """Strips lines and drops the blank ones."""
    return [line.strip() for line in lines if not is_blank(line)]


def check_unicode(texts: Iterable[str]) -> None:
    """Refuses strings that no text file can hold: those with half of a surrogate pair, as wrong decoding leaves them.

    Raises:
        UsageError: If there is one; the message gives its number.
    """
    for number, text in enumerate(texts, start=1):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UsageError(
                f"sentence {number} holds {text[error.start]!r}, half of a surrogate pair, which is no character: its "
                "bytes were not UTF-8, or were decoded wrongly"
            ) from error
