"""Bootstrap over sentences: the interval of one run's figure, and whether two runs differ beyond noise."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latent_ebm_text.errors import DataError, UsageError
from latent_ebm_text.evaluation.measurements import Measurement

#: Numbers drawn at a time, which bounds the memory.
_CHUNK = 2**20


@dataclass(frozen=True)
class PairedComparison:
    """Two runs on the same sentences.

    Attributes:
        first: The first run's statistic.
        second: The second run's.
        difference: `first - second`.
        interval_95: Of the difference, by percentiles of the paired bootstrap, low and high.
        p_value: Twice the share of resamples in which the difference has the opposite sign (or is zero), at most 1.
            The bootstrap's stand-in for a two-sided p-value; it cannot fall below `2 / (num_resamples + 1)`.
        n: Number of sentences.
        num_resamples: Number of bootstrap resamples.
        statistic: What was compared.
    """

    first: float
    second: float
    difference: float
    interval_95: tuple[float, float]
    p_value: float
    n: int
    num_resamples: int
    statistic: str

    @property
    def differs(self) -> bool:
        """Whether the interval of the difference excludes zero."""
        low, high = self.interval_95
        return low > 0 or high < 0

    @property
    def verdict(self) -> str:
        """The comparison in words."""
        low, high = self.interval_95
        figures = f"{self.first:.4g} against {self.second:.4g} ({self.statistic})"
        interval = f"difference {self.difference:+.4g}, 95 % interval {low:+.4g} to {high:+.4g}, n = {self.n}"
        if not self.differs:
            return f"no difference beyond noise: {figures}; {interval}"
        return f"the first run is {'lower' if self.difference < 0 else 'higher'}: {figures}; {interval}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {**asdict(self), "interval_95": list(self.interval_95), "verdict": self.verdict}


def paired_bootstrap(
    first: ArrayLike,
    second: ArrayLike,
    *,
    tokens: ArrayLike | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> PairedComparison:
    """Compares two runs on the same sentences by the paired bootstrap (Koehn, 2004).

    Every resample draws sentences with replacement and takes both runs' values of them, so that what makes a sentence
    hard for both cancels. Only the noise of which sentences were tested is covered, not that of training: for the
    latter repeat the training with other seeds.

    Args:
        first: `(n,)`, one value per sentence of the first run, such as the NLL in nats.
        second: `(n,)`, the second run's values of the same sentences, in the same order.
        tokens: `(n,)` tokens per sentence. Given, the statistic is the perplexity
            `exp(sum of values / sum of tokens)`; else it is the mean.
        num_resamples: Number of bootstrap resamples.
        seed: Of the resampling.

    Raises:
        UsageError: If the values do not pair up, are fewer than two or not finite, a token count is not positive, or
            there are fewer than 100 resamples.
    """
    columns = _columns({"first": first, "second": second}, tokens, num_resamples)
    figures = _statistic(columns.sum(axis=0), tokens)
    resampled = _statistic(_resampled_sums(columns, num_resamples, seed), tokens)
    differences = resampled[:, 0] - resampled[:, 1]
    return _comparison(figures, differences, len(columns), num_resamples, _name(tokens))


def unpaired_bootstrap(
    first: ArrayLike,
    second: ArrayLike,
    *,
    tokens: tuple[ArrayLike, ArrayLike] | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> PairedComparison:
    """Compares two runs on sentences of their own, such as those that each has generated: nothing cancels.

    Args:
        first: `(n,)`, one value per sentence of the first run.
        second: `(m,)`, of the second.
        tokens: `(n,)` and `(m,)` tokens per sentence; given, the statistic is the perplexity, else it is the mean.
        num_resamples: Number of bootstrap resamples.
        seed: Of the resampling.

    Returns:
        As of [`paired_bootstrap`], with the smaller of `n` and `m` as `n`.

    Raises:
        UsageError: As [`paired_bootstrap`].
    """
    figures, resampled, sizes = [], [], []
    for number, values in enumerate((first, second)):
        own_tokens = None if tokens is None else tokens[number]
        columns = _columns({("first", "second")[number]: values}, own_tokens, num_resamples)
        figures.append(float(_statistic(columns.sum(axis=0), own_tokens)[0]))
        sums = _resampled_sums(columns, num_resamples, seed + number)
        resampled.append(_statistic(sums, own_tokens)[:, 0])
        sizes.append(len(columns))
    return _comparison(figures, resampled[0] - resampled[1], min(sizes), num_resamples, _name(tokens))


def _comparison(
    figures: ArrayLike, differences: NDArray[np.float64], n: int, num_resamples: int, statistic: str
) -> PairedComparison:
    first, second = (float(figure) for figure in np.asarray(figures))
    opposite = min((differences <= 0).sum(), (differences >= 0).sum())
    return PairedComparison(
        first=first,
        second=second,
        difference=first - second,
        interval_95=_percentiles(differences),
        p_value=min(1.0, 2 * (int(opposite) + 1) / (num_resamples + 1)),
        n=n,
        num_resamples=num_resamples,
        statistic=statistic,
    )


def compare_evaluations(first: Path, second: Path, *, num_resamples: int = 1000) -> dict[str, PairedComparison]:
    """Compares two evaluations figure by figure, as far as both have them.

    Marginal NLL and RPPL are those of the same test sentences and compared in pairs; FPPL is of each model's own. The
    perplexities are those per word, which agree with those per token where tokens are words.

    Args:
        first: Folder of the first evaluation, with the file `sentences.npz` that `recipes/evaluate_text.py` writes.
        second: Folder of the second.
        num_resamples: Number of bootstrap resamples.

    Raises:
        UsageError: If a folder has no such file, or the two were made of different test sentences or by different
            evaluators.
        DataError: If a file is damaged.
    """
    one, two = (_load(Path(folder)) for folder in (first, second))
    _require_alike(Path(first), Path(second))
    found = {}
    if "index" in one and "index" in two:
        if not np.array_equal(one["index"], two["index"]):
            raise UsageError(
                f"{first} and {second} hold log p(x) of different test sentences: evaluate with the same seed"
            )
        found["marginal NLL"] = paired_bootstrap(one["marginal_nll"], two["marginal_nll"], num_resamples=num_resamples)
    if "rppl_nll" in one and "rppl_nll" in two:
        found["RPPL"] = paired_bootstrap(
            one["rppl_nll"], two["rppl_nll"], tokens=_words(one, "rppl"), num_resamples=num_resamples
        )
        found["FPPL"] = unpaired_bootstrap(
            one["fppl_nll"],
            two["fppl_nll"],
            tokens=(_words(one, "fppl"), _words(two, "fppl")),
            num_resamples=num_resamples,
        )
    return found


def _require_alike(first: Path, second: Path) -> None:
    """Raises a `UsageError` unless both reports are on the same data and by the same evaluators, where they say so."""
    reports = [json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
               for path in (first / "evaluation.json", second / "evaluation.json")]  # fmt: skip
    settings = [report.get("settings") or {} for report in reports]
    compared = {
        "data": [(report.get("facts") or {}).get("fingerprint") for report in reports],
        "evaluators": [each.get("evaluator") for each in settings],
        "evaluators of RPPL": [each.get("rppl_evaluator") or each.get("evaluator") for each in settings],
    }
    for what, (one, two) in compared.items():
        if None not in (one, two) and "none" not in (one, two) and one != two:
            raise UsageError(f"{first} and {second} have different {what} ({one} and {two}): evaluate both alike")


def _words(arrays: dict[str, NDArray[Any]], figure: str) -> NDArray[Any]:
    """Words of each sentence, its end counted; earlier files call them tokens, which were words then."""
    return arrays[f"{figure}_words"] if f"{figure}_words" in arrays else arrays[f"{figure}_tokens"]


def _load(folder: Path) -> dict[str, NDArray[Any]]:
    path = folder / "sentences.npz"
    if not path.is_file():
        raise UsageError(f"{path} is not there: make it with recipes/evaluate_text.py --output_dir {folder}")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, BadZipFile) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def bootstrap_interval(
    values: ArrayLike, *, tokens: ArrayLike | None = None, num_resamples: int = 1000, seed: int = 0
) -> Measurement:
    """The mean or the perplexity of one run, with the interval that resampling its sentences gives.

    Args:
        values: `(n,)`, one value per sentence, such as the NLL in nats.
        tokens: `(n,)` tokens per sentence. Given, the statistic is the perplexity
            `exp(sum of values / sum of tokens)`; else it is the mean.
        num_resamples: Number of bootstrap resamples.
        seed: Of the resampling.

    Raises:
        UsageError: As in [`paired_bootstrap`].
    """
    columns = _columns({"values": values}, tokens, num_resamples)
    resampled = _statistic(_resampled_sums(columns, num_resamples, seed), tokens)[:, 0]
    return Measurement(
        value=float(_statistic(columns.sum(axis=0), tokens)[0]),
        interval_95=_percentiles(resampled),
        n=len(columns),
        definition=f"{_name(tokens)}; percentiles of {num_resamples} bootstrap resamples of the sentences",
    )


def _columns(values: dict[str, ArrayLike], tokens: ArrayLike | None, num_resamples: int) -> NDArray[np.float64]:
    """`(n, runs + 1)`: the values of each run, and what their sum is divided by."""
    if num_resamples < 100:
        raise UsageError(f"num_resamples must be at least 100 to give a 95 % interval, got {num_resamples}")
    arrays = {name: np.asarray(array, dtype=np.float64) for name, array in values.items()}
    shape = next(iter(arrays.values())).shape
    arrays["tokens"] = np.ones(shape) if tokens is None else np.asarray(tokens, dtype=np.float64)
    for name, array in arrays.items():
        if array.ndim != 1 or len(array) < 2:
            raise UsageError(f"{name} must hold one number for each of at least 2 sentences, got shape {array.shape}")
        if array.shape != shape:
            raise UsageError(
                f"{name} has {len(array)} values where the other side has {shape[0]}: give the same sentences in the "
                "same order"
            )
        if not np.isfinite(array).all():
            raise UsageError(f"{name} contains values that are not finite (nan or inf); look at those sentences first")
    if not (arrays["tokens"] > 0).all():
        raise UsageError("tokens must be positive for every sentence; count the end of a sentence as one")
    return np.stack(list(arrays.values()), axis=1)


def _statistic(sums: NDArray[np.float64], tokens: ArrayLike | None) -> NDArray[np.float64]:
    """The statistic of each run, `(..., runs)`, from sums of the columns, `(..., runs + 1)`."""
    means = sums[..., :-1] / sums[..., -1:]
    return means if tokens is None else np.exp(means)


def _name(tokens: object) -> str:
    return "mean" if tokens is None else "perplexity exp(sum of values / sum of tokens)"


def _resampled_sums(columns: NDArray[np.float64], num_resamples: int, seed: int) -> NDArray[np.float64]:
    """Sums of the columns over each resample, `(num_resamples, runs + 1)`."""
    rng, n = np.random.default_rng(seed), len(columns)
    rows = max(1, _CHUNK // n)
    parts = []
    for start in range(0, num_resamples, rows):
        size = min(rows, num_resamples - start)
        # How often each sentence is drawn says as much as which are drawn, and makes the sums a matrix product.
        drawn = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        parts.append(counts @ columns)
    return np.concatenate(parts)


def _percentiles(resampled: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(low), float(high)
