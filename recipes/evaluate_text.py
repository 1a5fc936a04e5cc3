"""Measure a trained text model: likelihoods, use of the latent, samples, FPPL and RPPL, each with its interval.

    python recipes/evaluate_text.py --model runs/ptb-cpu/model --dataset_name path/to/ptb
    python recipes/evaluate_text.py --model runs/ptb-cpu/model --dataset_name path/to/ptb --evaluator quick

Prints a table with the definition of every figure, and writes it as JSON and Markdown, with plots. The evaluator, a
language model, is trained once per data set and kept in --cache_dir; the full one takes an hour on a CPU, and as long
again for the RPPL of every model.
"""

import json
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from transformers import AutoTokenizer

from latent_ebm_text import EnergyPrior, LatentEBMForTextGeneration
from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation import figures
from latent_ebm_text.evaluation.chain_plots import plot_chain_report
from latent_ebm_text.evaluation.language_model import EVALUATOR, QUICK_EVALUATOR, train_language_model
from latent_ebm_text.evaluation.report import Report
from latent_ebm_text.evaluation.text import generate_texts, report_prior_chains
from latent_ebm_text.evaluation.text_plots import plot_text_report
from latent_ebm_text.samplers import sampler_from_dict
from latent_ebm_text.training.arguments import DataArguments
from latent_ebm_text.training.configuration import parse_recipe_arguments, run_recipe
from latent_ebm_text.training.text import prepare_text


@dataclass
class EvaluationArguments:
    """Evaluation"""

    model: str = field(metadata={"help": "Folder or Hub id of the model and its tokenizer."})
    output_dir: str = field(default="runs/evaluation", metadata={"help": "Folder of the report."})
    evaluator: Literal["full", "quick", "none"] = field(
        default="full", metadata={"help": "The language model behind FPPL and RPPL; figures carry its name."}
    )
    rppl_evaluator: Literal["full", "quick"] | None = field(
        default=None, metadata={"help": "Another one for RPPL, for which a language model is trained on the samples."}
    )
    cache_dir: str = field(default="runs/evaluators", metadata={"help": "Folder where trained evaluators are kept."})
    prior_num_steps: int | None = field(
        default=None, metadata={"help": "Steps of the prior's chains; the model's own by default."}
    )
    prior_temperature: float | None = field(
        default=None, metadata={"help": "Temperature of the prior's chains; the model's own by default."}
    )
    word_temperature: float = field(default=1.0, metadata={"help": "Temperature at which words are drawn."})
    num_likelihood_sentences: int = field(
        default=500, metadata={"help": "Random test sentences for log p(x); 0: none."}
    )
    num_likelihood_samples: int = field(default=16, metadata={"help": "Annealed walks per sentence."})
    num_likelihood_levels: int = field(default=100, metadata={"help": "Levels of each walk."})
    num_information_sentences: int = field(default=128, metadata={"help": "Sentences for the mutual information."})
    num_samples: int | None = field(
        default=None, metadata={"help": "Generated sentences; as many as training sentences by default, for RPPL."}
    )
    chain_repetitions: int = field(
        default=100, metadata={"help": "Run the prior's chains for so many times their length; 0 leaves them out."}
    )
    batch_size: int = field(default=128, metadata={"help": "Sentences a batch."})
    seed: int = field(default=0, metadata={"help": "Of every draw."})
    matmul_precision: Literal["highest", "high", "medium"] = field(
        default="highest", metadata={"help": "Precision of matrix products, as torch.set_float32_matmul_precision."}
    )


def main() -> None:
    data_args, args = parse_recipe_arguments((DataArguments, EvaluationArguments), description=__doc__)
    started, folder = time.monotonic(), Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision(args.matmul_precision)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = LatentEBMForTextGeneration.from_pretrained(args.model).to(device).eval()
    changes = {"num_steps": args.prior_num_steps, "temperature": args.prior_temperature}
    changes = {name: value for name, value in changes.items() if value is not None}
    if changes and not isinstance(model.prior, EnergyPrior):
        raise UsageError(
            "prior_num_steps and prior_temperature are of the chains of a learned prior; this one has none"
        )
    model.config.prior_sampler = sampler_from_dict({**model.config.prior_sampler, **changes}).to_dict()
    tokenizer = AutoTokenizer.from_pretrained(args.model, trust_remote_code=False)
    text = prepare_text(data_args, args.seed, Accelerator(), tokenizer)
    print(text.description)
    train_texts, test_texts = (text.corpus.splits[split]["text"][:] for split in ("train", "test"))
    test = text.splits["test"]
    report = Report(
        {
            "model": args.model,
            "data": " / ".join(text.description.splitlines()),
            "command": " ".join(sys.argv),
            "sampling": describe_sampling(model, args.word_temperature),
            "seeds": 1,
        }
    )

    # What the model says of real text.
    common = {"batch_size": args.batch_size, "seed": args.seed}
    found, draws = figures.reconstruction_figures(model, test, text.collate, **common)
    report.add(found)
    per_sentence = {}
    if args.num_likelihood_sentences:
        found, estimate, sentences = figures.marginal_likelihood_figures(
            model,
            test,
            text.collate,
            num_sentences=args.num_likelihood_sentences,
            num_samples=args.num_likelihood_samples,
            num_levels=args.num_likelihood_levels,
            **common,
        )
        report.add(found)
        per_sentence = {"index": sentences, "marginal_nll": -estimate.log_prob.numpy()}
        if "log_prob" in text.corpus.splits["test"].column_names:  # a corpus that knows its own probabilities
            report.add(figures.exact_figures(text.corpus.splits["test"][sentences]["log_prob"]))
    if model.config.latent_dim:
        size = args.num_information_sentences
        report.add(figures.information_figures(model, test, text.collate, num_sentences=size, seed=args.seed))

    # What it generates, by ancestral sampling.
    number, draw = args.num_samples or len(train_texts), {"temperature": args.word_temperature}
    samples = generate_texts(model, tokenizer, number, seed=args.seed, progress=True, **draw)
    (folder / "samples.txt").write_text(
        "\n".join(" ".join(each.splitlines()) for each in samples) + "\n", encoding="utf-8"
    )
    report.add(figures.sample_figures(samples, train_texts, test_texts, seed=args.seed))
    if args.evaluator != "none":
        evaluators = {
            name: train_language_model(
                text.splits["train"]["input_ids"][:],
                text.splits["validation"]["input_ids"][:],
                len(tokenizer),
                {"full": EVALUATOR, "quick": QUICK_EVALUATOR}[name],
                cache_dir=args.cache_dir,
                seed=args.seed,
            )
            for name in {args.evaluator, args.rppl_evaluator or args.evaluator}
        }
        found, of_sentences = figures.perplexity_figures(
            samples,
            evaluators[args.evaluator],
            tokenizer,
            test_texts,
            cache_dir=args.cache_dir,
            rppl_lm=evaluators[args.rppl_evaluator or args.evaluator],
        )
        report.add(found)
        per_sentence |= of_sentences
    np.savez(folder / "sentences.npz", **per_sentence)

    # Whether the prior's chains have arrived, and the pictures.
    paths = [
        plot_text_report(
            draws,
            samples,
            folder / "evaluation.png",
            marginal_nll=per_sentence.get("marginal_nll"),
            marginal_lengths=np.asarray(test["length"][:])[per_sentence.get("index", [])],
        )
    ]
    if isinstance(model.prior, EnergyPrior) and args.chain_repetitions:
        chains = report_prior_chains(
            model,
            tokenizer,
            repetitions=args.chain_repetitions,
            seed=args.seed,
            progress=partial(tqdm, desc="chains of the prior"),
        )
        report.texts["Chains of the prior"] = chains.to_markdown()
        (folder / "chains.json").write_text(json.dumps(chains.to_dict(), indent=2) + "\n", encoding="utf-8")
        paths += [folder / "chains.json", plot_chain_report(chains, folder / "chains.png")]

    report.facts["wall time"] = f"{(time.monotonic() - started) / 60:.1f} min"
    paths = [*report.write(folder), folder / "samples.txt", folder / "sentences.npz", *paths]
    print(f"\n{report.to_markdown()}")
    print("\n".join(str(path) for path in paths))


def describe_sampling(model: LatentEBMForTextGeneration, word_temperature: float) -> str:
    """How latents and words are drawn, in words."""
    words = f"words one by one at temperature {word_temperature:g}"
    if not isinstance(model.prior, EnergyPrior):
        return words
    settings = ", ".join(f"{name} {value}" for name, value in model.config.prior_sampler.items() if value is not None)
    return f"latents by {settings}; {words}"


if __name__ == "__main__":
    run_recipe(main)
