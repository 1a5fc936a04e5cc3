"""Run a model's chains for 100 times their length, and report convergence, mixing and the decoded sentences.

    python recipes/chain_report.py --model runs/ptb/model                        # the prior's chains
    python recipes/chain_report.py --model runs/ptb/model --compare_samplers     # and other samplers beside it

The paper's long-run experiment. Prints a verdict in words, and writes the report, the energies' plot and, with
--compare_samplers, the effective sample sizes per second of Langevin dynamics, MALA, HMC and parallel tempering.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from accelerate.utils import tqdm
from sampler_comparison import compare_samplers

from latent_ebm_text.commands.parsing import parse_arguments
from latent_ebm_text.commands.running import run_command
from latent_ebm_text.evaluation.plots import plot_chain_report
from latent_ebm_text.evaluation.text import report_prior_chains
from latent_ebm_text.latents.rng import derived_generator
from latent_ebm_text.latents.samplers import HMCSampler, MALASampler, ParallelTemperingSampler
from latent_ebm_text.models.loading import load_text_model
from latent_ebm_text.training.arguments import option, required


@dataclass
class ChainArguments:
    """Chains"""

    model: str = required("Folder or Hub id of the model and its tokenizer.")
    output_dir: str = option("runs/chains", "Folder of the report.")
    num_chains: int = option(256, "Chains; a multiple of the superchains.")
    superchains: int = option(16, "Groups of chains, each from one start.")
    repetitions: int = option(100, "How many times the training chain is repeated.")
    compare_samplers: bool = option(False, "Also compare samplers by ESS per second.")
    seed: int = option(0, "Seed of all draws.")


def main() -> None:
    (args,) = parse_arguments((ChainArguments,), description=__doc__)
    model, tokenizer = load_text_model(args.model)
    folder = Path(args.output_dir)
    report = report_prior_chains(
        model,
        tokenizer,
        num_chains=args.num_chains,
        superchains=args.superchains,
        repetitions=args.repetitions,
        seed=args.seed,
        progress=partial(tqdm, desc="chains"),
    )
    folder.mkdir(parents=True, exist_ok=True)
    written, markdown = report.to_dict(), report.to_markdown()
    if args.compare_samplers:
        size = report.sampler.get("step_size")
        step = size if isinstance(size, float) else 0.4
        generator = derived_generator(args.seed, "sampler comparison", device=model.device)
        comparison = compare_samplers(
            model.prior,
            {
                "langevin (the model's)": model.prior_sampler,
                "MALA": MALASampler(60, step, num_adaptation_steps=30),
                "HMC": HMCSampler(12, step, num_leapfrog_steps=5, num_adaptation_steps=6),
                "parallel tempering": ParallelTemperingSampler(20, step, num_temperatures=3, num_adaptation_steps=10),
            },
            model.sample_reference(args.superchains, generator).repeat_interleave(
                args.num_chains // args.superchains, dim=0
            ),
            generator=generator,
            progress=partial(tqdm, desc="samplers"),
        )
        written["samplers"] = comparison.to_dict()
        markdown += f"\n## Samplers\n\n{comparison.to_markdown()}"
    (folder / "chains.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    (folder / "chains.md").write_text(markdown, encoding="utf-8")
    print(f"{markdown}\n{plot_chain_report(report, folder / 'chains.png')}")


if __name__ == "__main__":
    run_command(main)
