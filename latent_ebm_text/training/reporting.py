"""The metrics that a run writes during training, and its warnings when something looks wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from latent_ebm_text.training.arguments import TrainingArguments


class MetricsFile:
    """One JSON object per line: `{"kind": "train" | "validation" | "rollback", "step": ..., ...}`.

    When a resumed run opens the file, lines of later steps are removed, and so are lines that followed the checkpoint
    of the step from which it resumes, because the evaluation at that step is repeated.

    Args:
        path: The file.
        first_step: The step from which the run starts.
        enabled: False on all processes but one.
        track: A tracker, called with the numbers of every line, under names such as `train/loss`, and `step`.
    """

    def __init__(
        self, path: Path, *, first_step: int, enabled: bool = True, track: Callable[..., None] | None = None
    ) -> None:
        self.path, self.enabled, self.track = path, enabled, track
        if enabled:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = [record for record in read_metrics(path) if self._is_before(record, first_step)]
            rewritten = path.with_suffix(".tmp")  # a kill leaves either the old lines or the new ones
            rewritten.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
            rewritten.replace(path)

    @staticmethod
    def _is_before(record: dict[str, Any], first_step: int) -> bool:
        return record["step"] < first_step or (record["step"] == first_step and record["kind"] == "train")

    def write(self, kind: str, step: int, metrics: dict[str, Any]) -> None:
        """Appends one line."""
        if self.enabled:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"kind": kind, "step": step, **metrics}) + "\n")
        if self.track is not None:
            numbers = {f"{kind}/{name}": value for name, value in metrics.items() if isinstance(value, int | float)}
            self.track(numbers, step=step)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the records of a metrics file, without a last line that was cut short by a kill."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


class RunningMeans:
    """Running means of training metrics, in which every step is weighted by its number of examples.

    The metrics of a single batch say little, because a batch of text holds sentences of similar length.
    """

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        self._sums: dict[str, float] = dict(state["sums"]) if state else {}
        self._examples: int = state["examples"] if state else 0

    def add(self, metrics: dict[str, float], examples: int) -> None:
        """Adds the metrics of one step."""
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + examples * value
        self._examples += examples

    def take(self) -> dict[str, float]:
        """Returns the means since the last call and resets them."""
        means = {name: total / self._examples for name, total in self._sums.items()}
        self._sums, self._examples = {}, 0
        return means

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint stores so that a resumed run writes the same means."""
        return {"sums": self._sums, "examples": self._examples}


class Health:
    """Warns when the latent is not used, the prior does not match the posterior, or the energy diverges."""

    #: Nats by which an example's own latent must beat a prior draw, or the latent counts as unused.
    UNUSED_NATS = 1.0
    #: Energy gap in nats above which the energy counts as diverging.
    RUNAWAY_NATS = 30.0
    #: Relative difference of standard deviations above which the prior counts as not matching.
    MISMATCH = 0.25

    def __init__(
        self,
        args: TrainingArguments,
        *,
        likelihood_weight: float,
        prior_learns: bool = True,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.args, self.likelihood_weight, self.prior_learns = args, likelihood_weight, prior_learns
        self.warnings: list[str] = list(state["warnings"]) if state else []
        self._gaps: list[float] = list(state["gaps"]) if state else []

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint stores so that a resumed run gives the same warnings."""
        return {"warnings": self.warnings, "gaps": self._gaps}

    def observe(self, record: dict[str, float]) -> None:
        """Records the energy gap of a training record."""
        self._gaps = [*self._gaps, record["energy_gap"]][-5:]

    def judge(self, metrics: dict[str, float]) -> list[str]:
        """Returns the warnings after an evaluation, each with the setting to change."""
        found = []
        used = metrics["prior_nll"] - metrics["reconstruction_nll"]
        if used < self.UNUSED_NATS:
            found.append(
                f"the latent is hardly used: it carries {used:.1f} nats about an example. Raise likelihood_weight "
                f"(now {self.likelihood_weight:g}) or set initial_likelihood_weight"
            )
        gap = sum(self._gaps) / max(len(self._gaps), 1)
        if self.prior_learns and abs(gap) > self.RUNAWAY_NATS:
            found.append(
                f"the energy runs away: posterior and prior draws are {gap:.0f} nats apart. Lower prior_learning_rate "
                f"(now {self.args.prior_learning_rate:g}), raise energy_penalty, or give the prior more steps"
            )
        if self.prior_learns and metrics["std_mismatch"] > self.MISMATCH:
            found.append(
                f"the prior does not match the posterior: their standard deviations differ by "
                f"{100 * metrics['std_mismatch']:.0f} %. Raise prior_learning_rate or the steps of prior_sampler, or "
                "lower likelihood_weight"
            )
        # Evaluations repeat warnings, as does a resumed run.
        self.warnings += [warning for warning in found if warning not in self.warnings]
        return found
