"""The whole evaluation of a text model: likelihoods, use of the latent, samples, FPPL and RPPL, prior chains."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import tqdm

from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation import figures
from latent_ebm_text.evaluation.chain_plots import plot_chain_report
from latent_ebm_text.evaluation.chains import ChainReport
from latent_ebm_text.evaluation.diversity import bleu_scorer
from latent_ebm_text.evaluation.language_model import EVALUATOR, QUICK_EVALUATOR, train_language_model
from latent_ebm_text.evaluation.report import Report
from latent_ebm_text.evaluation.text import LatentDraws, generate_texts, report_prior_chains
from latent_ebm_text.evaluation.text_plots import plot_text_report
from latent_ebm_text.hub.figures import read_json
from latent_ebm_text.hub.loading import find_model, load_text_model
from latent_ebm_text.hub.pushing import run_of
from latent_ebm_text.pictures import new_picture
from latent_ebm_text.prior import EnergyPrior
from latent_ebm_text.samplers import sampler_from_dict
from latent_ebm_text.training.arguments import DataArguments
from latent_ebm_text.training.configuration import require_in_interval, require_positive
from latent_ebm_text.training.text import PreparedText, prepare_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from latent_ebm_text.modeling_text import LatentEBMForTextGeneration


@dataclass
class TextEvaluationArguments:
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

    def __post_init__(self) -> None:
        least = {
            "num_samples": 4,
            "num_likelihood_samples": 2,
            "num_likelihood_levels": 1,
            "num_information_sentences": 2,
            "prior_num_steps": 1,
            "chain_repetitions": 0,
            "batch_size": 1,
        }
        for name, number in least.items():
            value = getattr(self, name)
            if value is not None and value < number:
                raise UsageError(f"{name} must be at least {number}, got {value}")
        require_positive("word_temperature", self.word_temperature)
        if self.prior_temperature is not None:
            require_in_interval("prior_temperature", self.prior_temperature, 0, sys.float_info.max)
        if self.num_likelihood_sentences < 0 or self.num_likelihood_sentences == 1:
            raise UsageError(f"num_likelihood_sentences must be 0 or at least 2, got {self.num_likelihood_sentences}")


@dataclass(frozen=True)
class TextEvaluation:
    """What an evaluation has found.

    Attributes:
        report: The figures.
        samples: The generated sentences.
        per_sentence: Arrays behind some of the figures, `(sentences,)` each, by name.
        draws: Latents of the test sentences.
        lengths: `(sentences,)`, tokens of the test sentences.
        chains: The report on the prior's chains, where it was made.
    """

    report: Report
    samples: list[str]
    per_sentence: dict[str, Any]
    draws: LatentDraws
    lengths: np.ndarray
    chains: ChainReport | None

    def write(self, folder: Path) -> list[Path]:
        """Writes the report as JSON and Markdown, samples, per-sentence values and pictures; their paths.

        Raises:
            UsageError: If matplotlib is not installed.
        """
        paths = [*self.report.write(folder), folder / "samples.txt", folder / "sentences.npz"]
        samples = "\n".join(" ".join(each.splitlines()) for each in self.samples)
        (folder / "samples.txt").write_text(samples + "\n", encoding="utf-8")
        np.savez(folder / "sentences.npz", **self.per_sentence)
        picture = plot_text_report(
            self.draws,
            self.samples,
            folder / "evaluation.png",
            marginal_nll=self.per_sentence.get("marginal_nll"),
            marginal_lengths=self.lengths[self.per_sentence.get("index", [])],
        )
        paths.append(picture)
        if self.chains is not None:
            written = json.dumps(self.chains.to_dict(), indent=2) + "\n"
            (folder / "chains.json").write_text(written, encoding="utf-8")
            paths += [folder / "chains.json", plot_chain_report(self.chains, folder / "chains.png")]
        return paths


def run_text_evaluation(data_args: DataArguments, args: TextEvaluationArguments) -> list[Path]:
    """Loads a model and its data, evaluates it, prints the report and writes it; the paths of what was written."""
    new_picture(1, 1)  # a missing extra is told before any work is done
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    folder = find_model(args.model)
    model, tokenizer = load_text_model(folder)
    # A corpus that is generated from a seed is that of the training, whatever the seed of this evaluation.
    run = run_of(folder)
    trained_with = read_json(run / "results.json").get("settings", {}) if run else {}
    text = prepare_text(data_args, trained_with.get("seed", args.seed), Accelerator(), tokenizer)
    print(text.description)
    found = evaluate_text_model(model, tokenizer, text, args)
    found.report.settings = asdict(data_args) | asdict(args)
    paths = found.write(Path(args.output_dir))
    print(f"\n{found.report.to_markdown()}")
    return paths


def evaluate_text_model(
    model: LatentEBMForTextGeneration,
    tokenizer: PreTrainedTokenizerBase,
    text: PreparedText,
    args: TextEvaluationArguments,
) -> TextEvaluation:
    """Measures a model on the test split of a corpus.

    Args:
        model: The model; the settings of its prior's sampler become those of `args`.
        tokenizer: Its tokeniser.
        text: The corpus, tokenised by it.
        args: What to measure, and how.

    Raises:
        UsageError: If settings of the prior's chains are given for a model that has none, an extra is missing, or
            there are fewer than 4 test sentences.
    """
    started = time.monotonic()
    bleu_scorer()  # a missing extra is told before any work is done
    torch.set_float32_matmul_precision(args.matmul_precision)
    _change_prior_sampler(model, args)
    train_texts, test_texts = (text.corpus.splits[split]["text"][:] for split in ("train", "test"))
    test = text.splits["test"]
    if len(test) < 4:
        raise UsageError(f"an evaluation needs 4 test sentences or more, this corpus has {len(test)}")
    report = Report(
        {
            "model": args.model,
            "data": " / ".join(text.description.splitlines()),
            "fingerprint": text.corpus.fingerprint,
            "command": " ".join(sys.argv),
            "sampling": describe_sampling(model, args.word_temperature),
            "seeds": 1,
        }
    )

    # What the model says of real text.
    common = {"batch_size": args.batch_size, "seed": args.seed}
    found, draws = figures.reconstruction_figures(model, test, text.collate, **common)
    report.add(found)
    per_sentence: dict[str, Any] = {}
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
    number = args.num_samples or len(train_texts)
    samples = generate_texts(
        model, tokenizer, number, seed=args.seed, progress=True, temperature=args.word_temperature
    )
    # Beside real text as the model knows it: what it has no word for is `<unk>` in both.
    known_train, known_test = (
        tokenizer.batch_decode(text.splits[split]["input_ids"][:], skip_special_tokens=True)
        for split in ("train", "test")
    )
    report.add(figures.sample_figures(samples, known_train, known_test, seed=args.seed))
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

    # Whether the prior's chains have arrived.
    chains = None
    if isinstance(model.prior, EnergyPrior) and args.chain_repetitions:
        chains = report_prior_chains(
            model,
            tokenizer,
            repetitions=args.chain_repetitions,
            seed=args.seed,
            progress=partial(tqdm, desc="chains of the prior"),
        )
        report.texts["Chains of the prior"] = chains.to_markdown()
    report.facts["wall time"] = f"{(time.monotonic() - started) / 60:.1f} min"
    return TextEvaluation(report, samples, per_sentence, draws, np.asarray(test["length"][:]), chains)


def describe_sampling(model: LatentEBMForTextGeneration, word_temperature: float) -> str:
    """How latents and words are drawn, in words."""
    words = f"words one by one at temperature {word_temperature:g}"
    if not isinstance(model.prior, EnergyPrior):
        return words
    settings = ", ".join(f"{name} {value}" for name, value in model.config.prior_sampler.items() if value is not None)
    return f"latents by {settings}; {words}"


def _change_prior_sampler(model: LatentEBMForTextGeneration, args: TextEvaluationArguments) -> None:
    changes = {"num_steps": args.prior_num_steps, "temperature": args.prior_temperature}
    changes = {name: value for name, value in changes.items() if value is not None}
    if changes and not isinstance(model.prior, EnergyPrior):
        raise UsageError(
            "prior_num_steps and prior_temperature are of the chains of a learned prior; this one has none"
        )
    model.config.prior_sampler = sampler_from_dict({**model.config.prior_sampler, **changes}).to_dict()
