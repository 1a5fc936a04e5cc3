"""Draw the figures of the documentation, each by the code that it is about.

    python docs/figures.py                             # those that need no model: half a minute
    python docs/figures.py --model runs/snli/model     # also the chains of that model, the figure of the README

They are written to docs/images (or --output_dir) as SVG; the same seed draws the same figures.
"""

import argparse
import csv
import math
import textwrap
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latent_ebm_text import EnergyPrior, LangevinSampler, LatentPosterior
from latent_ebm_text.evaluation.plots import new_plot
from latent_ebm_text.latents.prior import GaussianPrior
from latent_ebm_text.latents.samplers import watch_chain

FOLDER = Path(__file__).parent / "images"
PRIOR_COLOUR, POSTERIOR_COLOUR = "#0969da", "#bc4c00"


def save(figure: Any, path: Path) -> Path:
    """Writes an SVG that is the same, byte for byte, each time it is drawn."""
    import matplotlib

    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "path"}):
        figure.savefig(path, metadata={"Date": None}, facecolor="white")
    return path


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -------- an energy learned in two dimensions


def aggregate_draws(num_draws: int, generator: torch.Generator) -> Tensor:
    """Three clusters, `(num_draws, 2)`, in place of posterior draws of three kinds of sentences."""
    centres = torch.tensor([[-1.6, -0.8], [1.7, -0.9], [0.1, 1.8]])
    chosen = torch.randint(len(centres), (num_draws,), generator=generator)
    return centres[chosen] + 0.45 * torch.randn(num_draws, 2, generator=generator)


def learn_prior(num_steps: int, sampler: LangevinSampler, generator: torch.Generator) -> EnergyPrior:
    """Ascends `E_posterior[f(z)] - E_prior[f(z)]` (eq. 6), with `aggregate_draws` in place of posterior draws."""
    torch.manual_seed(0)
    prior = EnergyPrior(2, hidden_size=64)
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-3)
    for _ in range(num_steps):
        positive = aggregate_draws(256, generator)
        negative = sampler.sample(torch.randn(256, 2, generator=generator), prior, generator=generator).latents
        tilt = prior.tilt(torch.cat([positive, negative]))
        loss = tilt[256:].mean() - tilt[:256].mean() + 0.01 * tilt.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return prior


def draw_learning(folder: Path, num_steps: int = 800) -> Path:
    """Posterior draws, the density that is learned from them, and chains on their way."""
    sampler, generator = LangevinSampler(60, 0.2), seeded(0)
    prior = learn_prior(num_steps, sampler, generator)
    figure = new_plot(12, 4)
    draws, density, energy = figure.subplots(1, 3)
    points = aggregate_draws(400, generator)
    draws.scatter(*points.T, s=4, color=POSTERIOR_COLOUR, alpha=0.5)
    draws.set_title("posterior draws z+")

    ticks = torch.linspace(-3.5, 3.5, 70)
    grid = torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"), dim=-1)
    with torch.no_grad():
        values = prior(grid.view(-1, 2)).view(70, 70)
    density.contourf(ticks, ticks, (values - values.max()).exp(), levels=12, cmap="Blues")
    start = torch.randn(256, 2, generator=generator)
    longer = LangevinSampler(6 * sampler.num_steps, sampler.step_size)
    positions, trace = watch_chain(longer, start, prior, generator=generator)
    for chain in range(4):
        path = positions[: sampler.num_steps + 1, chain]
        density.plot(*path.T, linewidth=0.8, color="black", alpha=0.6)
        density.plot(*path[0], "o", markersize=4, color="black", fillstyle="none")
        density.plot(*path[-1], "o", markersize=5, color="black")
    density.set_title("exp(-E(z)) and four chains of 60 steps")
    for axes in (draws, density):
        axes.set(xlim=(-3.5, 3.5), ylim=(-3.5, 3.5), aspect="equal")

    energies = trace.energies
    energy.plot(energies.mean(dim=1), color=PRIOR_COLOUR, label="prior chains, mean of 256")
    with torch.no_grad():
        energy.axhline(float(prior.energy(points).mean()), color=POSTERIOR_COLOUR, label="posterior draws")
    energy.axvline(sampler.num_steps, color="grey", linewidth=0.8, linestyle=":", label="end of a training chain")
    energy.set(title="energy along the chains", xlabel="step", ylabel="E(z) in nats")
    energy.legend(fontsize="small")
    return save(figure, folder / "learning.svg")


# -------- discretisation


def draw_discretisation(folder: Path, num_chains: int = 20_000) -> Path:
    """The variance of chains on N(0, 1) for several step sizes, beside `1 / (1 - s^2 / 4)`."""
    figure = new_plot(6, 4)
    axes = figure.subplots()
    sizes = torch.linspace(0.1, 1.6, 100)
    axes.plot(sizes, 1 / (1 - sizes**2 / 4), color=PRIOR_COLOUR, linewidth=1, label="theory, Euler")
    axes.axhline(1, color=POSTERIOR_COLOUR, linewidth=1, label="theory, Leimkuhler-Matthews; the target")
    measured = [0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4]
    for integrator, colour in (("euler", PRIOR_COLOUR), ("leimkuhler_matthews", POSTERIOR_COLOUR)):
        variances = []
        for size in measured:
            sampler = LangevinSampler(math.ceil(8 / size**2), size, integrator=integrator)
            start = torch.randn(num_chains, 1, generator=seeded(0))
            variances.append(sampler.sample(start, GaussianPrior(1), generator=seeded(1)).latents.var())
        axes.plot(measured, variances, "o", color=colour, label=f'integrator="{integrator}"')
    axes.set(xlabel="Langevin step size s", ylabel="variance of the chain, target N(0, 1)", ylim=(0.8, 2.6))
    axes.legend(fontsize="small")
    return save(figure, folder / "discretisation.svg")


# -------- the likelihood weight


class GaussianLikelihood:
    """`log N(x; z, std^2)` of a single number x as a function of z, `(batch, 1)`: the smallest possible decoder."""

    def __init__(self, x: float, std: float) -> None:
        self.x, self.std = x, std

    def __call__(self, latents: Tensor) -> Tensor:
        return -0.5 * ((latents[:, 0] - self.x) / self.std) ** 2

    def score(self, latents: Tensor) -> Tensor:
        return (self.x - latents) / self.std**2

    def value_and_score(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        return self(latents), self.score(latents)


def draw_likelihood_weight(folder: Path, num_chains: int = 20_000) -> Path:
    """`p(z) p(x|z)^w` for three weights: draws of Langevin chains, and the Gaussians that they should be."""
    figure = new_plot(6, 4)
    axes = figure.subplots()
    x, std = 2.0, 1.0
    ticks = torch.linspace(-3, 4, 300)
    axes.plot(ticks, torch.exp(-(ticks**2) / 2) / math.sqrt(2 * math.pi), color="grey", linestyle="--", label="prior")
    sampler = LangevinSampler(100, 0.3, integrator="leimkuhler_matthews")
    for weight, colour in ((0.2, "#8250df"), (1.0, PRIOR_COLOUR), (4.0, POSTERIOR_COLOUR)):
        precision = 1 + weight / std**2
        mean = weight * x / std**2 / precision
        exact = torch.exp(-0.5 * precision * (ticks - mean) ** 2) * math.sqrt(precision / (2 * math.pi))
        posterior = LatentPosterior(GaussianPrior(1), GaussianLikelihood(x, std), weight)
        start = torch.randn(num_chains, 1, generator=seeded(0))
        draws = sampler.sample(start, posterior, generator=seeded(1)).latents[:, 0]
        axes.hist(draws.numpy(), bins=60, density=True, color=colour, alpha=0.3)
        axes.plot(ticks, exact, color=colour, label=f"posterior, w = {weight:g}")
    axes.axvline(x, color="black", linewidth=0.8, linestyle=":")
    axes.annotate("most likely given x", (x, 0.9), xytext=(4, 0), textcoords="offset points", fontsize="small")
    axes.set(xlabel="z", ylabel="density", xlim=(-3, 4))
    axes.legend(fontsize="small")
    return save(figure, folder / "likelihood_weight.svg")


# -------- the frontier on Penn Treebank


def draw_frontier(folder: Path) -> Path:
    """The runs of `ptb_frontier.csv`: RPPL over FPPL, over the energy gap, and over prior minus reconstruction NLL."""
    with open(FOLDER / "ptb_frontier.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    axis_labels = {
        "FPPL": "FPPL, lower is better",
        "energy gap": "energy gap between posterior and prior draws, nats",
        "told": "prior NLL - reconstruction NLL, nats",
    }
    figure = new_plot(15, 4.5)
    panels = dict(zip(axis_labels, figure.subplots(1, 3, sharey=True), strict=True))
    for column, axes in panels.items():
        for run, points in groupby(rows, key=lambda row: row["run"]):
            measured = [(float(p[column]), float(p["RPPL"]), p["temperature"]) for p in points if p[column]]
            axes.plot([x for x, _, _ in measured], [rppl for _, rppl, _ in measured], "o-", markersize=5, label=run)
            for x, rppl, temperature in measured:
                if temperature:
                    axes.annotate(f"T = {temperature}", (x, rppl), xytext=(5, 3), textcoords="offset points",
                                  fontsize="x-small")  # fmt: skip
        axes.set_xlabel(axis_labels[column])
        axes.grid(alpha=0.3)
    panels["FPPL"].plot(107.45, 181.54, "*", color="black", markersize=10, label="published (Pang et al., 2020)")
    panels["FPPL"].axvline(93.05, color="grey", linestyle=":", label="real text, which has an RPPL of 136.7")
    panels["FPPL"].set_ylabel("RPPL, lower is better")
    panels["FPPL"].legend(fontsize="small")
    return save(figure, folder / "ptb_frontier.svg")


# -------- the chain of a trained model


def draw_chain(folder: Path, model_folder: str, *, seed: int = 0, spread: float = 5.0, chain: int = 1) -> Path:
    """Energies of Langevin chains under a model's prior, and the greedy decoding of one chain on its way.

    The chains start far out, from `spread` times N(0, I), where the decoder gives no sentences.
    """
    from transformers import AutoTokenizer

    from latent_ebm_text import LatentEBMForTextGeneration

    model = LatentEBMForTextGeneration.from_pretrained(model_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    generator, sampler = seeded(seed), model.prior_sampler
    start = spread * model.sample_reference(64, generator)
    positions, trace = watch_chain(sampler, start, model.prior, generator=generator)
    last = sampler.num_steps
    shown = sorted({round(last * part) for part in (0, 0.1, 0.2, 0.3, 0.4, 1)})
    decoded = model.generate(latents=positions[shown, chain], do_sample=False)
    sentences = tokenizer.batch_decode(decoded, skip_special_tokens=True)

    figure = new_plot(12, 3.6)
    energy, text = figure.subplots(1, 2, width_ratios=(4, 8))
    energies = trace.energies
    energy.fill_between(range(last + 1), *energies.quantile(torch.tensor([0.1, 0.9]), dim=1), alpha=0.15,
                        color=PRIOR_COLOUR, label="80 % of 64 chains")  # fmt: skip
    energy.plot(energies[:, chain], color=POSTERIOR_COLOUR, linewidth=1, label="one chain")
    energy.plot(shown, energies[shown, chain], "o", color=POSTERIOR_COLOUR, markersize=5)
    energy.set(xlabel="Langevin step", ylabel="energy E(z) in nats", yscale="log", title="the energy goes down ...")
    energy.legend(fontsize="small")
    text.set_axis_off()
    text.set_title("... and the decoding of the one chain becomes a sentence")
    for row, (step, sentence) in enumerate(zip(shown, sentences, strict=True)):
        height = 0.95 - row / len(shown)
        text.text(0, height, f"step {step}", color=POSTERIOR_COLOUR, va="top")
        shortened = textwrap.shorten(sentence, 96, placeholder=" ...")
        text.text(0.1, height, shortened, va="top", family="monospace", size=9)
    return save(figure, folder / "chain.svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a text model with its tokenizer, to draw its chains too")
    parser.add_argument("--output_dir", type=Path, default=FOLDER, help="where the figures go (default docs/images)")
    options = parser.parse_args()
    for draw in (draw_learning, draw_discretisation, draw_likelihood_weight, draw_frontier):
        print(draw(options.output_dir))
    if options.model is not None:
        print(draw_chain(options.output_dir, options.model))


if __name__ == "__main__":
    main()
