"""Reads local files and folders of text with `datasets`."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latent_ebm_text.data.cache import cached_path, file_versions
from latent_ebm_text.data.formats import ENDINGS, FORMATS, ending, reader_of
from latent_ebm_text.data.splits import SPLIT_ALIASES, SPLITS
from latent_ebm_text.errors import DataError, UsageError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_SHARD = re.compile(r"-\d+-of-\d+(-\w+)?$")


def read_local(
    path: Path,
    name: str,
    notes: list[str],
    *,
    text_column: str | None = None,
    train_split: str | None = None,
    streaming: bool = False,
) -> tuple[dict[str, Any], list[Any]]:
    """Reads a file or folder through the cache of `datasets`, which never writes into the user's folder.

    Args:
        path: The file or folder.
        name: What it is called in messages.
        notes: Receives what the user should know about the reading.
        text_column: The column that will be used, if it was named.
        train_split: The split to train on, if it is not the one called train.
        streaming: Whether to give streams of rows.

    Returns:
        The splits, `IterableDataset`s if `streaming`, and a JSON-able identity of the files.

    Raises:
        UsageError: If the path has another ending, the splits of the folder are missing or unclear, or the lines of a
            text file are those of a table and no column was named.
        DataError: If a file is empty, damaged, not UTF-8 or unreadable.
    """
    import datasets

    if path.is_dir():
        files = _find_split_files(path, name, train_split, notes)
    elif ending(path) in FORMATS:
        files = {"train": [path]}
    else:
        given = f"the ending {path.suffix!r}" if path.suffix else "no ending"
        raise UsageError(f"{name} has {given}; files must be one of {ENDINGS}.")

    splits: dict[str, Dataset | IterableDataset] = {}
    for split, paths in files.items():
        try:
            readers = [reader_of(file, text_column, notes) for file in paths]
        except OSError as error:
            raise UsageError(f"{error.filename} cannot be read: {error.strerror}") from error
        reader, options = readers[0]
        if any(other != readers[0] for other in readers):
            raise DataError(f"the files of {split} in {name} differ in their format; write them in one way.")
        if streaming:
            options["streaming"] = True
        patterns = [glob.escape(str(file.absolute())) for file in paths]
        with naming(f"{', '.join(map(str, paths))} cannot be read as {reader}"):
            # load_from_disk would make `map` write its cache files into the user's folder.
            splits[split] = datasets.load_dataset(
                reader,
                data_files={split: patterns},
                split=split,
                cache_dir=str(cached_path("files", file_versions(paths))),
                **options,
            )
    return splits, file_versions(file for paths in files.values() for file in paths)


@contextmanager
def naming(problem: str) -> Iterator[None]:
    """Turns errors of `datasets` and its readers into a `DataError` that begins with `problem`."""
    import datasets
    import pyarrow as pa

    try:
        yield
    except (datasets.exceptions.DatasetsError, pa.ArrowException, ValueError, TypeError, OSError) as error:
        if isinstance(error, DataError | UsageError):
            raise
        raise DataError(f"{problem}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """Returns the first line of the message of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _find_split_files(folder: Path, name: str, train_split: str | None, notes: list[str]) -> dict[str, list[Path]]:
    """Finds the data files of every split: `train.txt`, `ptb.train.txt`, `train-00000-of-00002.parquet`, or files in a
    sub-folder `train/`; all of them also in `data/`. The name of a part, such as `train.10000.txt`, counts where the
    whole is missing."""
    entries = [entry for entry in sorted([*folder.iterdir(), *folder.glob("data/*")]) if not _is_hidden(entry)]
    found: dict[str, list[Path]] = {}
    parts: dict[str, list[Path]] = {}
    for entry in entries:
        words = _words(entry)
        split = SPLIT_ALIASES.get(next((word for word in reversed(words) if not word.isdigit()), ""))
        if split is None:
            continue
        if entry.is_dir() or ending(entry) in FORMATS:
            files = _data_files(entry) if entry.is_dir() else [entry]
            (parts if words[-1].isdigit() else found).setdefault(split, []).extend(files)
        else:
            notes.append(f"{entry.name} is ignored: data files end in {ENDINGS}")
    for split, files in parts.items():
        if split in found:
            notes.append(f"{', '.join(file.name for file in files)} is ignored beside {found[split][0].name}")
    found = {**parts, **found}
    if not found and (saved := sorted(folder.glob("data-*.arrow"))):
        return {"train": saved}  # a single Dataset written by save_to_disk

    listing = ", ".join(entry.name for entry in entries[:10] if entry.parent == folder) or "nothing"
    if not found or ("train" not in found and train_split is None):
        raise UsageError(
            f"folder {name} has no train split (found: {listing}); add train{'|'.join(FORMATS)}, "
            "name a single file instead, or say which split to train on with train_split."
        )
    for split, paths in found.items():
        in_one_place = len({file.parent for file in paths}) == len({file.suffix for file in paths}) == 1
        belong_together = paths[0].parent.name.lower() in SPLIT_ALIASES or all(_SHARD.search(_stem(p)) for p in paths)
        if not paths or not in_one_place or (len(paths) > 1 and not belong_together):
            candidates = ", ".join(str(file.relative_to(folder)) for file in paths) or "an empty folder"
            raise UsageError(f"folder {name} must have one file or one set of shards for {split}, not {candidates}.")
    return {split: found[split] for split in SPLITS if split in found}


def _is_hidden(entry: Path) -> bool:
    """Whether the system or an editor made a file, as `._train.txt` and `.DS_Store`."""
    return entry.name.startswith(".")


def _stem(entry: Path) -> str:
    """The name of a file without the endings of its format and compression."""
    return entry.name[: entry.name.lower().rindex(ending(entry))] if ending(entry) in FORMATS else entry.stem


def _words(entry: Path) -> list[str]:
    """The words of the name of a file or folder, without the number of a shard."""
    return re.split(r"[._]", _SHARD.sub("", entry.name if entry.is_dir() else _stem(entry)).lower())


def _data_files(folder: Path) -> list[Path]:
    """Returns the data files in a split's folder, without the .json files that save_to_disk adds."""
    saved = sorted(folder.glob("data-*.arrow"))
    return saved or sorted(file for file in folder.iterdir() if ending(file) in FORMATS and not _is_hidden(file))
