"""Sentences as users of Python hold them: lists, columns of tables, arrays, generators. One reader for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

from latent_ebm_text.data.cleaning import TEXT_COLUMNS
from latent_ebm_text.errors import UsageError


def each_entry(data: Any, name: str = "sentences") -> Iterator[Any]:
    """Yields the entries of data with an order, such as a list, a generator, or a column or array of any library.

    Of a table it is the only column, or the one that training would take by its name (`text`, `sentence`, `content`).
    A string in a list of its own, as in an array of shape `(n, 1)`, is taken out of it.

    Args:
        data: The data.
        name: What the data is called in messages.

    Raises:
        UsageError: If the data has no order or no entries, as a set, a dictionary or a single string, or it is unclear
            which column of a table is meant.
    """
    columns = getattr(data, "column_names", getattr(data, "columns", None))  # of datasets and Arrow, or of pandas
    if columns is not None and not isinstance(data, Mapping):
        known = list(columns) if len(columns) == 1 else [column for column in TEXT_COLUMNS if column in columns]
        if not known:
            raise UsageError(
                f"{name} must be one column, and it is unclear which of this {type(data).__name__}: "
                f"{', '.join(map(str, columns))}; give that column alone"
            )
        data = data[known[0]]
    for convert in ("to_pylist", "tolist"):  # of Arrow; of NumPy and pandas
        data = getattr(data, convert)() if hasattr(data, convert) else data
    if isinstance(data, str):
        raise UsageError(f"{name} must be a list, not one string; put the one string into a list")
    if isinstance(data, bytes | Set | Mapping) or not isinstance(data, Iterable):
        raise UsageError(f"{name} must be a list, or other data with an order, got {type(data).__name__}")
    for entry in data:
        is_wrapped = isinstance(entry, list | tuple) and len(entry) == 1 and isinstance(entry[0], str)
        yield entry[0] if is_wrapped else entry


def each_sentence(data: Any, name: str = "sentences") -> Iterator[str]:
    """Yields the entries of data as `each_entry`, all of them strings.

    Raises:
        UsageError: As `each_entry`, or if an entry is no string.
    """
    for place, entry in enumerate(each_entry(data, name), start=1):
        if not isinstance(entry, str):
            raise UsageError(f"{name} must all be strings, got also {type(entry).__name__}, at place {place}")
        yield entry
