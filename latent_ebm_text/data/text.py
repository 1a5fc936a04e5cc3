"""Text corpora: the embedded grammar, PTB, local files and folders, and any text set of the Hugging Face Hub.

`load_text_dataset` is the only door. Whatever the source, it gives a `TextCorpus` with the splits train, validation
and test, and a description of what the data *is*, so that a run can print it and nobody believes they trained on PTB
when they did not.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latent_ebm_text.data import rebuilt
from latent_ebm_text.data.cache import cached_path
from latent_ebm_text.data.cleaning import choose_column, clean, fingerprint
from latent_ebm_text.data.sources import (
    PTB_HUB_ID,
    PTB_REVISION,
    naming,
    read_hub,
    read_local,
    refuse_what_cannot_be_a_hub_id,
)
from latent_ebm_text.data.splits import SPLITS, choose_splits, cut_missing_splits, rows_with_train
from latent_ebm_text.errors import UsageError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

GRAMMAR_TRAIN_SENTENCES = 8_000


@dataclass(frozen=True)
class TextCorpus:
    """A corpus that is ready to be tokenised.

    splits: train, validation and test, each with a string column `text` (stripped, never blank); other columns kept.
    name: what the data is, e.g. "ptb (ptb-text-only/ptb_text_only @ refs/convert/parquet)".
    rows, blank_lines_skipped: counts per split (skipped lines under the split they were found in).
    fingerprint: first 16 hex digits of the SHA-256 over the texts of all splits, test before it is shortened; equal
        texts give equal fingerprints, whatever file or hub they came from.
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
    train_split: str | None = None,
    num_sentences: int | None = None,
    num_test_sentences: int | None = None,
    streaming: bool = False,
    num_proc: int = 1,
    seed: int = 0,
) -> TextCorpus:
    """Load a corpus by name or path.

    name_or_path: `"grammar"` (the embedded corpus, no download), `"ptb"`, `"snli"`, `"yahoo"`, a local file or folder,
        or a Hub id. The names win over a folder of the same name; write `./ptb` for the folder. A file becomes train;
        a folder holds files or sub-folders named after splits (.txt with one sentence a line, .jsonl, .json,
        .parquet), or is one written by `save_to_disk`. Missing validation and test splits are cut off train, 5 % of
        its rows each, always the same ones, so that no run is tested on what another was trained on. `"snli"` and
        `"yahoo"` are drawn from the Hub's sets by a fixed seed, see `latent_ebm_text.data.rebuilt`.
    text_column: the column to read; by default `text`, `sentence`, `content`, or the only string column.
    revision: branch, tag or commit of a Hub set; refused for other sources.
    train_split: the split to train on, of a source that has no train split or should not be trained on it.
    num_sentences: size of the train split. The grammar generates that many (default 8,000); of other sources the
        first `num_sentences` train rows are used (all, if there are fewer).
    num_test_sentences: the first so many rows of the test split are kept (all, if there are fewer). The fingerprint is
        that of the whole split.
    streaming: read the rows one after the other, no more of train than `num_sentences` needs, and keep their texts
        alone on disk: for a set that is larger than one wants to download. Refused for sets that are made here.
    num_proc: processes that prepare a large corpus.
    seed: of the grammar's generator; other sources do not depend on it.

    Raises `UsageError` (a path, name, column, split or option that cannot be right) and `DataError` (data that was
    found but is empty, not UTF-8 or unreadable; an unreachable Hub).
    """
    for option, size in (("num_sentences", num_sentences), ("num_test_sentences", num_test_sentences)):
        if size is not None and size < 1:
            raise UsageError(f"{option} is {size}; it must be at least 1 (or left out for all of them).")
    path = Path(name_or_path).expanduser()
    is_local = name_or_path not in ("ptb", "snli", "yahoo") and path.exists()
    if revision is not None and (name_or_path == "grammar" or is_local):
        raise UsageError(f"revision={revision!r} is for Hub data sets, and {name_or_path!r} is none; leave it out.")
    if streaming and name_or_path in ("grammar", "snli", "yahoo"):
        raise UsageError(f"streaming is for rows that are used as they are; {name_or_path!r} is made of all of them")

    notes: list[str] = []
    identity: list[Any] = []
    if name_or_path == "grammar":
        raw: dict[str, Any] = _generate_grammar(num_sentences or GRAMMAR_TRAIN_SENTENCES, seed)
        name = f"grammar (embedded corpus, generated, seed {seed})"
    elif is_local:
        raw, identity = read_local(path, name_or_path, train_split, notes, streaming=streaming)
        name = f"local {'folder' if path.is_dir() else 'file'} {name_or_path}"
    elif name_or_path == "ptb":
        revision = revision or PTB_REVISION
        raw, identity = read_hub(PTB_HUB_ID, revision, notes, streaming=streaming)
        name = f"ptb ({PTB_HUB_ID} @ {revision})"
    elif name_or_path in ("snli", "yahoo"):
        raw, name = _rebuild(name_or_path, revision, notes)
    else:
        refuse_what_cannot_be_a_hub_id(name_or_path)
        raw, identity = read_hub(name_or_path, revision, notes, streaming=streaming)
        name = f"{name_or_path} (Hugging Face Hub @ {revision or 'main'})"
    chosen = choose_splits(list(raw), name, train_split, notes)
    splits = {split: raw[source] for split, source in chosen.items()}
    if streaming:
        splits = _store_streams(splits, name, text_column, num_sentences, [identity, chosen], notes)
        text_column = None
    sizes = {"train": num_sentences, "test": num_test_sentences}
    return _assemble(splits, name, text_column, sizes, notes, num_proc)


def _assemble(
    raw: dict[str, Dataset],
    name: str,
    text_column: str | None,
    sizes: dict[str, int | None],
    notes: list[str],
    num_proc: int,
) -> TextCorpus:
    """Clean every split, cut off those that are missing, shorten those with a size, and count."""
    from datasets import DatasetDict

    cleaned, blank = {}, {}
    for split, dataset in raw.items():
        origin = f"{name}, {split}"
        column = choose_column(dataset.features, text_column, name)
        with naming(f"{origin} cannot be read as text"):
            cleaned[split], blank[split] = clean(dataset, column, origin, num_proc)
    splits = cut_missing_splits(cleaned, name, notes)
    splits = _shorten(splits, "train", sizes["train"], notes)
    identity = fingerprint(splits)
    splits = _shorten(splits, "test", sizes["test"], notes)
    return TextCorpus(
        splits=DatasetDict(splits),
        name=name,
        rows={split: len(dataset) for split, dataset in splits.items()},
        blank_lines_skipped=blank,
        fingerprint=identity,
        notes=tuple(notes),
    )


def _shorten(splits: dict[str, Dataset], split: str, size: int | None, notes: list[str]) -> dict[str, Dataset]:
    """The splits with the first `size` rows of one of them, and a note where that leaves some out."""
    available = len(splits[split])
    if size is None or size >= available:
        return splits
    notes.append(f"{split} is the first {size:,} of {available:,} sentences")
    return {**splits, split: splits[split].select(range(size))}


def _generate_grammar(num_train: int, seed: int) -> dict[str, Dataset]:
    from latent_ebm_text.data.newswire import grammar_dataset

    return dict(grammar_dataset(num_train=num_train, num_validation=1000, num_test=1000, seed=seed))


def _rebuild(name: str, revision: str | None, notes: list[str]) -> tuple[dict[str, Dataset], str]:
    """One of the sets that are drawn from a larger one of the Hub."""
    repo_id, rebuild, note = {
        "snli": (rebuilt.SNLI_HUB_ID, rebuilt.rebuild_snli, rebuilt.SNLI_NOTE),
        "yahoo": (rebuilt.YAHOO_HUB_ID, rebuilt.rebuild_yahoo, rebuilt.YAHOO_NOTE),
    }[name]
    hub, _ = read_hub(repo_id, revision, notes)
    notes.append(note)
    return rebuild(hub), f"{name} (rebuilt from {repo_id} @ {revision or 'main'})"


def _store_streams(
    streams: dict[str, Any],
    name: str,
    text_column: str | None,
    num_sentences: int | None,
    identity: list[Any],
    notes: list[str],
) -> dict[str, Dataset]:
    """The rows of streams, on disk; of train as many as will be left to train on once missing splits are cut off."""
    from latent_ebm_text.data.streaming import store_stream

    limit = None if num_sentences is None else rows_with_train(num_sentences, len(SPLITS) - len(streams))
    stored = {}
    for split, stream in streams.items():
        most = limit if split == "train" else None
        folder = cached_path("streams", [identity, split, text_column, most, "usable"])
        with naming(f"{name}, {split} cannot be read as a stream"):
            stored[split] = store_stream(
                stream, folder, text_column=text_column, limit=most, origin=f"{name}, {split}"
            )
    rows = ", ".join(f"{len(dataset):,} {split}" for split, dataset in stored.items())
    notes.append(f"read as a stream: {rows} rows")
    return stored
