"""Files and folders that are replaced as a whole, so that a kill at any moment leaves the old or the new one."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from latent_ebm_text.errors import CheckpointError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux


def replace_text(path: Path, text: str) -> None:
    """Writes a text file aside and renames it into place."""
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.write_text(text, encoding="utf-8")
    flush(temporary)
    temporary.replace(path)


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A folder to write to, which takes the place of `folder` at the end of the context.

    Files of the old folder that are not written again, such as a card that was edited by hand, are kept. Where the
    system cannot exchange two folders in one operation, there is none for an instant between two renames.

    Raises:
        CheckpointError: If the folder cannot be written; the old one is then unchanged.
    """
    folder = folder.resolve()  # a link keeps its target
    temporary = folder.with_name(f".tmp-{folder.name}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
        temporary.mkdir(parents=True)
        yield temporary
        for path in folder.iterdir() if folder.is_dir() else ():
            if not (temporary / path.name).exists():
                copy = shutil.copytree if path.is_dir() else shutil.copy2
                copy(path, temporary / path.name)
        for path in (*temporary.rglob("*"), temporary):
            flush(path)
        if folder.is_dir():
            _exchange(temporary, folder)
        else:
            os.rename(temporary, folder)
        flush(folder.parent)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {folder}: {error}; what was there is unchanged") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _exchange(first: Path, second: Path) -> None:
    """Swaps the names of two folders, in one operation where the system has one."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    names = os.fsencode(first), os.fsencode(second)
    if rename is not None and rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return
    aside = second.with_name(f".old-{second.name}")
    os.rename(second, aside)
    os.rename(first, second)
    os.rename(aside, first)


def flush(path: Path) -> None:
    """Waits until a file, or the entries of a folder, are on the disk and not only in a cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
