"""Text corpora: the embedded grammar, PTB, local files and folders, and any text data set of the Hugging Face Hub.

`load_text_dataset` is the single entry point. For any source it returns a `TextCorpus` with the splits train,
validation and test, and a description of what the data *is*, so that a run can print it and nobody believes they
trained on PTB when they did not.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latent_ebm_text.data import snli_yahoo as rebuilt
from latent_ebm_text.data.cache import cached_path
from latent_ebm_text.data.cleaning import choose_column, clean, fingerprint, repetition_notes
from latent_ebm_text.data.files import naming, read_local
from latent_ebm_text.data.inputs import each_sentence
from latent_ebm_text.data.sources import PTB_HUB_ID, PTB_REVISION, read_hub, refuse_what_cannot_be_a_hub_id
from latent_ebm_text.data.splits import SPLITS, choose_splits, cut_missing_splits, random_rows, rows_with_train
from latent_ebm_text.errors import UsageError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

GRAMMAR_TRAIN_SENTENCES = 8_000


@dataclass(frozen=True)
class TextCorpus:
    """A corpus that is ready for tokenization.

    Attributes:
        splits: Train, validation and test, each with a string column `text` (stripped, never blank); other columns are
            kept.
        name: What the data is, such as "ptb (ptb-text-only/ptb_text_only @ refs/convert/parquet)".
        rows: Number of rows per split.
        blank_lines_skipped: Number of skipped blank lines per split in which they were found.
        fingerprint: First 16 hex digits of the SHA-256 over the texts of all splits, with the whole test split. Equal
            texts from different sources have equal fingerprints.
        notes: What was done to the data beyond reading it, one sentence each.
    """

    splits: DatasetDict
    name: str
    rows: dict[str, int]
    blank_lines_skipped: dict[str, int]
    fingerprint: str
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """Returns what a run prints before training: name, rows and fingerprint of the data, and all notes."""
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
    """Loads a corpus by name or path.

    Missing validation and test splits are cut off train, 5 % of its rows each and always the same rows, so that no run
    is tested on what another was trained on.

    Args:
        name_or_path: `"grammar"` (the embedded corpus, no download), `"ptb"`, `"snli"`, `"yahoo"`, a local file or
            folder, or a Hub id. The names take precedence over a folder of the same name; write `./ptb` for the
            folder. A file becomes train. A folder holds files or sub-folders named after splits (.txt with one
            sentence per line, .csv, .tsv, .jsonl, .json, .parquet; also compressed), or was written by
            `save_to_disk`. `"snli"` and `"yahoo"` are drawn from data sets of the Hub with a fixed seed, see
            `latent_ebm_text.data.snli_yahoo`.
        text_column: The column to read; by default `text`, `sentence`, `content`, `messages`, `conversations`, or the
            only column of text. The columns of a table without names are called 1, 2, and so on.
        revision: Branch, tag or commit of a Hub data set; refused for other sources.
        train_split: The split to train on, if it is not the one called train.
        num_sentences: Size of the train split. The grammar generates that many sentences (default 8,000); other
            sources use their first train rows.
        num_test_sentences: Keeps this many test rows, drawn at random with a fixed seed, in their order. The
            fingerprint is that of the whole split.
        streaming: Whether to read row by row, only as many train rows as `num_sentences` needs, and to store nothing
            but their texts: for data sets that are too large to download. Refused for data sets that are built here.
        num_proc: Number of processes that prepare a large corpus.
        seed: Seed of the grammar; other sources do not depend on it.

    Raises:
        UsageError: If a path, name, column, split or option is invalid.
        DataError: If the data is empty, not UTF-8 or unreadable, or the Hub cannot be reached.
    """
    for option, size in (("num_sentences", num_sentences), ("num_test_sentences", num_test_sentences)):
        if size is not None and size < 1:
            raise UsageError(f"{option} is {size}; it must be at least 1 (or left out for all of them).")
    path = Path(name_or_path).expanduser()
    is_local = name_or_path not in ("ptb", "snli", "yahoo") and path.exists()
    if revision is not None and (name_or_path == "grammar" or is_local):
        raise UsageError(f"revision={revision!r} is for Hub data sets, and {name_or_path!r} is none; leave it out.")
    if streaming and name_or_path in ("grammar", "snli", "yahoo"):
        raise UsageError(f"streaming needs rows that are used unchanged; {name_or_path!r} is built here: leave it out")

    notes: list[str] = []
    identity: list[Any] = []
    if name_or_path == "grammar":
        raw: dict[str, Any] = _generate_grammar(num_sentences or GRAMMAR_TRAIN_SENTENCES, seed)
        name = f"grammar (embedded corpus, generated, seed {seed})"
    elif is_local:
        raw, identity = read_local(
            path, name_or_path, notes, text_column=text_column, train_split=train_split, streaming=streaming
        )
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


def corpus_of(data: Any, eval_data: Any = None, *, name: str = "given texts") -> TextCorpus:
    """A corpus from texts in memory.

    Args:
        data: A dataset of Hugging Face with one clear column of text, or sentences as Python holds them, see
            [`~latent_ebm_text.data.inputs.each_entry`].
        eval_data: The same for the validation split, which is then also the test split; by default both are cut off
            `data`, 5 % of its rows each.
        name: What the data is.

    Raises:
        UsageError: If there is no clear column of text.
        DataError: If the data is empty.
    """
    from datasets import Dataset

    def read(given: Any) -> Dataset:
        return given if isinstance(given, Dataset) else Dataset.from_dict({"text": list(each_sentence(given))})

    raw = {"train": read(data)}
    if eval_data is not None:
        raw |= dict.fromkeys(("validation", "test"), read(eval_data))
    return _assemble(raw, name, None, {"train": None, "test": None}, [], 1)


def _assemble(
    raw: dict[str, Dataset],
    name: str,
    text_column: str | None,
    sizes: dict[str, int | None],
    notes: list[str],
    num_proc: int,
) -> TextCorpus:
    """Cleans every split, cuts off the missing ones, shortens those with a size, and counts rows."""
    from datasets import DatasetDict

    cleaned, blank = {}, {}
    for split, dataset in raw.items():
        origin = f"{name}, {split}"
        column = choose_column(dataset.features, text_column, name, notes if split == "train" else None)
        with naming(f"{origin} cannot be read as text"):
            cleaned[split], blank[split] = clean(dataset, column, origin, notes, num_proc)
    splits = cut_missing_splits(cleaned, name, notes)
    if (size := sizes["train"]) is not None and size < (available := len(splits["train"])):
        notes.append(f"train is the first {size:,} of {available:,} sentences")
        splits["train"] = splits["train"].select(range(size))
    identity = fingerprint(splits)
    if (size := sizes["test"]) is not None and size < (available := len(splits["test"])):
        notes.append(f"test is a random {size:,} of {available:,} sentences, the same in every run")
        splits["test"] = random_rows(splits["test"], size)
    notes += repetition_notes(splits)
    return TextCorpus(
        splits=DatasetDict(splits),
        name=name,
        rows={split: len(dataset) for split, dataset in splits.items()},
        blank_lines_skipped=blank,
        fingerprint=identity,
        notes=tuple(notes),
    )


def _generate_grammar(num_train: int, seed: int) -> dict[str, Dataset]:
    from latent_ebm_text.data.newswire import grammar_dataset

    return dict(grammar_dataset(num_train=num_train, num_validation=1000, num_test=1000, seed=seed))


def _rebuild(name: str, revision: str | None, notes: list[str]) -> tuple[dict[str, Dataset], str]:
    """Builds one of the data sets that are drawn from a larger one of the Hub."""
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
    """Stores the rows of streams on disk, with enough train rows to cut the missing splits off."""
    from latent_ebm_text.data.streaming import store_stream

    limit = None if num_sentences is None else rows_with_train(num_sentences, len(SPLITS) - len(streams))
    stored = {}
    for split, stream in streams.items():
        most = limit if split == "train" else None
        folder = cached_path("streams", [identity, split, text_column, most, "usable"])
        with naming(f"{name}, {split} cannot be read as a stream"):
            stored[split] = store_stream(
                stream, folder, text_column=text_column, limit=most, origin=f"{name}, {split}", notes=notes
            )
    rows = ", ".join(f"{len(dataset):,} {split}" for split, dataset in stored.items())
    notes.append(f"read as a stream: {rows} rows")
    return stored
