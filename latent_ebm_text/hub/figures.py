"""The figures of a card, from what a run and its evaluation have written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latent_ebm_text.errors import DataError

#: Figures of a run's own `results.json`, with their definitions.
_RUN_FIGURES = {
    "reconstruction_nll": (
        "reconstruction NLL",
        "-log p(x | z) in nats, z from the model's own posterior sampler (two chains each); normal interval over the "
        "split",
    ),
    "prior_nll": (
        "prior NLL",
        "the same with z from the model's prior sampler: what the latent tells is the difference",
    ),
    "mse": ("reconstruction MSE", "squared error per pixel in [-1, 1] of reconstructed images; normal interval"),
}
_LATENT_FIGURES = {
    "active_units": (
        "active units",
        "dimensions whose posterior mean varies by more than 0.01, beyond two standard errors",
    ),
    "std_mismatch": (
        "posterior-prior mismatch",
        "mean over dimensions of |posterior std / prior std - 1|, of draws over the data and from the prior",
    ),
    "energy_gap": ("energy gap", "mean energy of posterior draws minus that of prior draws, in nats"),
}


@dataclass(frozen=True)
class CardFigure:
    """A figure as a card shows it.

    Attributes:
        name: Such as `"reconstruction NLL"`.
        split: The data it was measured on.
        value: The figure.
        interval: Its 95 % interval, where there is one.
        n: Items behind it.
        definition: What was computed.
        warning: What is wrong with it, if something is.
    """

    name: str
    split: str
    value: float
    interval: tuple[float, float] | None
    n: int
    definition: str
    warning: str | None = None

    @property
    def is_of_real_data(self) -> bool:
        """Whether it measures the data, to compare with, and not the model."""
        return self.name.endswith(", real") or self.name == "exact NLL" or "evaluator's" in self.name

    @property
    def slug(self) -> str:
        """The name as an identifier."""
        return "".join(letter if letter.isalnum() else "_" for letter in self.name.lower())


def run_figures(results: dict[str, Any]) -> list[CardFigure]:
    """The figures of a run's `results.json`."""
    found = []
    for split, figures in results.get("splits", {}).items():
        for key, (name, definition) in _RUN_FIGURES.items():
            if key in figures:
                figure = figures[key]
                interval = (figure["interval_95"][0], figure["interval_95"][1])
                found.append(CardFigure(name, split, figure["value"], interval, figure["n"], definition))
        latents = figures.get("latents", {})
        for key, (name, definition) in _LATENT_FIGURES.items():
            if key in latents:
                found.append(CardFigure(name, split, latents[key], None, latents["n"], definition))
    return found


def evaluation_figures(evaluation: dict[str, Any]) -> list[CardFigure]:
    """The figures of an `evaluation.json`, all of the test split."""
    return [
        CardFigure(
            name, "test", figure["value"], (figure["interval_95"][0], figure["interval_95"][1]), figure["n"],
            figure["definition"], figure.get("warning"),
        )
        for name, figure in evaluation.get("figures", {}).items()
    ]  # fmt: skip


def merge_figures(run: list[CardFigure], evaluation: list[CardFigure]) -> list[CardFigure]:
    """All figures; of two with one name and split the evaluation's."""
    evaluated = {(figure.name, figure.split) for figure in evaluation}
    return [*evaluation, *(figure for figure in run if (figure.name, figure.split) not in evaluated)]


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file; nothing of one that is not there.

    Raises:
        DataError: If it is there and damaged.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} does not hold what a run writes there")
    return content
