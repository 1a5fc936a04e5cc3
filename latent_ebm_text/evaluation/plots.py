"""Plots of a training, of an evaluation and of chains, which need matplotlib, and grids of images, which do not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from latent_ebm_text.data.batching import count_words
from latent_ebm_text.data.image_processing import convert_images
from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.text import SentenceDraws
from latent_ebm_text.training.reporting import read_metrics

if TYPE_CHECKING:
    from latent_ebm_text.evaluation.chains import ChainReport

#: Points of a curve over the length of sentences, each with as many sentences.
_LENGTH_GROUPS = 12


# -------- what all plots share


def new_plot(width: float, height: float) -> Any:
    """An empty `matplotlib.figure.Figure` of this size in inches, which needs no display.

    Raises:
        UsageError: If matplotlib is not installed (names the extra).
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("plots need matplotlib: pip install 'latent-ebm-text[plots]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def save_plot(figure: Any, path: Path) -> Path:
    """Writes a PNG, and the folder it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def _label(axes: Any, title: str, x: str, y: str) -> None:
    """Title, labels, grid, and a legend of what has a name."""
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")


# -------- a training


def plot_training(metrics_path: Path, plot_path: Path) -> Path:
    """Draws the course of a training: NLLs, energy gap, standard deviations, gradient norms.

    Args:
        metrics_path: The `metrics.jsonl` of a run.
        plot_path: The PNG to write.

    Raises:
        UsageError: If matplotlib is not installed (names the extra), or there is nothing to draw.
    """
    records = read_metrics(metrics_path)
    training, validation = ([r for r in records if r["kind"] == kind] for kind in ("train", "validation"))
    if not training:
        raise UsageError(f"{metrics_path} holds no training records to draw")

    def draw(axes: Any, records: list[dict[str, Any]], marker: str = "-", **labels: str) -> None:
        for key, label in labels.items():
            points = [(record["step"], record[key]) for record in records if key in record]
            if points:
                axes.plot(*zip(*points, strict=True), marker, label=label, markersize=3, linewidth=1.2)

    has_information = any("information" in record for record in training)
    figure = new_plot(15 if has_information else 11, 7)
    columns = figure.subplots(2, 3 if has_information else 2, sharex=True)
    (nll, gap), (std, norms) = columns[0][:2], columns[1][:2]
    draw(nll, training, reconstruction_nll="reconstruction, training")
    draw(nll, validation, "o-", reconstruction_nll="reconstruction, validation", prior_nll="prior draws, validation")
    draw(gap, training, energy_gap="posterior - prior energy", penalty="energy penalty")
    draw(std, training, posterior_std="posterior draws, training", prior_std="prior draws, training")
    draw(norms, training, decoder_grad_norm="decoder", prior_grad_norm="prior")
    norms.set_yscale("log")
    _label(nll, "negative log-likelihood", "", "nats per example")
    _label(gap, "energies", "", "nats")
    _label(std, "standard deviation of the latents", "step", "mean over dimensions")
    _label(norms, "gradient norms, before clipping", "step", "")
    if has_information:
        information, weight = columns[0][2], columns[1][2]
        draw(information, training, information="carried by the latent", information_target="target")
        draw(weight, training, likelihood_weight="w")
        weight.set_yscale("log")
        _label(information, "information", "", "nats per example")
        _label(weight, "likelihood weight", "step", "")
    return save_plot(figure, plot_path)


# -------- an evaluation of a text model


def plot_text_report(
    draws: SentenceDraws,
    samples: Sequence[str],
    path: Path,
    *,
    marginal_nll: np.ndarray | None = None,
    marginal_lengths: np.ndarray | None = None,
) -> Path:
    """Draws NLLs over the length of sentences, energies and spread of posterior and prior draws, lengths of samples.

    Args:
        draws: The draws for real sentences.
        samples: Generated sentences, words separated by spaces.
        path: The PNG to write.
        marginal_nll: `(sentences,)`, `-log p(x)` in nats.
        marginal_lengths: `(sentences,)`, the numbers of tokens of the same sentences, the end counted.

    Raises:
        UsageError: If matplotlib is not installed (names the extra).
    """
    figure = new_plot(11, 7.5)
    (nll, energy), (spread, lengths) = figure.subplots(2, 2)

    _draw_by_length(nll, draws.lengths, draws.prior_nll.cpu().numpy(), "prior NLL")
    if marginal_nll is not None and marginal_lengths is not None:
        _draw_by_length(nll, marginal_lengths, marginal_nll, "marginal NLL")
    _draw_by_length(nll, draws.lengths, draws.reconstruction_nll.cpu().numpy(), "reconstruction NLL")
    _label(nll, "NLL by sentence length", "tokens, the end counted", "nats per sentence")

    if draws.first.shape[1]:
        energies = {"posterior": draws.posterior_energy.cpu().numpy(), "prior": draws.prior_energy.cpu().numpy()}
        _draw_histograms(energy, {f"{name} draws": values for name, values in energies.items()}, 50)
        for name, latents in (("posterior", draws.first), ("prior", draws.prior)):
            std = np.sort(latents.std(dim=0).cpu().numpy())[::-1]
            spread.plot(np.arange(1, len(std) + 1), std, "o-", markersize=3, label=f"{name} draws")
        spread.set_ylim(bottom=0)
        _label(energy, "do prior draws look like posterior draws?", "energy, nats", "density")
        _label(spread, "standard deviation of each dimension, sorted", "dimension", "")
    else:
        for axes in (energy, spread):
            axes.set_axis_off()
            axes.text(0.5, 0.5, "a model without a latent", ha="center", va="center")

    generated = np.array([count_words(sample) for sample in samples])
    _draw_histograms(lengths, {"real": draws.words, "generated": generated}, 40)
    _label(lengths, "lengths", "words, the end counted", "density")
    return save_plot(figure, path)


def _draw_by_length(axes: Any, lengths: np.ndarray, values: np.ndarray, label: str) -> None:
    """Mean values of groups of sentences of similar length."""
    groups = np.array_split(np.argsort(lengths, kind="stable"), min(_LENGTH_GROUPS, len(lengths)))
    x, y = ([array[group].mean() for group in groups] for array in (lengths, values))
    axes.plot(x, y, "o-", markersize=3, label=label)


def _draw_histograms(axes: Any, values: dict[str, np.ndarray], num_bins: int) -> None:
    bins = np.histogram_bin_edges(np.concatenate(list(values.values())), num_bins)
    for label, array in values.items():
        axes.hist(array, bins, histtype="step", density=True, label=label)


# -------- chains of the prior


def plot_chain_report(report: ChainReport, path: Path) -> Path:
    """Draws the energies along the chains, and how evenly the superchains share the ranks of the long run.

    Where chains agree every superchain holds all ranks equally often, and its line is flat but for noise.

    Args:
        report: The report of [`run_chain_report`].
        path: The PNG to write.

    Raises:
        UsageError: If matplotlib is not installed (names the extra).
    """
    figure = new_plot(13, 4.2)
    energy, *ranks = figure.subplots(1, 3, width_ratios=(5, 3, 3))
    steps = np.arange(1, len(report.trace) + 1)
    trace = report.trace.double()
    mean, std = trace.mean(dim=1).numpy(), trace.std(dim=1).numpy()
    for chain in np.linspace(0, trace.shape[1] - 1, 5).astype(int):
        energy.plot(steps, trace[:, chain].numpy(), linewidth=0.5, alpha=0.6)
    energy.plot(steps, mean, color="black", linewidth=1.5, label="mean of all chains")
    energy.fill_between(steps, mean - std, mean + std, color="black", alpha=0.15, label="± standard deviation")
    for stage in report.stages:
        energy.axvline(stage.num_steps, color="grey", linewidth=0.6, linestyle=":")
    energy.set_xscale("log")
    _label(energy, "energy along the chains", "step", "nats")

    energy_r_hat, latent_r_hats = report.r_hats
    worst, judge = int(latent_r_hats.argmax()), "nested R-hat" if report.shared_starts else "R-hat"
    for axes, values, title, r_hat, y in (
        (ranks[0], report.energies, "energy", energy_r_hat, "draws of a superchain, relative to even"),
        (ranks[1], report.latents[..., worst], f"dimension {worst}", latent_r_hats[worst], ""),
    ):
        _draw_ranks(axes, values[:, report.first_draw :], report.superchains)
        title = f"ranks of the {title}\n{judge} {float(r_hat):.3f}"
        _label(axes, title, "rank among all draws of the long run", y)
    return save_plot(figure, path)


def _draw_ranks(axes: Any, draws: Tensor, superchains: int, num_bins: int = 20) -> None:
    """The rank histogram of each superchain of draws `(num_chains, num_draws)` (Vehtari et al., 2021)."""
    ranks = draws.flatten().argsort().argsort().view(superchains, -1)
    edges = np.linspace(0, draws.numel(), num_bins + 1)
    for superchain in ranks.numpy():
        counts, _ = np.histogram(superchain, edges)
        axes.stairs(counts * num_bins / len(superchain), edges, baseline=None, linewidth=0.8, alpha=0.7)
    axes.axhline(1.0, color="black", linewidth=1)
    axes.set_ylim(bottom=0)


def plot_chain_energies(energies: Tensor, num_steps: int, path: Path) -> Path:
    """Draws the energies of chains `(1 + steps, num_chains)`, with a line where the training chain ends.

    Raises:
        UsageError: If matplotlib is not installed (names the extra).
    """
    figure = new_plot(7, 4)
    axes = figure.subplots()
    for chain in energies.t()[:8].numpy():
        axes.plot(chain, linewidth=0.6, alpha=0.7)
    axes.plot(energies.mean(dim=1).numpy(), color="black", linewidth=1.5, label=f"mean of {energies.shape[1]} chains")
    axes.axvline(num_steps, color="grey", linestyle=":", label="the training chain ends")
    _label(axes, "energy of the prior's chains", "step", "nats")
    return save_plot(figure, path)


# -------- grids of images


def save_grid(images: Tensor, path: Path, *, columns: int, scale: int = 2) -> Path:
    """Writes images side by side as a PNG, every pixel `scale` times as wide and high.

    Args:
        images: `(n, channels, size, size)` in [-1, 1]; a last row that is not full ends in white.
        path: The PNG to write.
        columns: Images a row.
        scale: Magnification.
    """
    _, channels, height, width = images.shape
    images = torch.nn.functional.pad(images.cpu(), (0, 1, 0, 1), value=1.0)  # a white line between images
    missing = -len(images) % columns
    images = torch.cat([images, images.new_ones(missing, channels, height + 1, width + 1)])
    rows = images.unflatten(0, (-1, columns)).permute(2, 0, 3, 1, 4)  # (channels, rows, height, columns, width)
    grid = rows.reshape(1, channels, -1, columns * (width + 1))
    grid = grid.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    (image,) = convert_images(grid, "pil")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def save_reconstructions(originals: Tensor, reconstructions: Tensor, path: Path, *, columns: int = 8) -> Path:
    """Writes rows of originals, each with the row of their reconstructions below."""
    count = len(originals) // columns * columns
    pairs = [part[:count].unflatten(0, (-1, columns)) for part in (originals.cpu(), reconstructions.cpu())]
    return save_grid(torch.stack(pairs, dim=1).flatten(0, 2), path, columns=columns)
