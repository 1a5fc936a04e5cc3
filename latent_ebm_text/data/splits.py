"""Maps the splits of a source to train, validation and test, and creates those that are missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from latent_ebm_text.errors import DataError, UsageError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

SPLITS = ("train", "validation", "test")
#: Other names of the splits.
SPLIT_ALIASES = {"train": "train", "training": "train", "test": "test"} | dict.fromkeys(
    ("validation", "valid", "val", "dev"), "validation"
)

#: One of this many consecutive rows goes to every missing split.
BLOCK = 20


def choose_splits(available: list[str], name: str, train_split: str | None, notes: list[str]) -> dict[str, str]:
    """Chooses which splits of a source serve as train, validation and test; those with other names are left out.

    Args:
        available: The splits of the source.
        name: Name of the source, for messages.
        train_split: The split to train on, if it is not the one called train; it then serves no other purpose.
        notes: Receives what the user should know about the choice.

    Returns:
        The source's name of every split that was found.

    Raises:
        UsageError: If there is no split to train on; the message lists the splits.
    """
    found: dict[str, str] = {}
    for split in available:
        if standard := SPLIT_ALIASES.get(split.lower()):
            found.setdefault(standard, split)
    if train_split is not None:
        chosen = train_split if train_split in available else found.get(SPLIT_ALIASES.get(train_split.lower(), ""))
        if chosen is None:
            raise UsageError(
                f"{name} has no split {train_split!r} to train on; its splits are {', '.join(available)}."
            )
        found = {"train": chosen} | {
            split: source for split, source in found.items() if source != chosen and split != "train"
        }
        if SPLIT_ALIASES.get(chosen.lower()) != "train":
            notes.append(
                f"TRAINING ON THE {chosen.upper()} SPLIT, as requested: this is not the data set's own training split"
            )
    if "train" not in found:
        raise UsageError(
            f"{name} has no train split (found: {', '.join(available)}); "
            "choose a data set that has one, or say which split to train on with train_split."
        )
    if unused := [split for split in available if split not in found.values()]:
        notes.append(f"splits not used: {', '.join(unused)}")
    return {split: found[split] for split in SPLITS if split in found}


def cut_missing_splits(
    splits: dict[str, Dataset], name: str, notes: list[str], *, unit: str = "sentences"
) -> dict[str, Dataset]:
    """Cuts missing validation and test splits off train, 5 % of its rows each, in a fixed pseudo-random choice.

    The split of a row does not depend on the rows after it, so a run on the first part of a source is not tested on
    rows on which a run on the whole source is trained.

    Args:
        splits: The splits that were found.
        name: Name of the source, for messages.
        notes: Receives a note on what was cut off.
        unit: What a row is called in messages.

    Raises:
        DataError: If train has too few rows.
    """
    missing = [split for split in SPLITS if split not in splits]
    train = splits["train"]
    if not missing:
        return splits
    places = _places(len(train))
    parts = {split: places == k for k, split in enumerate(missing)}
    parts["train"] = places >= len(missing)
    if not parts["train"].any():
        raise DataError(
            f"{name} has {len(train)} train {unit}, too few to cut off a {' and a '.join(missing)} split; "
            f"give more {unit} or those splits."
        )
    sizes = " and ".join(dict.fromkeys(f"{parts[split].sum():,}" for split in missing))
    notes.append(f"no {' and no '.join(missing)} split found: cut off train, {sizes} {unit} (5 %) each")
    return {split: _rows(train, parts[split]) if split in parts else splits[split] for split in SPLITS}


def rows_with_train(num_train: int, num_missing: int) -> int:
    """Returns how many rows must be read so that `num_train` are left after missing splits are cut off."""
    if num_missing == 0:
        return num_train
    return BLOCK * max(2, -(-num_train // (BLOCK - num_missing)))


def random_rows(dataset: Dataset, size: int) -> Dataset:
    """A random sample of rows in their order, the same in every run; that of a smaller size is a part of it.

    The first rows of a source may be of one kind, such as one class, one author or one length.
    """
    chosen = np.random.default_rng(0).permutation(len(dataset))[:size]
    return dataset.select(np.sort(chosen))


def _places(num_rows: int) -> npt.NDArray[np.int64]:
    """Returns the rank of every row in a pseudo-random order of its block; the first ranks go to the missing splits.

    The order must depend neither on the run's seed nor on how many rows were read, or two runs would test on each
    other's training data.
    """
    generator = np.random.default_rng(0)
    if num_rows < 2 * BLOCK:  # two rows per split, as a standard error needs
        return generator.permutation(num_rows) // 2
    return generator.random((-(-num_rows // BLOCK), BLOCK)).argsort(axis=1).ravel()[:num_rows]


def _rows(dataset: Dataset, mask: npt.NDArray[np.bool_]) -> Dataset:
    """Copies some rows, in order; `select` would make every later pass gather them."""
    return (
        dataset.with_format("arrow")
        .map(_filter, with_indices=True, batched=True, fn_kwargs={"mask": mask}, desc="Cutting splits")
        .with_format(None)
    )


def _filter(table: pa.Table, indices: list[int], *, mask: npt.NDArray[np.bool_]) -> pa.Table:
    import pyarrow as pa

    return table.filter(pa.array(mask[indices]))
