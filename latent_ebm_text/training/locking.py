"""One run at a time in a folder."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from accelerate import Accelerator

from latent_ebm_text.errors import UsageError
from latent_ebm_text.training.stopping import failing_together

#: The lock files that this process holds: a whole run holds its folder, and so does the training within it.
_held: set[Path] = set()


@contextmanager
def only_run(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """A context in which no other run writes to a folder; every process of this run must enter it.

    The main process holds a lock of the operating system on `.lock` in the folder, which is free again when the
    process ends, however it ends. Reading the folder needs no lock.

    Raises:
        UsageError: If another run is going on in the folder, or it cannot be written to.
    """
    file = None
    with failing_together(accelerator, UsageError):
        if accelerator.is_main_process:
            file = _lock(folder, accelerator)
    if file is None:
        yield
        return
    path = Path(file.name).resolve()
    _held.add(path)
    try:
        yield
    finally:
        _held.remove(path)
        file.close()


def _lock(folder: Path, accelerator: Accelerator) -> IO[str] | None:
    """The locked file, or none if this process holds it already or the file system has no locks."""
    path = folder / ".lock"
    if path.resolve() in _held:  # a second handle would free the lock when it is closed
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"output_dir {folder} cannot be used: {error.strerror}") from error
    try:
        # A lock of the process: workers that it forks do not inherit it, and so cannot keep it when they outlive it.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise UsageError(
                f"another run is going on in output_dir {folder} ({holder}): wait for its end, or choose another "
                "output_dir"
            ) from error
        accelerator.print(f"note: {folder} cannot be locked ({error.strerror}); start no second run in it")
        return None
    with suppress(OSError):  # on a full disk the file stays empty, and is locked all the same
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
    return file
