"""From whatever splits a source has to train, validation and test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from latent_ebm_text.errors import DataError, UsageError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

SPLITS = ("train", "validation", "test")
#: What the splits are called elsewhere.
SPLIT_ALIASES = {"train": "train", "training": "train", "test": "test"} | dict.fromkeys(
    ("validation", "valid", "val", "dev"), "validation"
)

#: Of so many rows in a row, one goes to every split that is missing.
BLOCK = 20


def choose_splits(available: list[str], name: str, train_split: str | None, notes: list[str]) -> dict[str, str]:
    """Which split of a source serves as train, validation and test; those with other names are left out.

    train_split: the one to train on, where it is not the one called train. It is then missing from its own place.

    Raises `UsageError`, listing the splits, if there is none to train on.
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
                f"TRAINING ON THE {chosen.upper()} SPLIT, as asked for: this is not the set's own training data"
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
    """Cut absent validation and test splits off train, 5 % of its rows each, in a fixed pseudo-random choice.

    A row goes to the same split whichever others follow it, so that a run on the first part of a source is not tested
    on what a run on the whole is trained on.

    unit: what a row is, for people.
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
    """How many rows must be read so that `num_train` are left once the missing splits are cut off."""
    if num_missing == 0:
        return num_train
    return BLOCK * max(2, -(-num_train // (BLOCK - num_missing)))


def _places(num_rows: int) -> npt.NDArray[np.int64]:
    """The place of every row in a pseudo-random order of its block: the first places go to the missing splits.

    The order must not follow the run's seed, else two runs would test on each other's training data; nor, for the same
    reason, how many rows were read.
    """
    generator = np.random.default_rng(0)
    if num_rows < 2 * BLOCK:  # two rows a place, which a standard error needs
        return generator.permutation(num_rows) // 2
    return generator.random((-(-num_rows // BLOCK), BLOCK)).argsort(axis=1).ravel()[:num_rows]


def _rows(dataset: Dataset, mask: npt.NDArray[np.bool_]) -> Dataset:
    """Some rows, in the order of the data set. Written anew: `select` would leave every later pass to gather them."""
    return (
        dataset.with_format("arrow")
        .map(_filter, with_indices=True, batched=True, fn_kwargs={"mask": mask}, desc="Cutting splits")
        .with_format(None)
    )


def _filter(table: pa.Table, indices: list[int], *, mask: npt.NDArray[np.bool_]) -> pa.Table:
    import pyarrow as pa

    return table.filter(pa.array(mask[indices]))
