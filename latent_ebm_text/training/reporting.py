"""What a run writes while it trains: lines of JSON, and a warning in words when something looks wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from latent_ebm_text.training.arguments import TrainingArguments


class MetricsFile:
    """One JSON object a line: `{"kind": "train" | "validation" | "rollback", "step": ..., ...}`.

    Opened by a resumed run, it forgets the lines after the step from which that run goes on, and whatever followed the
    checkpoint of that step: the evaluation that is due there comes again.

    Args:
        path: The file.
        first_step: Step that the run starts from.
        enabled: False on all processes but one.
        track: Also gets the numbers of every line, as `(figures, step)` with names such as `train/loss`: a tracker.
    """

    def __init__(
        self, path: Path, *, first_step: int, enabled: bool = True, track: Callable[..., None] | None = None
    ) -> None:
        self.path, self.enabled, self.track = path, enabled, track
        if enabled:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = [record for record in read_metrics(path) if self._is_before(record, first_step)]
            rewritten = path.with_suffix(".tmp")  # a kill leaves the old lines or the new ones, never none
            rewritten.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
            rewritten.replace(path)

    @staticmethod
    def _is_before(record: dict[str, Any], first_step: int) -> bool:
        return record["step"] < first_step or (record["step"] == first_step and record["kind"] == "train")

    def write(self, kind: str, step: int, figures: dict[str, Any]) -> None:
        """Appends one line."""
        if self.enabled:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"kind": kind, "step": step, **figures}) + "\n")
        if self.track is not None:
            numbers = {f"{kind}/{name}": value for name, value in figures.items() if isinstance(value, int | float)}
            self.track(numbers, step=step)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file; a last line cut short by a kill is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


class RunningMeans:
    """Means of the figures of a step since they were last taken, each step counting with its number of examples.

    The figures of one batch alone say little: a batch of text holds sentences of similar length.
    """

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        self._sums: dict[str, float] = dict(state["sums"]) if state else {}
        self._examples: int = state["examples"] if state else 0

    def add(self, figures: dict[str, float], examples: int) -> None:
        """Counts the figures of one step."""
        for name, value in figures.items():
            self._sums[name] = self._sums.get(name, 0.0) + examples * value
        self._examples += examples

    def take(self) -> dict[str, float]:
        """The means; counting begins anew."""
        means = {name: total / self._examples for name, total in self._sums.items()}
        self._sums, self._examples = {}, 0
        return means

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a resumed run writes the same means."""
        return {"sums": self._sums, "examples": self._examples}


class Health:
    """Tells in words when the latent is not used, the prior does not match, or the energy runs away."""

    #: Nats by which a latent of the example's own must beat a prior draw; below, the latent is called unused.
    UNUSED_NATS = 1.0
    #: Nats of energy gap beyond which the energy is said to run away.
    RUNAWAY_NATS = 30.0
    #: Mismatch of standard deviations beyond which the prior is said not to match.
    MISMATCH = 0.25

    def __init__(
        self, args: TrainingArguments, *, likelihood_weight: float, state: dict[str, Any] | None = None
    ) -> None:
        self.args, self.likelihood_weight = args, likelihood_weight
        self.warnings: list[str] = list(state["warnings"]) if state else []
        self._gaps: list[float] = list(state["gaps"]) if state else []

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a resumed run warns of the same."""
        return {"warnings": self.warnings, "gaps": self._gaps}

    def observe(self, record: dict[str, float]) -> None:
        """Takes note of a training record."""
        self._gaps = [*self._gaps, record["energy_gap"]][-5:]

    def judge(self, figures: dict[str, float]) -> list[str]:
        """New warnings after an evaluation, each with the setting to change."""
        found = []
        told = figures["prior_nll"] - figures["reconstruction_nll"]
        if told < self.UNUSED_NATS:
            found.append(
                f"the latent is hardly used: it tells {told:.1f} nats about an example. Raise likelihood_weight (now "
                f"{self.likelihood_weight:g}) or set initial_likelihood_weight"
            )
        gap = sum(self._gaps) / max(len(self._gaps), 1)
        if abs(gap) > self.RUNAWAY_NATS:
            found.append(
                f"the energy runs away: posterior and prior draws are {gap:.0f} nats apart. Lower prior_learning_rate "
                f"(now {self.args.prior_learning_rate:g}), raise energy_penalty, or give the prior more steps"
            )
        if figures["std_mismatch"] > self.MISMATCH:
            found.append(
                f"the prior does not match the posterior: their standard deviations differ by "
                f"{100 * figures['std_mismatch']:.0f} %. Raise prior_learning_rate or prior_num_steps, or lower "
                "likelihood_weight"
            )
        self.warnings += [warning for warning in found if warning not in self.warnings]  # or a resumed run repeats it
        return found
