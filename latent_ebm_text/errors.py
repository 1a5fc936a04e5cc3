"""The errors this library raises on purpose. Every message says what is wrong and what to do about it."""

import errno
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn


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


class HubError(LatentEBMError, OSError):
    """The Hub could not be reached, refused, or broke off; nothing local was changed (exit code 1)."""


def run_recipe(main: Callable[[], int | None]) -> NoReturn:
    """Run `main` and leave the process with its exit code; an error raised on purpose becomes one line on stderr."""
    try:
        exit_code = main()
    except LatentEBMError as error:
        print(f"error: {error}", file=sys.stderr)
        exit_code = error.exit_code
    except PermissionError as error:
        print(f"error: {error.filename or error} may not be read or written: {error.strerror}", file=sys.stderr)
        exit_code = 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"error: {error}; make room and run again", file=sys.stderr)
        exit_code = 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        exit_code = 130  # what shells report for a process ended by SIGINT
    sys.exit(exit_code)
