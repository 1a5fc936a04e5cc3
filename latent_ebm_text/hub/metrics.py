"""The metrics of a model card, read from what a run and its evaluation have written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CardMetric:
    """A metric as a card shows it.

    Attributes:
        name: Its name, such as `"reconstruction NLL"`.
        split: The split it was measured on.
        value: Its value.
        interval_95: Its 95 % interval, low and high.
        n: Number of independent items behind it.
        definition: What was computed.
        warning: Why it is not to be trusted, if so.
    """

    name: str
    split: str
    value: float
    interval_95: tuple[float, float]
    n: int
    definition: str
    warning: str | None

    @classmethod
    def read(cls, name: str, split: str, metric: dict[str, Any]) -> CardMetric:
        """A metric from its JSON values."""
        low, high = metric["interval_95"]
        return cls(name, split, metric["value"], (low, high), metric["n"], metric["definition"], metric.get("warning"))

    @property
    def is_of_real_data(self) -> bool:
        """Whether it measures the data, for comparison, and not the model."""
        return self.name.endswith(", real") or self.name == "exact NLL" or "evaluator's" in self.name

    @property
    def slug(self) -> str:
        """The name as an identifier."""
        return "".join(letter if letter.isalnum() else "_" for letter in self.name.lower())


def run_metrics(results: dict[str, Any]) -> list[CardMetric]:
    """The metrics in a run's `results.json`: whatever has a definition there."""
    return [
        CardMetric.read(metric["name"], split, metric)
        for split, metrics in results.get("splits", {}).items()
        for metric in metrics.values()
        if isinstance(metric, dict) and "definition" in metric
    ]


def evaluation_metrics(evaluation: dict[str, Any]) -> list[CardMetric]:
    """The metrics in an `evaluation.json`, all of them on the test split."""
    return [CardMetric.read(name, "test", metric) for name, metric in evaluation.get("metrics", {}).items()]


def card_metrics(results: dict[str, Any], evaluation: dict[str, Any]) -> list[CardMetric]:
    """The metrics of a run and its evaluation; where both have one of a name and split, the evaluation's."""
    metrics = {(metric.name, metric.split): metric for metric in evaluation_metrics(evaluation)}
    for metric in run_metrics(results):
        metrics.setdefault((metric.name, metric.split), metric)
    return list(metrics.values())
