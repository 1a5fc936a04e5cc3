"""A report of figures, each with its interval, its n and its definition: as JSON and as a Markdown table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latent_ebm_text.evaluation.measurements import Measurement


@dataclass
class Report:
    """What was measured of one model.

    Attributes:
        facts: What a reader needs to know to measure it again: model, data, command, commit, wall time.
        figures: By name, in the order in which they are shown.
        texts: Further sections in Markdown, by title, such as that of a chain report.
        settings: Of the evaluation, by which it can be done again.
    """

    facts: dict[str, Any]
    figures: dict[str, Measurement] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def add(self, figures: Mapping[str, Measurement]) -> None:
        """Adds figures; a name may stand in a report only once."""
        for name, figure in figures.items():
            if name in self.figures:
                raise ValueError(f"the report has a figure {name!r} already")
            self.figures[name] = figure

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "facts": self.facts,
            "figures": {name: figure.to_dict() for name, figure in self.figures.items()},
            "texts": self.texts,
            "settings": self.settings,
        }

    def to_markdown(self) -> str:
        """For people: facts, a table of figures, their definitions, and the further sections."""
        lines = [f"- {name}: {value}" for name, value in self.facts.items()]
        lines += ["", "| figure | value | 95 % interval | n | |", "|---|---|---|---|---|"]
        for name, figure in self.figures.items():
            low, high = figure.interval_95
            note = figure.details.get("warning") or ""
            lines.append(f"| {name} | {figure.value:.5g} | {low:.5g} to {high:.5g} | {figure.n:,} | {note} |")
        lines += ["", *(f"- **{name}**: {figure.definition}." for name, figure in self.figures.items())]
        for title, text in self.texts.items():
            lines += ["", f"## {title}", "", text.rstrip()]
        return "\n".join(lines) + "\n"

    def write(self, folder: str | Path) -> list[Path]:
        """Writes `evaluation.json` and `evaluation.md` into a folder, which is made where it is not there."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / "evaluation.json", folder / "evaluation.md"]
        paths[0].write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        paths[1].write_text(self.to_markdown(), encoding="utf-8")
        return paths
