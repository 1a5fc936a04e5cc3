"""A number with its interval, its sample size and what it means, for figures that are no plain mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Measurement:
    """A figure fit to be reported.

    Attributes:
        value: The figure.
        interval_95: Its 95 % interval, low and high.
        n: Number of independent items behind it, mostly sentences.
        definition: What was computed, and how the interval was made.
        details: Further JSON-able values that help to read it.
    """

    value: float
    interval_95: tuple[float, float]
    n: int
    definition: str
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "value": self.value,
            "interval_95": list(self.interval_95),
            "n": self.n,
            "definition": self.definition,
            **self.details,
        }

    def __str__(self) -> str:
        low, high = self.interval_95
        return f"{self.value:.4g} (95 % interval {low:.4g} to {high:.4g}, n = {self.n})"
