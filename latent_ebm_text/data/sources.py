"""Reads texts from files and folders and from the Hugging Face Hub, as whole data sets or as streams."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latent_ebm_text.data.cache import cached_path, file_versions
from latent_ebm_text.data.lines import check_utf8
from latent_ebm_text.data.splits import SPLIT_ALIASES, SPLITS
from latent_ebm_text.errors import DataError, UsageError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

PTB_HUB_ID = "ptb-text-only/ptb_text_only"
# The main branch holds a loading script, which `datasets` refuses from version 4 on; this branch has the rows as
# parquet.
PTB_REVISION = "refs/convert/parquet"

_FORMATS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet", ".arrow": "arrow"}
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_SHARD = re.compile(r"-\d+-of-\d+(-\w+)?$")


def read_local(
    path: Path, name: str, train_split: str | None, notes: list[str], *, streaming: bool = False
) -> tuple[dict[str, Any], list[Any]]:
    """Reads a file or folder through the cache of `datasets`, which never writes into the user's folder.

    Returns:
        The splits, `IterableDataset`s if `streaming`, and a JSON-able identity of the files.

    Raises:
        UsageError: If the path has another ending, or the splits of the folder are missing or unclear.
        DataError: If a file is empty, not UTF-8 or unreadable.
    """
    import datasets

    if path.is_dir():
        files = _find_split_files(path, name, train_split, notes)
    elif path.suffix in _FORMATS:
        files = {"train": [path]}
    else:
        raise UsageError(f"{name} has the ending {path.suffix!r}; files must be one of {', '.join(_FORMATS)}.")

    splits: dict[str, Dataset | IterableDataset] = {}
    for split, paths in files.items():
        for file in paths:
            _check_file(file)
        reader = _FORMATS[paths[0].suffix]
        options: dict[str, Any] = {"encoding": "utf-8-sig"} if reader == "text" else {}  # drops a byte order mark
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
        raise DataError(f"{problem}: {_first_line(error)}") from error


def _find_split_files(folder: Path, name: str, train_split: str | None, notes: list[str]) -> dict[str, list[Path]]:
    """Finds the data files of every split: `train.txt`, `ptb.train.txt`, `train-00000-of-00002.parquet`, or files in a
    sub-folder `train/`; all of them also in `data/`."""
    found: dict[str, list[Path]] = {}
    for entry in sorted([*folder.iterdir(), *folder.glob("data/*")]):
        words = re.split(r"[._]", _SHARD.sub("", entry.name if entry.is_dir() else entry.stem).lower())
        split = SPLIT_ALIASES.get(words[-1])
        if split is not None and (entry.is_dir() or entry.suffix in _FORMATS):
            found.setdefault(split, []).extend(_data_files(entry) if entry.is_dir() else [entry])
        elif split is not None:
            notes.append(f"{entry.name} is ignored: data files end in {', '.join(_FORMATS)}")
    if not found and (saved := sorted(folder.glob("data-*.arrow"))):
        return {"train": saved}  # a single Dataset written by save_to_disk

    listing = ", ".join(entry.name for entry in sorted(folder.iterdir())[:10]) or "nothing"
    if not found or ("train" not in found and train_split is None):
        raise UsageError(
            f"folder {name} has no train split (found: {listing}); add train{'|'.join(_FORMATS)}, "
            "name a single file instead, or say which split to train on with train_split."
        )
    for split, paths in found.items():
        in_one_place = len({file.parent for file in paths}) == len({file.suffix for file in paths}) == 1
        belong_together = paths[0].parent.name.lower() in SPLIT_ALIASES or all(_SHARD.search(p.stem) for p in paths)
        if not paths or not in_one_place or (len(paths) > 1 and not belong_together):
            candidates = ", ".join(str(file.relative_to(folder)) for file in paths) or "an empty folder"
            raise UsageError(f"folder {name} must have one file or one set of shards for {split}, not {candidates}.")
    return {split: found[split] for split in SPLITS if split in found}


def _data_files(folder: Path) -> list[Path]:
    """Returns the data files in a split's folder, without the .json files that save_to_disk adds."""
    saved = sorted(folder.glob("data-*.arrow"))
    return saved or sorted(file for file in folder.iterdir() if file.suffix in _FORMATS)


def _check_file(path: Path) -> None:
    """Raises a `DataError` for an empty file, and for the first byte of a text or JSON file that is not UTF-8, because
    the readers would not name the line, and some not even the file."""
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; give a file with at least one sentence.")
    if _FORMATS[path.suffix] in ("text", "json"):
        with path.open("rb") as file:
            check_utf8(file, str(path))


def refuse_what_cannot_be_a_hub_id(name: str) -> None:
    """Raises a `UsageError` if a name cannot be an id on the Hub and is therefore a path that does not exist."""
    if not _HUB_ID.fullmatch(name) or Path(name).suffix in _FORMATS:
        raise UsageError(f"there is no file or folder {name!r}; check the path (and the working directory).")


def read_hub(
    repo_id: str, revision: str | None, notes: list[str], *, streaming: bool = False
) -> tuple[dict[str, Any], list[Any]]:
    """Loads a data set of the Hub, or its cached copy if the Hub cannot be reached.

    Returns:
        The splits, `IterableDataset`s if `streaming`, and a JSON-able identity of the data.

    Raises:
        UsageError: If the Hub has no such data set.
        DataError: If it cannot be loaded, or the Hub cannot be reached and there is no cached copy.
    """
    import datasets

    obstacle = _what_keeps_us_from_the_hub()
    options = {"streaming": True} if streaming else {}
    try:
        with _cached_copies_only(obstacle is not None):
            splits = dict(datasets.load_dataset(repo_id, revision=revision, **options))
            identity = [repo_id, revision, _commit(repo_id, revision) if streaming else None]
    except datasets.exceptions.DatasetNotFoundError as error:
        raise UsageError(
            f"{repo_id!r} is neither a local file or folder nor found on the Hugging Face Hub: {_first_line(error)}"
        ) from error
    except ConnectionError as error:
        raise DataError(
            f"{repo_id!r} is neither local nor cached, and the Hugging Face Hub cannot be reached "
            f"({obstacle or _first_line(error)}): give the path of a local file or folder, or use the embedded corpus "
            "with --dataset_name grammar."
        ) from error
    except (datasets.exceptions.DatasetsError, ValueError, RuntimeError, OSError) as error:
        raise DataError(
            f"{repo_id!r} on the Hugging Face Hub cannot be loaded: {_first_line(error)} "
            f"(for a set that is a loading script try revision={PTB_REVISION!r})"
        ) from error
    if obstacle is not None:
        notes.append(f"the Hub was not asked ({obstacle}): this is the latest cached copy, of any revision")
    return splits, identity


def _commit(repo_id: str, revision: str | None) -> str | None:
    """Returns the commit of a revision, because a stream must not be continued in another one."""
    from huggingface_hub import HfApi

    return HfApi().dataset_info(repo_id, revision=revision).sha


def _what_keeps_us_from_the_hub() -> str | None:
    """Returns why the Hub cannot be asked, or None, after one short request; `datasets` would retry for 23 s."""
    import datasets
    from huggingface_hub import get_session

    if datasets.config.HF_HUB_OFFLINE:
        return "offline mode is on: HF_HUB_OFFLINE or HF_DATASETS_OFFLINE"
    try:
        get_session().head(datasets.config.HF_ENDPOINT, timeout=5)  # any answer will do, of any status
    # The HTTP library of the Hub's client differs between versions, so there is no exception class to name.
    except Exception as error:
        return f"{datasets.config.HF_ENDPOINT}: {_first_line(error)}"
    return None


@contextmanager
def _cached_copies_only(enabled: bool) -> Iterator[None]:
    """Puts `datasets` in offline mode temporarily; its environment variable is read only at import."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or enabled
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _first_line(error: BaseException) -> str:
    """Returns the first line of the message of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
