"""Comparing two evaluations by what they have measured of each sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from latent_ebm_text.errors import DataError, UsageError, reading
from latent_ebm_text.evaluation.bootstrap import Comparison, paired_bootstrap, unpaired_bootstrap
from latent_ebm_text.hub.folders import read_json


def compare_evaluations(first: Path, second: Path, *, num_resamples: int = 1000) -> dict[str, Comparison]:
    """Compares two evaluations metric by metric, for the metrics that both have.

    Marginal NLL and RPPL are measured on the same test sentences and compared in pairs; FPPL is measured on sentences
    that each model has generated. Perplexities are per word, which agrees with per token where tokens are words.

    Args:
        first: Folder of the first evaluation, with the file `sentences.npz` that `recipes/evaluate_text.py` writes.
        second: Folder of the second.
        num_resamples: Number of bootstrap resamples.

    Raises:
        UsageError: If a folder has no such file, or the two evaluations used different test sentences or evaluators.
        DataError: If a file is damaged.
    """
    one, two = (_load(Path(folder)) for folder in (first, second))
    with reading(f"{first} or {second}"):
        _require_same_conditions(Path(first), Path(second))
        return _compare(first, second, one, two, num_resamples)


def _compare(
    first: Path, second: Path, one: dict[str, NDArray[Any]], two: dict[str, NDArray[Any]], num_resamples: int
) -> dict[str, Comparison]:
    found = {}
    if "index" in one and "index" in two:
        if not np.array_equal(one["index"], two["index"]):
            raise UsageError(
                f"{first} and {second} hold log p(x) of different test sentences: evaluate with the same seed"
            )
        found["marginal NLL"] = paired_bootstrap(one["marginal_nll"], two["marginal_nll"], num_resamples=num_resamples)
    if "rppl_nll" in one and "rppl_nll" in two:
        found["RPPL"] = paired_bootstrap(
            one["rppl_nll"], two["rppl_nll"], tokens=one["rppl_words"], num_resamples=num_resamples
        )
        found["FPPL"] = unpaired_bootstrap(
            one["fppl_nll"],
            two["fppl_nll"],
            tokens=(one["fppl_words"], two["fppl_words"]),
            num_resamples=num_resamples,
        )
    return found


def _require_same_conditions(first: Path, second: Path) -> None:
    """Raises a `UsageError` if the reports name different data or different evaluators."""
    reports = [read_json(folder / "evaluation.json") for folder in (first, second)]
    settings = [report.get("settings") or {} for report in reports]
    compared = {
        "data": [(report.get("facts") or {}).get("fingerprint") for report in reports],
        "evaluators": [each.get("evaluator") for each in settings],
        "evaluators of RPPL": [each.get("rppl_evaluator") or each.get("evaluator") for each in settings],
    }
    for what, (one, two) in compared.items():
        if None not in (one, two) and "none" not in (one, two) and one != two:
            raise UsageError(
                f"{first} and {second} have different {what} ({one} and {two}): evaluate both in the same way"
            )


def _load(folder: Path) -> dict[str, NDArray[Any]]:
    path = folder / "sentences.npz"
    if not path.is_file():
        raise UsageError(f"{path} does not exist: make it with recipes/evaluate_text.py --output_dir {folder}")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, BadZipFile) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
