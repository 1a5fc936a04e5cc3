"""The report on a model: its metrics, each with interval, n and definition, as JSON and as a Markdown table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latent_ebm_text.evaluation.estimates import Estimate


@dataclass
class Report:
    """What was measured of one model.

    Attributes:
        facts: What a reader needs to know to measure it again: model, data, command, commit, wall time.
        metrics: The metrics by name, in the order in which they are shown.
        tables: Further tables by title: rows of metrics by name, and by the name of what was measured. The rows of a
            table have the same metrics.
        texts: Further sections in Markdown by title, such as that on the chains.
        settings: The settings of the evaluation, by which it can be repeated.
    """

    facts: dict[str, Any]
    metrics: dict[str, Estimate] = field(default_factory=dict)
    tables: dict[str, Mapping[str, Mapping[str, Estimate]]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def add(self, metrics: Mapping[str, Estimate]) -> None:
        """Adds metrics, each of which may stand in a report only once."""
        for name, metric in metrics.items():
            if name in self.metrics:
                raise ValueError(f"the report has a metric {name!r} already")
            self.metrics[name] = metric

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-able values."""
        return {
            "facts": self.facts,
            "metrics": {name: metric.to_dict() for name, metric in self.metrics.items()},
            "tables": {
                title: {
                    row: {name: metric.to_dict() for name, metric in found.items()} for row, found in table.items()
                }
                for title, table in self.tables.items()
            },
            "texts": self.texts,
            "settings": self.settings,
        }

    def to_markdown(self) -> str:
        """The report for people: facts, a table of the metrics, their definitions, further tables and sections."""
        lines = [f"- {name}: {value}" for name, value in self.facts.items()]
        lines += ["", "| metric | value | 95 % interval | n | |", "|---|---|---|---|---|"]
        for name, metric in self.metrics.items():
            low, high = metric.interval_95
            warning = metric.details.get("warning") or ""
            lines.append(f"| {name} | {metric.value:.5g} | {low:.5g} to {high:.5g} | {metric.n:,} | {warning} |")
        lines += ["", *(f"- **{name}**: {metric.definition}." for name, metric in self.metrics.items())]
        for title, table in self.tables.items():
            lines += ["", f"## {title}", "", *_markdown_table(table)]
        for title, text in self.texts.items():
            lines += ["", f"## {title}", "", text.rstrip()]
        return "\n".join(lines) + "\n"

    def write(self, folder: str | Path) -> list[Path]:
        """Writes `evaluation.json` and `evaluation.md` into a folder, which is created if it does not exist."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / "evaluation.json", folder / "evaluation.md"]
        paths[0].write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        paths[1].write_text(self.to_markdown(), encoding="utf-8")
        return paths


def _markdown_table(table: Mapping[str, Mapping[str, Estimate]]) -> list[str]:
    names = list(next(iter(table.values())))
    lines = [f"| | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for row, metrics in table.items():
        cells = [
            f"{metrics[name].value:.4g} [{metrics[name].interval_95[0]:.4g}, {metrics[name].interval_95[1]:.4g}]"
            for name in names
        ]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    definitions = next(iter(table.values()))
    return [*lines, "", *(f"- **{name}**: {metric.definition}." for name, metric in definitions.items())]
