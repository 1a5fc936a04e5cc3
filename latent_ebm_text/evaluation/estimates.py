"""A measured quantity with its 95 % interval, its sample size and its definition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.bootstrap import percentile_interval, resampled_means
from latent_ebm_text.latents.classifier import wilson_interval

#: Half the width of a 95 % interval of the normal approximation, in standard errors.
Z_95 = 1.96


@dataclass(frozen=True)
class Estimate:
    """A measured quantity with its uncertainty.

    Make one by [`Estimate.of_mean`], [`Estimate.of_proportion`] or [`Estimate.of_bootstrap`], each of which adds to
    the definition how the interval was made.

    Attributes:
        value: The estimate.
        interval_95: Its 95 % interval, low and high.
        n: Number of independent items behind it, mostly sentences.
        definition: What was computed, and how the interval was made.
        standard_error: The standard error of `value`, where the interval was made from it.
        details: Further JSON-able values that help to read the estimate. A `warning` among them says why it is not to
            be trusted.
    """

    value: float
    interval_95: tuple[float, float]
    n: int
    definition: str
    standard_error: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_normal(cls, value: float, standard_error: float, n: int, definition: str, **details: Any) -> Estimate:
        """An estimate with a known standard error and the interval of the normal approximation."""
        margin = Z_95 * standard_error
        interval = (value - margin, value + margin)
        return cls(value, interval, n, f"{definition}; normal interval", standard_error, details)

    @classmethod
    def of_mean(cls, values: Tensor, definition: str, **details: Any) -> Estimate:
        """The mean of independent values of shape `(n,)`, with `n >= 2`, and its normal interval."""
        if values.dim() != 1 or len(values) < 2:
            raise UsageError(f"a mean with a standard error needs at least 2 values, got shape {tuple(values.shape)}")
        values = values.double()
        error = float(values.std() / len(values) ** 0.5)
        return cls.of_normal(float(values.mean()), error, len(values), definition, **details)

    @classmethod
    def of_proportion(cls, count: int, n: int, definition: str) -> Estimate:
        """The proportion `count / n` with the interval of Wilson (1927), which stays within 0 and 1."""
        low, high = wilson_interval(count, n)
        value = count / n
        interval = (min(low, value), max(high, value))  # which rounding may just leave out
        return cls(value, interval, n, f"{definition}; Wilson interval", details={"count": count})

    @classmethod
    def of_bootstrap(
        cls,
        values: ArrayLike,
        definition: str,
        *,
        tokens: ArrayLike | None = None,
        num_resamples: int = 1000,
        seed: int = 0,
        **details: Any,
    ) -> Estimate:
        """The mean or the perplexity of sentences, with the interval that resampling the sentences gives.

        Args:
            values: `(n,)`, one value per sentence, such as the NLL in nats.
            definition: What is computed.
            tokens: `(n,)` tokens per sentence. If given, the statistic is the perplexity
                `exp(sum of values / sum of tokens)`; otherwise it is the mean.
            num_resamples: Number of bootstrap resamples.
            seed: Seed of the resampling.
            **details: See [`Estimate`].

        Raises:
            UsageError: As [`~latent_ebm_text.evaluation.bootstrap.paired_bootstrap`].
        """
        own, resampled = resampled_means({"values": values}, tokens, num_resamples, seed)
        definition = f"{definition}; percentile interval of {num_resamples} bootstrap resamples of the sentences"
        return cls(float(own[0]), percentile_interval(resampled), np.asarray(values).size, definition, details=details)

    def to_dict(self) -> dict[str, Any]:
        """The estimate as JSON-able values."""
        error = {} if self.standard_error is None else {"standard_error": self.standard_error}
        return {
            "value": self.value,
            "interval_95": list(self.interval_95),
            "n": self.n,
            **error,
            "definition": self.definition,
            **self.details,
        }

    def __format__(self, spec: str) -> str:
        """The value with its standard error, or with its interval where it has none, such as `f"{estimate:.2f}"`."""
        if self.standard_error is not None:
            return f"{self.value:{spec}} ± {self.standard_error:{spec}}"
        low, high = self.interval_95
        return f"{self.value:{spec}} [{low:{spec}}, {high:{spec}}]"
