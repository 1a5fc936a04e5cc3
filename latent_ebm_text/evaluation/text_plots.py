"""The picture of a text model's report. Needs the extra `plots` (matplotlib)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latent_ebm_text.data.batching import count_words
from latent_ebm_text.evaluation.text import LatentDraws
from latent_ebm_text.pictures import new_picture, save_picture

#: Points of a curve over the length of sentences, each with as many sentences.
_LENGTH_GROUPS = 12


def plot_text_report(
    draws: LatentDraws,
    samples: Sequence[str],
    path: Path,
    *,
    marginal_nll: np.ndarray | None = None,
    marginal_lengths: np.ndarray | None = None,
) -> Path:
    """Draws NLLs over the length of sentences, energies and spread of posterior and prior draws, lengths of samples.

    Args:
        draws: Of real sentences.
        samples: Generated sentences, words separated by spaces.
        path: The PNG to write.
        marginal_nll: `(sentences,)`, `-log p(x)` in nats.
        marginal_lengths: `(sentences,)`, their tokens, the end counted.

    Raises:
        UsageError: If matplotlib is not installed (names the extra).
    """
    figure = new_picture(11, 7.5)
    (nll, energy), (spread, lengths) = figure.subplots(2, 2)

    _draw_by_length(nll, draws.lengths, draws.prior_nll.cpu().numpy(), "prior NLL")
    if marginal_nll is not None and marginal_lengths is not None:
        _draw_by_length(nll, marginal_lengths, marginal_nll, "marginal NLL")
    _draw_by_length(nll, draws.lengths, draws.reconstruction_nll.cpu().numpy(), "reconstruction NLL")
    _label(nll, "what a sentence costs", "tokens, the end counted", "nats per sentence")

    if draws.first.shape[1]:
        energies = {"posterior": draws.posterior_energy, "prior": draws.prior_energy}
        bins = np.histogram_bin_edges(np.concatenate([values.cpu().numpy() for values in energies.values()]), 50)
        for name, values in energies.items():
            energy.hist(values.cpu().numpy(), bins, histtype="step", density=True, label=f"{name} draws")
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

    generated = [count_words(sample) for sample in samples]
    bins = np.histogram_bin_edges(np.concatenate([draws.words, generated]), 40)
    for name, words in (("real", draws.words), ("generated", generated)):
        lengths.hist(words, bins, histtype="step", density=True, label=name)
    _label(lengths, "lengths", "words, the end counted", "density")
    return save_picture(figure, path)


def _draw_by_length(axes: Any, lengths: np.ndarray, values: np.ndarray, label: str) -> None:
    """Mean values of groups of sentences of similar length."""
    groups = np.array_split(np.argsort(lengths, kind="stable"), min(_LENGTH_GROUPS, len(lengths)))
    axes.plot(
        [lengths[group].mean() for group in groups],
        [values[group].mean() for group in groups],
        "o-",
        markersize=3,
        label=label,
    )


def _label(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
