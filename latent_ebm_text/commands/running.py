"""How a command leaves its process: its exit code, and one line on stderr for what went wrong."""

import errno
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from latent_ebm_text.errors import LatentEBMError, in_one_line


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Runs `main` and leaves the process with its exit code; an error raised on purpose becomes one line on stderr."""
    try:
        exit_code = main()
        sys.stdout.flush()
    except LatentEBMError as error:
        print(f"error: {error}", file=sys.stderr)
        exit_code = error.exit_code
    except BrokenPipeError:  # whoever reads the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        exit_code = 128 + signal.SIGPIPE
    except Exception as error:
        line = _describe_circumstance(error)
        if line is None:  # a mistake of this library, whose traceback helps to find it
            raise
        print(f"error: {line}", file=sys.stderr)
        exit_code = 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        exit_code = 130  # what shells report for a process ended by SIGINT
    sys.exit(exit_code)


def _describe_circumstance(error: Exception) -> str | None:
    """What the machine has refused and what to do, or `None` if it is not the machine's doing."""
    name = type(error).__name__  # by its name, because to import torch or safetensors takes long
    if isinstance(error, MemoryError) or name == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error):
        said = f"{in_one_line(error)}; " if str(error) else ""
        return f"{said}the memory is too small: choose smaller sizes, of the model or of the batches"
    if "No space left" in str(error) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return f"{in_one_line(error)}; make room and run again"
    if isinstance(error, OSError) and error.filename is not None:
        refused = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        return f"{error.filename} {'may not be read or written' if refused else 'cannot be used'}: {error.strerror}"
    is_machine = isinstance(error, OSError | ImportError) or name == "SafetensorError"
    return in_one_line(error) if is_machine else None
