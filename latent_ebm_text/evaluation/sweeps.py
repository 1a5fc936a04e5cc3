"""The table and the picture of several evaluated runs that differ in some settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latent_ebm_text.pictures import new_picture, save_picture

_COLUMNS = (
    "reconstruction NLL",
    "prior NLL",
    "marginal NLL",
    "exact NLL",
    "active units",
    "posterior-prior mismatch",
    "energy gap",
    "FPPL",
    "RPPL",
)


def describe_sweep(runs: Mapping[str, Path], varied: Sequence[str]) -> str:
    """The figures of every run as a Markdown table, with half the width of each 95 % interval.

    Args:
        runs: Folders of finished runs, each with `results.json` and `evaluation/evaluation.json`, by name.
        varied: The settings that differ, in the order in which they stand in the names.
    """
    reports = {name: _read(folder) for name, folder in runs.items()}
    columns = [column for column in _COLUMNS if any(column in report for report in reports.values())]
    lines = [f"| {', '.join(varied)} | {' | '.join(columns)} | training |", "|---" * (len(columns) + 2) + "|"]
    for name, report in reports.items():
        cells = [_cell(report.get(column)) for column in columns]
        seconds = json.loads((runs[name] / "results.json").read_text(encoding="utf-8"))["training_seconds"]
        lines.append(f"| {name} | {' | '.join(cells)} | {seconds / 60:.1f} min |")
    return "\n".join(lines) + "\n"


def plot_frontier(folders: Sequence[Path], path: Path) -> Path:
    """Draws every run as a point: what the latent tells against how well samples cover real text.

    Left: the prior NLL minus the reconstruction NLL against RPPL, or against the marginal NLL where no evaluator was
    asked. Right: the same against the energy gap between posterior and prior draws.

    Args:
        folders: Of finished runs.
        path: The PNG to write.

    Raises:
        UsageError: If matplotlib is not installed (names the extra).
    """
    reports = {folder.name: _read(folder) for folder in folders}
    quality = "RPPL" if all("RPPL" in report for report in reports.values()) else "marginal NLL"
    figure = new_picture(11, 4.5)
    for axes, against in zip(figure.subplots(1, 2), (quality, "energy gap"), strict=True):
        for name, report in reports.items():
            if against not in report:
                continue
            told = report["prior NLL"]["value"] - report["reconstruction NLL"]["value"]
            axes.plot(told, report[against]["value"], "o")
            axes.annotate(name, (told, report[against]["value"]), fontsize="x-small")
        axes.set_xlabel("what the latent tells: prior NLL - reconstruction NLL, nats")
        axes.set_ylabel(against)
        axes.grid(alpha=0.3)
    return save_picture(figure, path)


def _read(folder: Path) -> dict[str, Any]:
    path = folder / "evaluation" / "evaluation.json"
    figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["figures"]
    return figures


def _cell(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return "-"
    low, high = figure["interval_95"]
    flag = " (!)" if figure.get("warning") else ""
    return f"{figure['value']:.4g} ± {(high - low) / 2:.2g}{flag}"
