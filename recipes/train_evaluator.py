"""Train the language model that judges generated text (FPPL and RPPL), and cache it for later evaluations.

    python recipes/train_evaluator.py --dataset_name path/to/ptb                # the evaluator of reported metrics
    python recipes/train_evaluator.py --dataset_name path/to/ptb --recipe quick # minutes; never mix the two

An interrupted training resumes from its last epoch; a finished one is read from the cache.
"""

from dataclasses import dataclass
from typing import Literal

from latent_ebm_text.commands.arguments import DataArguments
from latent_ebm_text.commands.parsing import parse_arguments
from latent_ebm_text.commands.running import run_command
from latent_ebm_text.commands.train_text import prepare
from latent_ebm_text.evaluation.evaluator import EVALUATOR, QUICK_EVALUATOR, train_language_model
from latent_ebm_text.evaluation.perplexity import estimate_perplexity
from latent_ebm_text.training.arguments import option

RECIPES = {"full": EVALUATOR, "quick": QUICK_EVALUATOR}


@dataclass
class EvaluatorArguments:
    """Evaluator"""

    recipe: Literal["full", "quick"] = option("full", "Hours, or minutes on two CPU cores.")
    cache_dir: str = option("runs/evaluators", "Folder where trained evaluators are kept.")
    seed: int = option(0, "Seed of the weights, the order of the data and dropout.")


def main() -> None:
    data_args, args = parse_arguments((DataArguments, EvaluatorArguments), description=__doc__)
    text = prepare(data_args, args.seed)
    print(text.description)

    lm = train_language_model(
        text.splits["train"]["input_ids"][:],
        text.splits["validation"]["input_ids"][:],
        len(text.tokenizer),
        RECIPES[args.recipe],
        cache_dir=args.cache_dir,
        seed=args.seed,
    )
    print(f"{lm.recipe.name}: {sum(weight.numel() for weight in lm.parameters()):,} parameters, seed {args.seed}")
    for split in ("validation", "test"):
        figures = estimate_perplexity(
            lm, text.splits[split]["input_ids"][:], words=text.splits[split]["words"][:], progress=True
        )
        low, high = figures["interval_95"]
        print(
            f"{split:>10} perplexity {figures['perplexity']:.2f} [{low:.2f}, {high:.2f}] (95 %, bootstrap over "
            f"{figures['n_sentences']:,} sentences; {figures['n_tokens']:,} tokens, ends of sentences counted); per "
            f"word {figures['perplexity_per_word']:.2f} ({figures['n_words']:,} words)"
        )
    print(f"trained in {lm.record.seconds / 60:.1f} min; kept in {args.cache_dir}")


if __name__ == "__main__":
    run_command(main)
