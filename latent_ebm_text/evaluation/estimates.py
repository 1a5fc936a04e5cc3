"""A number with its standard error and sample size."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.measurements import Measurement


@dataclass(frozen=True)
class Estimate:
    """An estimated mean.

    Attributes:
        value: The estimate.
        standard_error: Of the estimate.
        n: Number of independent values behind it.
    """

    value: float
    standard_error: float
    n: int

    @classmethod
    def of_mean(cls, values: Tensor) -> Estimate:
        """The mean of independent values of shape `(n,)`, with `n >= 2`."""
        if values.dim() != 1 or len(values) < 2:
            raise UsageError(f"a mean with a standard error needs at least 2 values, got shape {tuple(values.shape)}")
        values = values.double()
        return cls(float(values.mean()), float(values.std() / len(values) ** 0.5), len(values))

    def described(self, definition: str, **details: Any) -> Measurement:
        """The same, fit to be reported: with the 95 % interval of the normal approximation and what it means."""
        margin = 1.96 * self.standard_error
        interval = (self.value - margin, self.value + margin)
        return Measurement(self.value, interval, self.n, definition, details)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values, with the 95 % interval of the normal approximation."""
        margin = 1.96 * self.standard_error
        return {**asdict(self), "interval_95": [self.value - margin, self.value + margin]}

    def __str__(self) -> str:
        return f"{self.value:.2f} ± {self.standard_error:.2f} (n = {self.n})"
