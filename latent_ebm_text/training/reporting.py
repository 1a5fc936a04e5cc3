"""The metrics that a run writes during training, and its warnings when something looks wrong."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from latent_ebm_text.training.files import replace_text

logger = logging.getLogger(__name__)


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
            replace_text(path, "".join(json.dumps(record) + "\n" for record in kept))

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
    """Returns the records of a metrics file.

    A last line that was cut short by a kill is left out, and so is a damaged one, with a warning that names it.
    """
    content = path.read_bytes() if path.exists() else b""
    records = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        try:
            record = json.loads(line)
            is_whole = isinstance(record["kind"], str) and isinstance(record["step"], int)
        except (ValueError, TypeError, KeyError, RecursionError):
            is_whole = False
        if is_whole:
            records.append(record)
        elif number <= content.count(b"\n"):
            logger.warning("line %d of %s is damaged and left out", number, path)
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


#: Nats by which a datum's own latent must beat the decoder with z averaged out, or the latent counts as hardly used.
MIN_LATENT_GAIN = 1.0
#: Nats between the mean energies of posterior and prior draws above which the energy counts as diverging.
MAX_ENERGY_GAP = 30.0
#: Relative difference of standard deviations above which the prior counts as not matching.
MAX_STD_MISMATCH = 0.25
#: Relative difference between the information that the latent carries and its target above which the target is missed.
MAX_INFORMATION_ERROR = 0.1
#: The likelihood weight above which an encoder counts as one that does not learn what to tell.
MAX_LIKELIHOOD_WEIGHT = 30.0


def find_problems(metrics: Mapping[str, float], settings: Mapping[str, Any]) -> list[str]:
    """Returns what is wrong with a model, each with the setting to change; nothing if all is well.

    Args:
        metrics: An evaluation: `latent_gain` and `energy_gap` in nats, and `std_mismatch`; at the end of a training
            with an encoder also `information`.
        settings: Those of the model and, where they are known, of its training.
    """
    if settings["latent_dim"] == 0:
        return []

    def now(name: str) -> str:
        return f"{name} (now {settings[name]:g})" if name in settings else name

    problems = []
    prior_learns = settings["prior_type"] == "energy"
    gain, gap, mismatch = (metrics[name] for name in ("latent_gain", "energy_gap", "std_mismatch"))
    if gain < MIN_LATENT_GAIN:
        problems.append(
            f"the latent is hardly used: it tells {gain:.1f} nats more about an example than the latents of others. "
            f"Raise {now('likelihood_weight')} or set initial_likelihood_weight"
        )
    target, weight = settings.get("information"), settings.get("likelihood_weight", 1.0)
    if target is not None and "information" in metrics:
        attained = metrics["information"]
        if weight > MAX_LIKELIHOOD_WEIGHT:
            problems.append(
                f"the encoder does not learn what to tell: the likelihood weight has grown to {weight:.0f} for "
                f"{attained:.1f} nats. Lower {now('information')}, train longer, or install the extra `encoder`"
            )
        elif abs(attained / target - 1) > MAX_INFORMATION_ERROR:
            problems.append(
                f"the latent carries {attained:.1f} nats of new examples in place of {target:g}. Train longer if it "
                "does so in training too (training.png); otherwise the encoder needs more examples to learn from"
            )
    if prior_learns and abs(gap) > MAX_ENERGY_GAP:
        problems.append(
            f"the energy runs away: posterior and prior draws are {gap:.0f} nats apart. Lower "
            f"{now('prior_learning_rate')}, raise energy_penalty, or give the prior more steps"
        )
    if prior_learns and mismatch > MAX_STD_MISMATCH:
        problems.append(
            f"the prior does not match the posterior: their standard deviations differ by {100 * mismatch:.0f} %. "
            "Raise prior_learning_rate or the steps of prior_sampler, or lower likelihood_weight"
        )
    return problems
