"""The command `distil`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial

from accelerate.utils import tqdm

from latent_ebm_text.commands import parsing
from latent_ebm_text.commands.output import show
from latent_ebm_text.commands.parsing import argument
from latent_ebm_text.training.arguments import option


@dataclass
class DistilArguments:
    """Distillation"""

    model: str = argument("Folder or Hub id of a text model, or the folder of its run.")
    output_dir: str = option("runs/distilled", "Folder of the model with its distilled prior.")
    num_layers: int = option(6, "Layers of the flow.")
    num_steps: int = option(2000, "Steps of its training.")
    num_draws: int = option(16_384, "Draws of the prior's chain; half of them train the flow and half judge it.")
    seed: int = option(0, "Seed of all draws.")
    json: bool = option(False, "Print JSON, for programs.")


def distil(argv: list[str]) -> None:
    """Distil the prior of a text model into a flow, which draws latents in one pass in place of a chain.

    The model is written with the flow, and draws from it wherever it drew by its own chain.

        latent-ebm distil runs/ptb --output_dir runs/ptb-distilled
        latent-ebm generate runs/ptb-distilled --num_samples 16
    """
    (args,) = parsing.parse_arguments(
        (DistilArguments,), argv, description=parsing.description_of(distil), prog="latent-ebm distil"
    )
    from latent_ebm_text.hub.folders import find_model
    from latent_ebm_text.models.loading import load_text_model

    model, tokenizer = load_text_model(find_model(args.model))
    quality = model.eval().distil_prior(
        num_layers=args.num_layers,
        num_steps=args.num_steps,
        num_draws=args.num_draws,
        seed=args.seed,
        progress=partial(tqdm, desc="distilling", unit="step"),
    )
    for part in (model, tokenizer):
        part.save_pretrained(args.output_dir)
    lines = [
        f"effective share of the flow's draws: {quality.effective_share:.2f}; corrections accepted: "
        f"{quality.acceptance_rate:.2f}",
        f"standard deviations differ from the chain's by {quality.std_mismatch:.1%} "
        f"({quality.chance_mismatch:.1%} by chance), means by {quality.mean_distance:.3f} of them",
        args.output_dir,
    ]
    show(asdict(quality), lines, args.json)
