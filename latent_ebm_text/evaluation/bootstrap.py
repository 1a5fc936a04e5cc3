"""The bootstrap: resampled statistics of one run, and whether two runs differ by more than sampling noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latent_ebm_text.errors import UsageError

Floats = NDArray[np.float64]

#: Numbers drawn at a time, which bounds the memory.
_CHUNK = 2**20


# -------- resampling


def resampled_sums(columns: Floats, num_resamples: int, seed: int) -> Floats:
    """Sums of the columns `(n, columns)` over each bootstrap resample of the rows, `(num_resamples, columns)`.

    Raises:
        UsageError: If there are fewer than 100 resamples.
    """
    if num_resamples < 100:
        raise UsageError(f"num_resamples must be at least 100 to give a 95 % interval, got {num_resamples}")
    rng, n, parts = np.random.default_rng(seed), len(columns), []
    rows = max(1, _CHUNK // n)
    for start in range(0, num_resamples, rows):
        size = min(rows, num_resamples - start)
        # How often each row is drawn says as much as which rows are drawn, and makes the sums a matrix product.
        drawn = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        parts.append(counts @ columns)
    return np.concatenate(parts)


def percentile_interval(resampled: ArrayLike) -> tuple[float, float]:
    """The 2.5 % and 97.5 % percentiles of a statistic over resamples, those left out in which it is not finite."""
    values = np.asarray(resampled, dtype=np.float64)
    low, high = np.percentile(values[np.isfinite(values)], [2.5, 97.5])
    return float(low), float(high)


def resampled_means(
    values: Mapping[str, ArrayLike], tokens: ArrayLike | None, num_resamples: int, seed: int
) -> tuple[Floats, Floats]:
    """The mean of each run's values, or with `tokens` the perplexity `exp(sum of values / sum of tokens)`.

    Args:
        values: `(n,)` values of the same sentences by each run, by the name that errors give them.
        tokens: `(n,)` tokens per sentence.
        num_resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.

    Returns:
        The statistics `(runs,)`, and those of the resamples `(num_resamples, runs)`.
    """
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
    columns = np.stack(list(arrays.values()), axis=1)
    sums = np.concatenate([columns.sum(axis=0, keepdims=True), resampled_sums(columns, num_resamples, seed)])
    means = sums[:, :-1] / sums[:, -1:]
    statistics = means if tokens is None else np.exp(means)
    return statistics[0], statistics[1:]


# -------- two runs


@dataclass(frozen=True)
class Comparison:
    """Two runs compared by the bootstrap.

    Attributes:
        first: The statistic of the first run.
        second: The statistic of the second run.
        difference: `first - second`.
        interval_95: The 95 % interval of the difference, low and high, by percentiles of the bootstrap.
        p_value: Twice the share of resamples in which the difference has the opposite sign (or is zero), at most 1.
            The bootstrap's stand-in for a two-sided p-value; it cannot fall below `2 / (num_resamples + 1)`.
        n: Number of sentences; the smaller number where each run has sentences of its own.
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
        values = f"{self.first:.4g} against {self.second:.4g} ({self.statistic})"
        interval = f"difference {self.difference:+.4g}, 95 % interval {low:+.4g} to {high:+.4g}, n = {self.n}"
        if not self.differs:
            return f"no difference beyond noise: {values}; {interval}"
        return f"the first run is {'lower' if self.difference < 0 else 'higher'}: {values}; {interval}"

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON-able values."""
        return {**asdict(self), "interval_95": list(self.interval_95), "verdict": self.verdict}


def paired_bootstrap(
    first: ArrayLike,
    second: ArrayLike,
    *,
    tokens: ArrayLike | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Compares two runs on the same sentences by the paired bootstrap (Koehn, 2004).

    Every resample draws sentences with replacement and takes both runs' values of them, so that what makes a sentence
    hard for both cancels. The interval covers the noise of the choice of test sentences alone; for that of training,
    repeat the training with other seeds.

    Args:
        first: `(n,)`, one value per sentence of the first run, such as the NLL in nats.
        second: `(n,)`, the second run's values of the same sentences, in the same order.
        tokens: `(n,)` tokens per sentence. If given, the statistic is the perplexity
            `exp(sum of values / sum of tokens)`; otherwise it is the mean.
        num_resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.

    Raises:
        UsageError: If the values do not pair up, are fewer than two or not finite, a token count is not positive, or
            there are fewer than 100 resamples.
    """
    own, resampled = resampled_means({"first": first, "second": second}, tokens, num_resamples, seed)
    return _compare(own, resampled, np.asarray(first).size, tokens)


def unpaired_bootstrap(
    first: ArrayLike,
    second: ArrayLike,
    *,
    tokens: tuple[ArrayLike, ArrayLike] | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Compares two runs on different sentences, such as those that each has generated, so that nothing cancels.

    Args:
        first: `(n,)`, one value per sentence of the first run.
        second: `(m,)`, one value per sentence of the second run.
        tokens: `(n,)` and `(m,)` tokens per sentence. If given, the statistic is the perplexity; otherwise it is the
            mean.
        num_resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.

    Raises:
        UsageError: As [`paired_bootstrap`].
    """
    first_tokens, second_tokens = (None, None) if tokens is None else tokens
    runs = (
        resampled_means({"first": first}, first_tokens, num_resamples, seed),
        resampled_means({"second": second}, second_tokens, num_resamples, seed + 1),
    )
    own, resampled = (np.concatenate(parts, axis=-1) for parts in zip(*runs, strict=True))
    return _compare(own, resampled, min(np.asarray(first).size, np.asarray(second).size), tokens)


def _compare(own: Floats, resampled: Floats, n: int, tokens: object) -> Comparison:
    first, second = own.tolist()
    differences = resampled[:, 0] - resampled[:, 1]
    opposite = int(min((differences <= 0).sum(), (differences >= 0).sum()))
    return Comparison(
        first=first,
        second=second,
        difference=first - second,
        interval_95=percentile_interval(differences),
        p_value=min(1.0, 2 * (opposite + 1) / (len(differences) + 1)),
        n=n,
        num_resamples=len(differences),
        statistic="mean" if tokens is None else "perplexity exp(sum of values / sum of tokens)",
    )
