"""The errors that this library raises on purpose. Every message says what is wrong and what to do about it."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class LatentEBMError(Exception):
    """The base class of all errors raised on purpose. Commands print only its message and exit with `exit_code`."""

    exit_code = 1


class UsageError(LatentEBMError, ValueError):
    """An option, argument or path is invalid; raised before any work is done (exit code 2)."""

    exit_code = 2


class DataError(LatentEBMError, ValueError):
    """Data cannot be used: it is empty, damaged or not UTF-8, or the Hub cannot be reached (exit code 1)."""


class CheckpointError(LatentEBMError, RuntimeError):
    """A checkpoint is incomplete or corrupt, or belongs to another model or library version (exit code 1)."""


class DivergenceError(LatentEBMError, ArithmeticError):
    """A chain, energy, loss or gradient is not finite; raised before it reaches the weights (exit code 1).

    Attributes:
        rows: Rows of the batch whose chains are not finite; empty if the error does not concern single rows.
    """

    def __init__(self, message: str, rows: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.rows = list(rows)


class HubError(LatentEBMError, OSError):
    """The Hub could not be reached, refused the request or broke off; no local file was changed (exit code 1)."""


def in_one_line(error: BaseException, limit: int = 300) -> str:
    """The message of an error of another library on one line, cut at `limit` characters; its type if it has none."""
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) <= limit else line[:limit] + "..."


@contextmanager
def reading(place: Any) -> Iterator[None]:
    """Turns what follows from wrong content of files, such as text in place of a number, into a `DataError`.

    Args:
        place: The file or folder that the error names.
    """
    try:
        yield
    except LatentEBMError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise DataError(
            f"{place} does not hold what this library writes there ({type(error).__name__}: {in_one_line(error)})"
        ) from error


def some_of(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def require_positive(name: str, value: float) -> None:
    """Raise a `UsageError` that names the field unless `value` is finite and greater than zero."""
    if not 0 < value < math.inf:
        raise UsageError(f"{name} must be positive and finite, got {value}")


def require_temperature(name: str, value: float) -> None:
    """Raise a `UsageError` that names the field unless logits can be divided by this temperature."""
    require_positive(name, value)
    if not 1e-6 <= value <= 1e6:
        raise UsageError(
            f"{name} must be between 1e-06 and 1e+06, got {value}; for the most probable tokens decode greedily"
        )


def require_in_interval(name: str, value: float, low: float, high: float) -> None:
    """Raise a `UsageError` that names the field unless `low <= value <= high`."""
    if not low <= value <= high:
        raise UsageError(f"{name} must be in [{low}, {high}], got {value}")
