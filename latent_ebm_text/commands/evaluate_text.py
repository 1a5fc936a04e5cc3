"""The command `evaluate`: likelihoods, use of the latent, samples, FPPL and RPPL, and chains of a text model."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from accelerate import Accelerator
from accelerate.utils import tqdm

from latent_ebm_text.commands import parsing
from latent_ebm_text.commands.arguments import CorpusArguments, DataArguments, flat_settings
from latent_ebm_text.commands.output import print_json_file
from latent_ebm_text.commands.train_text import PreparedText, prepare
from latent_ebm_text.data.embeddings import embed_sentences, installed_encoder
from latent_ebm_text.errors import UsageError, require_in_interval, require_temperature
from latent_ebm_text.evaluation import text_metrics
from latent_ebm_text.evaluation.chains import ChainReport
from latent_ebm_text.evaluation.comparison import compare_samplers
from latent_ebm_text.evaluation.convergence import array_stats
from latent_ebm_text.evaluation.diversity import bleu_scorer
from latent_ebm_text.evaluation.estimates import Estimate
from latent_ebm_text.evaluation.evaluator import EVALUATOR, QUICK_EVALUATOR, train_language_model
from latent_ebm_text.evaluation.plots import new_plot, plot_chain_report, plot_text_report
from latent_ebm_text.evaluation.report import Report
from latent_ebm_text.evaluation.text import SentenceDraws, generate_texts, report_prior_chains
from latent_ebm_text.evaluation.usefulness import (
    interpolation_metrics,
    label_metrics,
    reconstruction_accuracy,
    require_probes,
    tf_idf,
)
from latent_ebm_text.hub.folders import find_model, read_json, run_of
from latent_ebm_text.latents.prior import EnergyPrior
from latent_ebm_text.latents.rng import derived_generator
from latent_ebm_text.latents.samplers import sampler_from_dict
from latent_ebm_text.models.loading import load_text_model
from latent_ebm_text.models.sentences import SentenceRows
from latent_ebm_text.models.sharing import all_processes, share_out
from latent_ebm_text.training.arguments import option, required
from latent_ebm_text.training.tracking import set_precision

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from latent_ebm_text.models.modeling_text import LatentEBMForTextGeneration

#: Sentences that are reconstructed.
RECONSTRUCTED = 500
#: Most labelled training and test sentences that a probe takes.
MOST_LABELLED = (10_000, 2000)


@dataclass
class TextEvaluationArguments:
    """Evaluation"""

    model: str = required("Folder or Hub id of the model and its tokenizer.")
    output_dir: str = option("runs/evaluation", "Folder of the report.")
    evaluator: Literal["full", "quick", "none"] = option(
        "full", "The language model behind FPPL and RPPL; the report names it with every metric."
    )
    rppl_evaluator: Literal["full", "quick"] | None = option(
        None, "Evaluator of RPPL, which trains it on the samples; none for the same."
    )
    cache_dir: str = option("runs/evaluators", "Folder where trained evaluators are kept.")
    prior_num_steps: int | None = option(None, "Steps of the prior's chains; none for the model's own.")
    prior_temperature: float | None = option(None, "Temperature of the prior's chains; none for the model's own.")
    token_temperature: float = option(1.0, "Temperature at which tokens are drawn.")
    num_likelihood_sentences: int = option(500, "Random test sentences for log p(x); 0 leaves it out.")
    num_likelihood_samples: int | None = option(
        None, "Weights per sentence; none for 256, or for 16 annealed walks, which cost more."
    )
    num_likelihood_levels: int = option(0, "Levels of each annealed walk; 0 for importance weights without walks.")
    num_information_sentences: int = option(128, "Sentences for the mutual information.")
    num_samples: int | None = option(None, "Generated sentences; none for as many as training sentences, for RPPL.")
    trivial_samplers: bool = option(
        True, "Put the samples beside those of trivial samplers, such as bigrams; a minute or two for every one."
    )
    chain_repetitions: int = option(100, "Run the prior's chains for this many times their length; 0 for none.")
    batch_size: int = option(128, "Sentences in a batch.")
    seed: int = option(0, "Seed of all draws.")
    matmul_precision: Literal["highest", "high", "medium"] = option(
        "highest", "Precision of matrix products, see torch.set_float32_matmul_precision."
    )

    def __post_init__(self) -> None:
        least = {
            "num_samples": 4,
            "num_likelihood_samples": 2,
            "num_likelihood_levels": 0,
            "num_information_sentences": 2,
            "prior_num_steps": 1,
            "chain_repetitions": 0,
            "batch_size": 1,
        }
        for name, number in least.items():
            value = getattr(self, name)
            if value is not None and value < number:
                raise UsageError(f"{name} must be at least {number}, got {value}")
        require_temperature("token_temperature", self.token_temperature)
        if self.prior_temperature is not None:
            require_in_interval("prior_temperature", self.prior_temperature, 0, sys.float_info.max)
        if self.num_likelihood_sentences < 0 or self.num_likelihood_sentences == 1:
            raise UsageError(f"num_likelihood_sentences must be 0 or at least 2, got {self.num_likelihood_sentences}")


@dataclass(frozen=True)
class TextEvaluation:
    """The results of an evaluation.

    Attributes:
        report: The metrics.
        samples: The generated sentences.
        per_sentence: Values of single sentences, by name, `(sentences,)` each.
        draws: Latents of the test sentences.
        lengths: `(sentences,)`, tokens of the test sentences.
        chains: The report on the prior's chains, if it was asked for.
    """

    report: Report
    samples: list[str]
    per_sentence: dict[str, Any]
    draws: SentenceDraws
    lengths: np.ndarray
    chains: ChainReport | None

    def write(self, folder: Path) -> list[Path]:
        """Writes the report as JSON and Markdown, samples, values of sentences and plots; returns their paths.

        Raises:
            UsageError: If matplotlib is not installed.
        """
        paths = [*self.report.write(folder), folder / "samples.txt", folder / "sentences.npz"]
        samples = "\n".join(" ".join(each.splitlines()) for each in self.samples)
        (folder / "samples.txt").write_text(samples + "\n", encoding="utf-8")
        np.savez(folder / "sentences.npz", **self.per_sentence)
        plot = plot_text_report(
            self.draws,
            self.samples,
            folder / "evaluation.png",
            marginal_nll=self.per_sentence.get("marginal_nll"),
            marginal_lengths=self.lengths[self.per_sentence.get("index", [])],
        )
        paths.append(plot)
        if self.chains is not None:
            written = json.dumps(self.chains.to_dict(), indent=2) + "\n"
            (folder / "chains.json").write_text(written, encoding="utf-8")
            paths += [folder / "chains.json", plot_chain_report(self.chains, folder / "chains.png")]
        return paths


@dataclass
class EvaluateArguments:
    """Command"""

    json: bool = option(False, "Print the report as JSON.")


def evaluate(argv: list[str]) -> None:
    """Measure a text model; every metric comes with its interval. The same as recipes/evaluate_text.py.

    Examples:

        latent-ebm evaluate --model runs/ptb --dataset_name path/to/ptb --evaluator quick
        latent-ebm evaluate --model me/latent-ebm-ptb --dataset_name ptb --output_dir runs/evaluation --json
        accelerate launch -m latent_ebm_text.commands evaluate --model runs/ptb --dataset_name ptb  # on all devices
    """
    data_args, args, command = parsing.parse_arguments(
        (CorpusArguments, TextEvaluationArguments, EvaluateArguments),
        argv,
        description=parsing.description_of(evaluate),
        prog="latent-ebm evaluate",
    )
    with redirect_stdout(sys.stderr) if command.json else nullcontext():  # standard output is for the report alone
        paths = run_text_evaluation(data_args, args)
    if command.json and paths:
        print_json_file(Path(args.output_dir) / "evaluation.json")
    elif not command.json:
        for path in paths:
            print(path)


def run_text_evaluation(corpus_args: CorpusArguments, args: TextEvaluationArguments) -> list[Path]:
    """Loads a model and its data, evaluates it, prints the report and writes it; returns the paths of the files.

    The processes of `accelerate launch` share the work; the main one writes, and the others return no path.

    Text is tokenized by the model's tokenizer, and truncated to the model's own length.
    """
    new_plot(1, 1)  # a missing extra is reported before any work is done
    accelerator = all_processes()
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    model, tokenizer, data_args, text = load_model_and_corpus(args.model, corpus_args, args.seed, accelerator)
    accelerator.print(text.description)
    found = evaluate_text_model(model, tokenizer, text, args, accelerator)
    accelerator.end_training()
    if not accelerator.is_main_process:
        return []
    found.report.settings = flat_settings(data_args, args)
    paths = found.write(Path(args.output_dir))
    print(f"\n{found.report.to_markdown()}")
    return paths


def load_model_and_corpus(
    name: str, corpus_args: CorpusArguments, seed: int, accelerator: Accelerator | None = None
) -> tuple[LatentEBMForTextGeneration, PreTrainedTokenizerBase, DataArguments, PreparedText]:
    """A trained model with its tokenizer, and a corpus tokenized and embedded as it reads text.

    Args:
        name: Folder or Hub id of the model, or the folder of its run.
        corpus_args: The corpus.
        seed: Seed of the embedded corpus and of splits that are drawn, where the run of the model says nothing else:
            a corpus that is generated from a seed is the one of the training.
        accelerator: The processes, all of which call this; this one alone by default.
    """
    accelerator = accelerator or all_processes()
    folder = find_model(name)
    model, tokenizer = load_text_model(folder)
    run = run_of(folder)
    trained_with = read_json(run / "results.json").get("settings", {}) if run else {}
    data_args = DataArguments(**(asdict(corpus_args) | {"max_length": model.config.max_sequence_length}))
    text = prepare(data_args, trained_with.get("seed", seed), accelerator, tokenizer)
    with accelerator.main_process_first():
        return model, tokenizer, data_args, text.embedded(model.config.sentence_encoder)


def evaluate_text_model(
    model: LatentEBMForTextGeneration,
    tokenizer: PreTrainedTokenizerBase,
    text: PreparedText,
    args: TextEvaluationArguments,
    accelerator: Accelerator | None = None,
) -> TextEvaluation:
    """Measures a model on the test split of a corpus.

    Batches are shared out among processes; of the rest, one process trains the evaluators while another runs the
    prior's chains.

    Args:
        model: The model; `args` change the settings of its prior's sampler.
        tokenizer: Its tokenizer.
        text: The corpus, tokenized by it.
        args: What to measure, and how.
        accelerator: Devices and processes, which share the work and all call this; this process alone by default.

    Raises:
        UsageError: If settings of the prior's chains are given for a model without such chains, an extra is missing,
            or there are fewer than 4 test sentences.
    """
    started = time.monotonic()
    bleu_scorer()  # a missing extra is reported before any work is done
    if args.chain_repetitions:
        array_stats()
    has_labels = model.config.latent_dim > 0 and "label" in text.corpus.splits["train"].column_names
    if has_labels:
        require_probes()
    set_precision(args.matmul_precision)
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
            "sampling": describe_sampling(model, args.token_temperature),
            "seeds": 1,
        }
    )

    # How probable real text is under the model.
    common: dict[str, Any] = {"batch_size": args.batch_size, "seed": args.seed, "accelerator": accelerator}
    found, draws = text_metrics.reconstruction_metrics(model, test, text.collate, **common)
    report.add(found)
    per_sentence: dict[str, Any] = {}
    if args.num_likelihood_sentences:
        found, estimate, sentences = text_metrics.marginal_likelihood_metrics(
            model,
            test,
            num_sentences=args.num_likelihood_sentences,
            num_samples=args.num_likelihood_samples,
            num_levels=args.num_likelihood_levels,
            **common,
        )
        report.add(found)
        per_sentence = {"index": sentences, "marginal_nll": estimate.get("nll").numpy()}
        if "log_prob" in text.corpus.splits["test"].column_names:  # a corpus that knows its own probabilities
            report.add(text_metrics.exact_metrics(text.corpus.splits["test"][sentences]["log_prob"]))
    if model.config.latent_dim:
        seeded: dict[str, Any] = {"seed": args.seed, "accelerator": accelerator}
        size = args.num_information_sentences
        report.add(text_metrics.information_metrics(model, test, text.collate, num_sentences=size, **seeded))
        # Whether the latent can be used.
        report.add(reconstruction_accuracy(model, test, text.collate, num_sentences=RECONSTRUCTED, **common))
        report.add(interpolation_metrics(model, test, text.collate, **seeded))
        if has_labels:
            report.add(_label_metrics(model, text, args, accelerator))

    # Samples, by ancestral sampling.
    number = args.num_samples or len(train_texts)
    samples = generate_texts(
        model,
        tokenizer,
        number,
        seed=args.seed,
        progress=True,
        accelerator=accelerator,
        temperature=args.token_temperature,
    )
    # They are compared with real text as the model sees it, in which unknown words are `<unk>`.
    known_train, known_test = (
        tokenizer.batch_decode(text.splits[split]["input_ids"][:], skip_special_tokens=True)
        for split in ("train", "test")
    )

    def perplexities() -> tuple[dict[str, Estimate], dict[str, Any]]:
        if args.evaluator == "none":
            return {}, {}
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
        return text_metrics.perplexity_metrics(
            samples,
            evaluators[args.evaluator],
            tokenizer,
            test_texts,
            cache_dir=args.cache_dir,
            rppl_lm=evaluators[args.rppl_evaluator or args.evaluator],
        )

    def prior_chains() -> ChainReport | None:
        """Whether the prior's chains converge."""
        if not (isinstance(model.prior, EnergyPrior) and args.chain_repetitions):
            return None
        return report_prior_chains(
            model,
            tokenizer,
            repetitions=args.chain_repetitions,
            seed=args.seed,
            progress=partial(tqdm, desc="chains of the prior"),
        )

    def trivial_samplers() -> dict[str, dict[str, Estimate]]:
        if args.evaluator == "none" or not args.trivial_samplers:
            return {}
        return compare_samplers(
            samples, tokenizer, text.splits, cache_dir=args.cache_dir, seed=args.seed, progress=True
        )

    # What cannot be divided is dealt out whole.
    parts: list[Callable[[], Any]] = [
        perplexities,
        prior_chains,
        trivial_samplers,
        partial(text_metrics.sample_metrics, samples, known_train, known_test, seed=args.seed),
    ]
    (found, of_sentences), chains, compared, variety = share_out(lambda part: parts[part](), len(parts), accelerator)
    report.add(variety)
    report.add(found)
    per_sentence |= of_sentences
    if compared:
        report.tables["Beside trivial samplers"] = compared
    if chains is not None:
        report.texts["Chains of the prior"] = chains.to_markdown()
    report.facts["wall time"] = f"{(time.monotonic() - started) / 60:.1f} min"
    return TextEvaluation(report, samples, per_sentence, draws, np.asarray(test["length"][:]), chains)


def _label_metrics(
    model: LatentEBMForTextGeneration,
    text: PreparedText,
    args: TextEvaluationArguments,
    accelerator: Accelerator | None,
) -> dict[str, Estimate]:
    """How well the corpus's column `label` can be told from the latent, from TF-IDF and from sentence embeddings."""
    rng = np.random.default_rng(args.seed)
    chosen = {
        split: np.sort(rng.permutation(len(text.splits[split]))[:most])
        for split, most in (("train", MOST_LABELLED[0]), ("test", MOST_LABELLED[1]))
    }
    columns = {split: text.corpus.splits[split][rows] for split, rows in chosen.items()}
    if any(label is None for column in columns.values() for label in column["label"]):
        return {}
    rows = {split: SentenceRows.of_columns(text.splits[split][rows]) for split, rows in chosen.items()}
    latents = {}
    for split, read in rows.items():
        generator = derived_generator(args.seed, "labels", device=model.device)
        options: dict[str, Any] = {"batch_size": args.batch_size, "progress": True, "accelerator": accelerator}
        latents[split] = model.build_index(read, generator=generator, **options).mean
    texts = {split: column["text"] for split, column in columns.items()}
    represented = {
        "latent": tuple(latents[split].numpy() for split in ("train", "test")),
        "TF-IDF": tf_idf(texts["train"], texts["test"]),
    }
    if (encoder := installed_encoder()) is not None:
        represented[encoder] = tuple(embed_sentences(texts[split], encoder) for split in ("train", "test"))
    found: dict[str, Estimate] = {}
    for name, (train, test) in represented.items():
        found |= label_metrics(name, train, test, columns["train"]["label"], columns["test"]["label"], seed=args.seed)
    return found


def describe_sampling(model: LatentEBMForTextGeneration, token_temperature: float) -> str:
    """How latents and tokens are drawn, for people."""
    tokens = f"tokens one by one at temperature {token_temperature:g}"
    if not isinstance(model.prior, EnergyPrior):
        return tokens
    if model.prior_flow is not None:
        return f"latents by the flow that the prior was distilled into; {tokens}"
    settings = ", ".join(f"{name} {value}" for name, value in model.config.prior_sampler.items() if value is not None)
    return f"latents by {settings}; {tokens}"


def _change_prior_sampler(model: LatentEBMForTextGeneration, args: TextEvaluationArguments) -> None:
    changes = {"num_steps": args.prior_num_steps, "temperature": args.prior_temperature}
    changes = {name: value for name, value in changes.items() if value is not None}
    if changes and not isinstance(model.prior, EnergyPrior):
        raise UsageError("prior_num_steps and prior_temperature are for a learned prior; this model has none")
    if changes:
        model.config.prior_sampler = sampler_from_dict({**model.config.prior_sampler, **changes}).to_dict()
        model.prior_flow = None  # a chain is asked for
