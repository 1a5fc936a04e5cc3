"""The table and the plot of several evaluations that differ in settings of training or of sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latent_ebm_text.errors import reading
from latent_ebm_text.evaluation.plots import new_plot, save_plot
from latent_ebm_text.hub.folders import read_json

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


def describe_sweep(evaluations: Mapping[str, Path], varied: Sequence[str]) -> str:
    """The metrics of every evaluation as a Markdown table, with half the width of each 95 % interval.

    Args:
        evaluations: Folders with `evaluation.json` by name, each within the folder of its run with `results.json`.
        varied: The settings that differ, in the order in which they stand in the names.
    """
    reports = {name: _read(folder) for name, folder in evaluations.items()}
    columns = [column for column in _COLUMNS if any(column in report for report in reports.values())]
    lines = [f"| {', '.join(varied)} | {' | '.join(columns)} | training |", "|---" * (len(columns) + 2) + "|"]
    for name, report in reports.items():
        cells = [_cell(report.get(column)) for column in columns]
        results = read_json(evaluations[name].parent / "results.json")
        lines.append(f"| {name} | {' | '.join(cells)} | {results['training_seconds'] / 60:.1f} min |")
    return "\n".join(lines) + "\n"


def plot_frontier(evaluations: Mapping[str, Path], path: Path) -> Path:
    """Draws every evaluation as a point: how well samples cover real text against what that costs.

    The quality is RPPL, or the marginal NLL where evaluations have no RPPL. It is drawn against what the latent
    carries (the prior NLL minus the reconstruction NLL), the energy gap between posterior and prior draws, and FPPL.

    Args:
        evaluations: Folders with `evaluation.json`, by the name that labels the point.
        path: The PNG to write.

    Raises:
        UsageError: If matplotlib is not installed (names the extra).
    """
    reports = {name: _read(folder) for name, folder in evaluations.items()}
    quality = "RPPL" if all("RPPL" in report for report in reports.values()) else "marginal NLL"
    points = {
        "what the latent carries: prior NLL - reconstruction NLL, nats": {
            name: report["prior NLL"]["value"] - report["reconstruction NLL"]["value"]
            for name, report in reports.items()
        },
        **{
            metric: {name: report[metric]["value"] for name, report in reports.items() if metric in report}
            for metric in ("energy gap", "FPPL")
        },
    }
    points = {label: values for label, values in points.items() if values}
    figure = new_plot(5.5 * len(points), 4.5)
    for axes, (label, values) in zip(figure.subplots(1, len(points), squeeze=False)[0], points.items(), strict=True):
        for name, value in values.items():
            if quality in reports[name]:
                axes.plot(value, reports[name][quality]["value"], "o")
                axes.annotate(name, (value, reports[name][quality]["value"]), fontsize="x-small")
        axes.set_xlabel(label)
        axes.set_ylabel(quality)
        axes.grid(alpha=0.3)
    return save_plot(figure, path)


def _read(folder: Path) -> dict[str, Any]:
    with reading(folder):
        metrics: dict[str, Any] = read_json(folder / "evaluation.json")["metrics"]
    return metrics


def _cell(metric: dict[str, Any] | None) -> str:
    if metric is None:
        return "-"
    low, high = metric["interval_95"]
    flag = " (!)" if metric.get("warning") else ""
    return f"{metric['value']:.4g} ± {(high - low) / 2:.2g}{flag}"
