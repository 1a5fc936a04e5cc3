"""Text corpora: the embedded grammar, PTB, local files and folders, and any text set of the Hugging Face Hub.

`load_text_dataset` is the only door. Whatever the source, it gives a `TextCorpus` with the splits train, validation
and test, and a description of what the data *is*, so that a run can print it and nobody believes they trained on PTB
when they did not.
"""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latent_ebm_text.errors import DataError, UsageError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

SPLITS = ("train", "validation", "test")
PTB_HUB_ID = "ptb-text-only/ptb_text_only"
# The main branch of that set is a loading script, which `datasets` refuses since version 4; this branch holds the
# same rows as parquet.
PTB_REVISION = "refs/convert/parquet"
GRAMMAR_TRAIN_SENTENCES = 8_000

_SPLIT_ALIASES = {"train": "train", "training": "train", "test": "test"} | dict.fromkeys(
    ("validation", "valid", "val", "dev"), "validation"
)
_FORMATS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet", ".arrow": "arrow"}
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_SHARD = re.compile(r"-\d+-of-\d+(-\w+)?$")
_TEXT_COLUMNS = ("text", "sentence", "content")


@dataclass(frozen=True)
class TextCorpus:
    """A corpus that is ready to be tokenised.

    splits: train, validation and test, each with a string column `text` (stripped, never blank); other columns kept.
    name: what the data is, e.g. "ptb (ptb-text-only/ptb_text_only @ refs/convert/parquet)".
    rows, blank_lines_skipped: counts per split (skipped lines under the split they were found in).
    fingerprint: first 16 hex digits of the SHA-256 over the texts of all splits; equal texts give equal fingerprints,
        whatever file or hub they came from.
    notes: what was done to the data beyond reading it, one sentence each.
    """

    splits: DatasetDict
    name: str
    rows: dict[str, int]
    blank_lines_skipped: dict[str, int]
    fingerprint: str
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """What a run prints before it trains: the data's name, rows, fingerprint and everything worth knowing."""
        rows = ", ".join(f"{count:,} {split}" for split, count in self.rows.items())
        lines = [f"data: {self.name}: {rows} (fingerprint {self.fingerprint})"]
        if any(self.blank_lines_skipped.values()):
            skipped = ", ".join(f"{count:,} {split}" for split, count in self.blank_lines_skipped.items())
            lines.append(f"blank lines skipped: {skipped}")
        return "\n  ".join([*lines, *self.notes])


def load_text_dataset(
    name_or_path: str,
    *,
    text_column: str | None = None,
    revision: str | None = None,
    num_sentences: int | None = None,
    seed: int = 0,
) -> TextCorpus:
    """Load a corpus by name or path.

    name_or_path: `"grammar"` (the embedded corpus, no download), `"ptb"`, a local file or folder, or a Hub id. The two
        names win over a folder of the same name; write `./ptb` for the folder. A file becomes train; a folder holds
        files or sub-folders named after splits (.txt with one sentence a line, .jsonl, .json, .parquet), or is one
        written by `save_to_disk`. Missing validation and test splits are cut off train, 5 % of its rows each, always
        the same ones, so that no run is tested on what another was trained on.
    text_column: the column to read; by default `text`, `sentence`, `content`, or the only string column.
    revision: branch, tag or commit of a Hub set; refused for other sources.
    num_sentences: size of the train split. The grammar generates that many (default 8,000); of other sources the
        first `num_sentences` train rows are used (all, if there are fewer).
    seed: of the grammar's generator; other sources do not depend on it.

    Raises `UsageError` (a path, name, column, split or option that cannot be right) and `DataError` (data that was
    found but is empty, not UTF-8 or unreadable; an unreachable Hub).
    """
    if num_sentences is not None and num_sentences < 1:
        raise UsageError(f"num_sentences is {num_sentences}; it must be at least 1 (or left out for all of them).")
    path = Path(name_or_path).expanduser()
    is_local = name_or_path != "ptb" and path.exists()
    if revision is not None and (name_or_path == "grammar" or is_local):
        raise UsageError(f"revision={revision!r} is for Hub data sets, and {name_or_path!r} is none; leave it out.")

    notes: list[str] = []
    if name_or_path == "grammar":
        raw = _generate_grammar(num_sentences or GRAMMAR_TRAIN_SENTENCES, seed)
        name = f"grammar (embedded corpus, generated, seed {seed})"
    elif is_local:
        raw = _read_local(path, name_or_path)
        name = f"local {'folder' if path.is_dir() else 'file'} {name_or_path}"
    elif name_or_path == "ptb":
        revision = revision or PTB_REVISION
        raw = _read_hub(PTB_HUB_ID, revision, notes)
        name = f"ptb ({PTB_HUB_ID} @ {revision})"
    else:
        _refuse_what_cannot_be_a_hub_id(name_or_path)
        raw = _read_hub(name_or_path, revision, notes)
        name = f"{name_or_path} (Hugging Face Hub @ {revision or 'main'})"
    return _assemble(_standard_splits(raw, name, notes), name, text_column, num_sentences, notes)


def _assemble(
    raw: dict[str, Dataset], name: str, text_column: str | None, num_sentences: int | None, notes: list[str]
) -> TextCorpus:
    """Clean every split, cut off those that are missing, shorten train, and count."""
    from datasets import DatasetDict

    cleaned, blank = {}, {}
    for split, dataset in raw.items():
        cleaned[split], blank[split] = _clean(dataset, _choose_column(dataset, text_column, name), f"{name}, {split}")
    splits = _cut_missing_splits(cleaned, name, notes)
    available = len(splits["train"])
    if num_sentences is not None and num_sentences < available:
        splits["train"] = splits["train"].select(range(num_sentences))
        notes.append(f"train is the first {num_sentences:,} of {available:,} sentences")
    return TextCorpus(
        splits=DatasetDict(splits),
        name=name,
        rows={split: len(dataset) for split, dataset in splits.items()},
        blank_lines_skipped=blank,
        fingerprint=_fingerprint(splits),
        notes=tuple(notes),
    )


# ---- the same shape for every source ----


def _standard_splits(raw: dict[str, Dataset], name: str, notes: list[str]) -> dict[str, Dataset]:
    """Rename the splits to train, validation and test; those with other names are left out, and said to be."""
    found: dict[str, str] = {}
    for split in raw:
        if standard := _SPLIT_ALIASES.get(split.lower()):
            found.setdefault(standard, split)
    if "train" not in found:
        raise UsageError(f"{name} has no train split (found: {', '.join(raw)}); choose a data set that has one.")
    if unused := [split for split in raw if split not in found.values()]:
        notes.append(f"splits not used: {', '.join(unused)}")
    return {split: raw[found[split]] for split in SPLITS if split in found}


def _choose_column(dataset: Dataset, text_column: str | None, name: str) -> str:
    """The column that holds the text. Raises `UsageError`, listing the columns, if that is not evident."""
    features: dict[str, Any] = dataset.features
    strings = [column for column, feature in features.items() if getattr(feature, "dtype", "").endswith("string")]
    listing = f"its columns are {', '.join(features)}; text columns: {', '.join(strings) or 'none'}"
    if text_column is not None:
        if text_column not in strings:
            problem = "is no text column" if text_column in features else "does not exist"
            raise UsageError(f"column {text_column!r} {problem} in {name}: {listing}.")
        return text_column
    for column in _TEXT_COLUMNS:
        if column in strings:
            return column
    if len(strings) == 1:
        return strings[0]
    raise UsageError(f"cannot tell which column of {name} is the text: {listing}; choose one with text_column.")


def _clean(dataset: Dataset, column: str, origin: str) -> tuple[Dataset, int]:
    """Name the text column `text`, strip its values, drop blank ones; also the number dropped. Other columns stay,
    save for one that is called `text` while another was chosen."""
    from datasets import Value

    if column != "text":
        if "text" in dataset.column_names:
            dataset = dataset.remove_columns("text")
        dataset = dataset.rename_column(column, "text")
    if dataset.features["text"] != Value("string"):
        dataset = dataset.cast_column("text", Value("string"))
    dataset = dataset.map(_strip, batched=True, input_columns=["text"], desc="Reading text")
    blank = sum(not text for text in dataset["text"])
    if blank == len(dataset):
        raise DataError(
            f"{origin} has no sentence ({blank:,} blank lines); give data with at least one in each split."
        )
    if blank:
        dataset = dataset.filter(_is_not_blank, batched=True, input_columns=["text"], desc="Dropping blank lines")
    return dataset, blank


def _strip(texts: list[str | None]) -> dict[str, list[str]]:
    return {"text": [(text or "").strip() for text in texts]}


def _is_not_blank(texts: list[str]) -> list[bool]:
    return [bool(text) for text in texts]


def _cut_missing_splits(splits: dict[str, Dataset], name: str, notes: list[str]) -> dict[str, Dataset]:
    """Cut absent validation and test splits off train, 5 % of its rows each, in a fixed pseudo-random choice."""
    missing = [split for split in SPLITS if split not in splits]
    train = splits["train"]
    size = max(1, len(train) // 20)
    if not missing:
        return splits
    if len(train) <= len(missing) * size:
        raise DataError(
            f"{name} has {len(train)} train sentences, too few to cut off a {' and a '.join(missing)} split; "
            "give more sentences or those splits."
        )
    # The choice must not follow the run's seed, else two runs would test on each other's training sentences.
    order = np.random.default_rng(0).permutation(len(train))
    parts = {split: order[k * size : (k + 1) * size] for k, split in enumerate(missing)}
    parts["train"] = order[len(missing) * size :]
    notes.append(f"no {' and no '.join(missing)} split found: cut off train, {size:,} sentences (5 %) each")
    return {split: train.select(np.sort(parts[split])) if split in parts else splits[split] for split in SPLITS}


def _fingerprint(splits: dict[str, Dataset]) -> str:
    digest = hashlib.sha256()
    for split in SPLITS:
        digest.update(f"{split} {len(splits[split])}\n".encode())
        for text in splits[split]["text"]:
            encoded = text.encode()
            digest.update(b"%d " % len(encoded) + encoded)
    return digest.hexdigest()[:16]


# ---- sources ----


def _generate_grammar(num_train: int, seed: int) -> dict[str, Dataset]:
    from latent_ebm_text.data.newswire import grammar_dataset

    return dict(grammar_dataset(num_train=num_train, num_validation=1000, num_test=1000, seed=seed))


def _read_local(path: Path, name: str) -> dict[str, Dataset]:
    """Read a file or folder through the cache of `datasets`, which never writes beside the user's files."""
    import datasets

    if path.is_dir():
        files = _find_split_files(path, name)
    elif path.suffix in _FORMATS:
        files = {"train": [path]}
    else:
        raise UsageError(f"{name} has the ending {path.suffix!r}; files must be one of {', '.join(_FORMATS)}.")

    splits = {}
    for split, paths in files.items():
        for file in paths:
            _check_file(file)
        reader = _FORMATS[paths[0].suffix]
        options = {"encoding": "utf-8-sig"} if reader == "text" else {}  # "-sig": a byte order mark is no text
        patterns = [glob.escape(str(file.absolute())) for file in paths]
        try:
            # Not load_from_disk for .arrow: `map` would later write its cache files into the user's folder.
            splits[split] = datasets.load_dataset(reader, data_files={split: patterns}, split=split, **options)
        except (datasets.exceptions.DatasetsError, ValueError, OSError) as error:
            listing = ", ".join(str(file) for file in paths)
            raise DataError(f"{listing} cannot be read as {reader}: {_first_line(error)}") from error
    return splits


def _find_split_files(folder: Path, name: str) -> dict[str, list[Path]]:
    """The data files of each split: `train.txt`, `ptb.train.txt`, `train-00000-of-00002.parquet`, files in a
    sub-folder `train/`, all of them also one level down in `data/`."""
    found: dict[str, list[Path]] = {}
    for entry in sorted([*folder.iterdir(), *folder.glob("data/*")]):
        words = re.split(r"[._]", _SHARD.sub("", entry.name if entry.is_dir() else entry.stem).lower())
        split = _SPLIT_ALIASES.get(words[-1])
        if split is not None and (entry.is_dir() or entry.suffix in _FORMATS):
            found.setdefault(split, []).extend(_data_files(entry) if entry.is_dir() else [entry])
    if not found and (saved := sorted(folder.glob("data-*.arrow"))):
        return {"train": saved}  # a single Dataset written by save_to_disk

    listing = ", ".join(entry.name for entry in sorted(folder.iterdir())[:10]) or "nothing"
    if "train" not in found:
        raise UsageError(
            f"folder {name} has no train split (found: {listing}); "
            f"add train{'|'.join(_FORMATS)}, or name a single file instead."
        )
    for split, paths in found.items():
        in_one_place = len({file.parent for file in paths}) == len({file.suffix for file in paths}) == 1
        belong_together = paths[0].parent.name.lower() in _SPLIT_ALIASES or all(_SHARD.search(p.stem) for p in paths)
        if not paths or not in_one_place or (len(paths) > 1 and not belong_together):
            candidates = ", ".join(str(file.relative_to(folder)) for file in paths) or "an empty folder"
            raise UsageError(f"folder {name} must have one file or one set of shards for {split}, not {candidates}.")
    return {split: found[split] for split in SPLITS if split in found}


def _data_files(folder: Path) -> list[Path]:
    """The data files directly in a split's folder; one written by save_to_disk also holds .json files of its own."""
    saved = sorted(folder.glob("data-*.arrow"))
    return saved or sorted(file for file in folder.iterdir() if file.suffix in _FORMATS)


def _check_file(path: Path) -> None:
    """Raise `DataError` for an empty file and, in text and JSON files, for the first byte that is not UTF-8: the
    readers would name neither the line nor, for some, the file."""
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; give a file with at least one sentence.")
    if _FORMATS[path.suffix] not in ("text", "json"):
        return
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path} is not UTF-8: line {number}, byte offset {offset + error.start}, holds "
                    f"0x{line[error.start]:02x}; convert the file, e.g. with iconv -f latin1 -t utf-8."
                ) from error
            offset += len(line)


def _refuse_what_cannot_be_a_hub_id(name: str) -> None:
    if not _HUB_ID.fullmatch(name) or Path(name).suffix in _FORMATS:
        raise UsageError(f"there is no file or folder {name!r}; check the path (and the working directory).")


def _read_hub(repo_id: str, revision: str | None, notes: list[str]) -> dict[str, Dataset]:
    """Load a Hub set, or its cached copy if the Hub cannot be reached."""
    import datasets

    obstacle = _what_keeps_us_from_the_hub()
    try:
        with _cached_copies_only(obstacle is not None):
            splits = dict(datasets.load_dataset(repo_id, revision=revision))
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
        notes.append(f"the Hub was not asked ({obstacle}): this is the latest cached copy, of whatever revision")
    return splits


def _what_keeps_us_from_the_hub() -> str | None:
    """Why there is no point in asking the Hub, or None. One short request: `datasets` itself would retry for 23 s."""
    import datasets
    from huggingface_hub import get_session

    if datasets.config.HF_HUB_OFFLINE:
        return "offline mode is on: HF_HUB_OFFLINE or HF_DATASETS_OFFLINE"
    try:
        get_session().head(datasets.config.HF_ENDPOINT, timeout=5)  # any answer will do, whatever its status
    # The Hub's client changed its HTTP library between versions: there is no exception class to name.
    except Exception as error:
        return f"{datasets.config.HF_ENDPOINT}: {_first_line(error)}"
    return None


@contextmanager
def _cached_copies_only(enabled: bool) -> Iterator[None]:
    """Put `datasets` in offline mode for a moment; its environment variable is read only once, at import."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or enabled
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _first_line(error: BaseException) -> str:
    """The message of the innermost cause, cut to one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
