"""The errors this library raises on purpose. Every message says what is wrong and what to do about it."""

from collections.abc import Sequence


class LatentEBMError(Exception):
    """Base of all errors raised on purpose; a recipe prints its message alone and leaves with `exit_code`."""

    exit_code = 1


class UsageError(LatentEBMError, ValueError):
    """An option, argument or path that cannot be right, found before any work is done (exit code 2)."""

    exit_code = 2


class DataError(LatentEBMError, ValueError):
    """Data that was found but cannot be used: not UTF-8, empty, one word type, an unreachable Hub (exit code 1)."""


class CheckpointError(LatentEBMError, RuntimeError):
    """A checkpoint that is incomplete, corrupt, or belongs to another model or library version (exit code 1)."""


class DivergenceError(LatentEBMError, ArithmeticError):
    """A chain, energy, loss or gradient that is not finite, stopped before it touches the weights (exit code 1).

    Attributes:
        rows: Rows of the batch whose chains are not finite; empty where it is not a matter of single rows.
    """

    def __init__(self, message: str, rows: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.rows = list(rows)
