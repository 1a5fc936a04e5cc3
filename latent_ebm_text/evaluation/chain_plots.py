"""The picture of a chain report. Needs the extra `plots` (matplotlib)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from latent_ebm_text.pictures import new_picture, save_picture

if TYPE_CHECKING:
    from latent_ebm_text.evaluation.chains import ChainReport


def plot_chain_report(report: ChainReport, path: Path) -> Path:
    """Draws the energies along the chains, and how evenly the superchains share the ranks of the long run.

    Where chains agree every superchain holds all ranks equally often, and its line is flat but for noise.

    Args:
        report: Of [`run_chain_report`].
        path: The PNG to write.

    Raises:
        UsageError: If matplotlib is not installed (names the extra).
    """
    figure = new_picture(13, 4.2)
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
    energy.set_title("energy along the chains")
    energy.set_xlabel("step")
    energy.set_ylabel("nats")
    energy.legend(fontsize="small")

    energy_r_hat, latent_r_hats = report.r_hats
    worst, judge = int(latent_r_hats.argmax()), "nested R-hat" if report.shared_starts else "R-hat"
    for axes, values, title, r_hat in (
        (ranks[0], report.energies, "energy", energy_r_hat),
        (ranks[1], report.latents[..., worst], f"dimension {worst}", latent_r_hats[worst]),
    ):
        _draw_ranks(axes, values[:, report.first_draw :], report.superchains)
        axes.set_title(f"ranks of the {title}\n{judge} {float(r_hat):.3f}")
        axes.set_xlabel("rank among all draws of the long run")
    ranks[0].set_ylabel("draws of a superchain, relative to even")
    return save_picture(figure, path)


def _draw_ranks(axes: Any, draws: Tensor, superchains: int, num_bins: int = 20) -> None:
    """The rank histogram of each superchain of draws `(num_chains, num_draws)` (Vehtari et al., 2021)."""
    ranks = draws.flatten().argsort().argsort().view(superchains, -1)
    edges = np.linspace(0, draws.numel(), num_bins + 1)
    for superchain in ranks.numpy():
        counts, _ = np.histogram(superchain, edges)
        axes.stairs(counts * num_bins / len(superchain), edges, baseline=None, linewidth=0.8, alpha=0.7)
    axes.axhline(1.0, color="black", linewidth=1)
    axes.set_ylim(bottom=0)
