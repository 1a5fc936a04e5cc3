"""Sentences from lines of text: one reader for training files, standard input and whatever else users hand over."""

from __future__ import annotations

import codecs
import io
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from latent_ebm_text.errors import DataError, UsageError


def read_sentences(file: str | Path) -> list[str]:
    """The lines of a file that are not blank, stripped, exactly as training reads them from a `.txt` file.

    A line ends at a line feed, a carriage return, or both, and at no other character. A byte order mark is dropped.

    Args:
        file: A path, or `"-"` for standard input.

    Raises:
        UsageError: If the file cannot be opened.
        DataError: If it is not UTF-8 or holds no sentence.
    """
    origin = "standard input" if file == "-" else str(file)
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise UsageError(f"{origin} cannot be read: {error.strerror}") from error
    check_utf8(io.BytesIO(data), origin)
    with io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig") as lines:
        sentences = _strip_lines(lines)
    if not sentences:
        raise DataError(f"{origin} holds no sentence")
    return sentences


def split_sentences(text: str) -> list[str]:
    """As `read_sentences`, from text in memory."""
    return _strip_lines(io.StringIO(text.removeprefix("\ufeff"), newline=None))


def _strip_lines(lines: Iterable[str]) -> list[str]:
    """Strips lines and drops the blank ones."""
    return [stripped for line in lines if (stripped := line.strip())]


def check_utf8(stream: BinaryIO, origin: str) -> None:
    """Refuses bytes that are not UTF-8, and names the line.

    Args:
        stream: The bytes, from their beginning.
        origin: Where they come from, for the message.

    Raises:
        DataError: If they are not UTF-8; the message says where, and how to convert them.
    """
    offset = 0
    for number, line in enumerate(stream, start=1):
        if number == 1 and line[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise DataError(f"{origin} is UTF-16, not UTF-8; convert it, e.g. with iconv -f utf-16 -t utf-8.")
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{origin} is not UTF-8: line {number}, byte offset {offset + error.start}, holds "
                f"0x{line[error.start]:02x}; convert it, e.g. with iconv -f latin1 -t utf-8."
            ) from error
        offset += len(line)


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
