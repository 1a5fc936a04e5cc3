"""Pictures of a run. Needs the extra `plots` (matplotlib)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from latent_ebm_text.errors import UsageError
from latent_ebm_text.pictures import new_picture, save_picture
from latent_ebm_text.training.reporting import read_metrics


def plot_training(metrics_path: Path, picture_path: Path) -> Path:
    """Draws the course of a training: NLLs, energy gap, standard deviations, gradient norms.

    Args:
        metrics_path: The `metrics.jsonl` of a run.
        picture_path: The PNG to write.

    Raises:
        UsageError: If matplotlib is not installed (names the extra), or there is nothing to draw.
    """
    records = read_metrics(metrics_path)
    training = [record for record in records if record["kind"] == "train"]
    validation = [record for record in records if record["kind"] == "validation"]
    if not training:
        raise UsageError(f"{metrics_path} holds no training records to draw")

    figure = new_picture(11, 7)
    (nll, gap), (std, norms) = figure.subplots(2, 2, sharex=True)
    _draw(nll, training, reconstruction_nll="reconstruction, training")
    _draw(nll, validation, reconstruction_nll="reconstruction, validation", prior_nll="prior draws, validation")
    _draw(gap, training, energy_gap="posterior - prior energy", penalty="energy penalty")
    _draw(std, training, posterior_std="posterior draws, training", prior_std="prior draws, training")
    _draw(norms, training, decoder_grad_norm="decoder", prior_grad_norm="prior")
    norms.set_yscale("log")
    for axes, title, unit in (
        (nll, "negative log-likelihood", "nats per example"),
        (gap, "energies", "nats"),
        (std, "standard deviation of the latents", "mean over dimensions"),
        (norms, "gradient norms, before clipping", ""),
    ):
        axes.set_title(title)
        axes.set_ylabel(unit)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    for axes in (std, norms):
        axes.set_xlabel("step")
    return save_picture(figure, picture_path)


def _draw(axes: Any, records: list[dict[str, Any]], **names: str) -> None:
    for key, label in names.items():
        points = [(record["step"], record[key]) for record in records if key in record]
        if points:
            marker = "o-" if records[0]["kind"] == "validation" else "-"
            axes.plot(*zip(*points, strict=True), marker, label=label, markersize=3, linewidth=1.2)
