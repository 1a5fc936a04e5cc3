"""What training a text model adds to the loop: its data, its evaluation, and the folder of a finished run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from tokenizers.models import WordLevel

from latent_ebm_text.data import BucketedBatches, TextCollator, load_text_dataset, tokenize_corpus
from latent_ebm_text.data.cleaning import column_array, iterate_texts
from latent_ebm_text.data.text import TextCorpus
from latent_ebm_text.errors import DataError
from latent_ebm_text.evaluation.text import evaluate_likelihoods, generate_texts, sample_statistics
from latent_ebm_text.hub.training import make_pusher
from latent_ebm_text.modeling_text import LatentEBMForTextGeneration
from latent_ebm_text.streams import stream_seed
from latent_ebm_text.tokenization import make_tokenizer
from latent_ebm_text.training.arguments import DataArguments, HubArguments, ModelArguments, TrainingArguments
from latent_ebm_text.training.models import build_model, load_tokenizer
from latent_ebm_text.training.record import run_record
from latent_ebm_text.training.runs import describe_split, run_identity, run_training, write_results
from latent_ebm_text.training.tracking import make_accelerator, start_tracking
from latent_ebm_text.training.trainer import TrainingData

if TYPE_CHECKING:
    from datasets import DatasetDict
    from transformers import PreTrainedTokenizerBase

#: Name, title and unit of what a finished run shows of each split.
NLLS = (
    ("reconstruction_nll", "reconstruction NLL", "nats per sentence"),
    ("prior_nll", "prior NLL", "nats per sentence"),
)


@dataclass(frozen=True)
class PreparedText:
    """A corpus, ready for training.

    Attributes:
        corpus: What was loaded, and where from.
        tokenizer: Trained on its training split, or pretrained.
        splits: The tokenised splits, with `input_ids`, `length` (tokens) and `words`.
        collate: Makes padded batches.
        description: One line or a few on the data, for people.
    """

    corpus: TextCorpus
    tokenizer: PreTrainedTokenizerBase
    splits: DatasetDict
    collate: TextCollator
    description: str

    def training_data(self, batch_size: int, seed: int) -> TrainingData:
        """The training split in batches of sentences of similar length."""
        lengths = column_array(self.splits["train"], "length")
        return TrainingData(self.splits["train"], BucketedBatches(lengths, batch_size, seed), self.collate)

    def identity(self, model: LatentEBMForTextGeneration, args: TrainingArguments) -> dict[str, Any]:
        """What a checkpoint must share with a run to be resumed by it."""
        words = json.dumps(self.tokenizer.get_vocab(), sort_keys=True)
        vocabulary = hashlib.sha256(words.encode()).hexdigest()[:16]
        return run_identity(model, args, data=self.corpus.fingerprint, vocabulary=vocabulary)


def prepare_text(
    args: DataArguments, seed: int, accelerator: Accelerator, tokenizer: PreTrainedTokenizerBase | None = None
) -> PreparedText:
    """Loads a corpus and tokenises it, by a tokeniser trained on it unless one is named or given; the first process
    works, the others read what it has cached."""
    with accelerator.main_process_first():
        corpus = load_text_dataset(
            args.dataset_name,
            text_column=args.text_column,
            revision=args.dataset_revision,
            train_split=args.train_split,
            num_sentences=args.num_sentences,
            num_test_sentences=args.num_test_sentences,
            streaming=args.streaming,
            num_proc=args.num_proc,
            seed=seed,
        )
        notes: list[str] = []
        if tokenizer is None:
            texts = iterate_texts(corpus.splits["train"])
            tokenizer, notes = make_tokenizer(
                args.tokenizer, texts, vocab_size=args.vocab_size, max_length=args.max_length
            )
        splits, truncated = tokenize_corpus(corpus.splits, tokenizer, args.max_length, args.num_proc)
    for split in ("validation", "test"):
        if len(splits[split]) < 2:
            raise DataError(f"{corpus.name} has one {split} sentence; a standard error needs 2 or more")
    tokens, words = (int(column_array(splits["train"], column).sum()) for column in ("length", "words"))
    is_words = isinstance(tokenizer.backend_tokenizer.model, WordLevel)
    unit, rate = ("words", "") if is_words else ("tokens", f"; {tokens / words:.2f} tokens a word")
    lines = [corpus.describe(), f"vocabulary: {len(tokenizer)} {unit}, special ones included{rate}", *notes]
    if any(truncated.values()):
        lines.append(f"truncated to max_length={args.max_length} {unit}: {truncated}")
    return PreparedText(corpus, tokenizer, splits, TextCollator(tokenizer.pad_token_id), "\n".join(lines))


def train_text_model(
    data_args: DataArguments, model_args: ModelArguments, args: TrainingArguments, hub_args: HubArguments
) -> int:
    """What every recipe for text does: prepares a corpus, trains a model, evaluates it, prints what came of it, and
    pushes it where that is wished.

    Returns:
        The exit code of the recipe: 0, or that of the signal which stopped it.
    """
    args.check_encoder(model_args.encoder_hidden_size is not None)
    torch.set_float32_matmul_precision(args.matmul_precision)
    accelerator = make_accelerator(args)
    pusher = make_pusher(hub_args, args.output_dir, accelerator)

    # Data: loaded, tokenised, described, so that nobody is mistaken about what was trained on.
    text = prepare_text(data_args, args.seed, accelerator, load_tokenizer(model_args))
    accelerator.print(text.description)

    # Model: the same initial weights on every process.
    torch.manual_seed(stream_seed(args.seed, "initial weights"))
    model = build_model(model_args, text.tokenizer, data_args.max_length)
    start_tracking(accelerator, args, data_args, model_args)
    return run_training(
        model,
        text.training_data(args.train_batch_size, args.seed),
        args,
        identity=text.identity(model, args),
        evaluate=quick_evaluation(text, args, accelerator),
        finish=partial(finish_text_run, model, text, args),
        describe=describe_results,
        record=partial(run_record, corpus=text.corpus, settings=(data_args, model_args, args)),
        processor=text.tokenizer,
        accelerator=accelerator,
        pusher=pusher,
    )


def validation_figures(
    model: LatentEBMForTextGeneration, text: PreparedText, args: TrainingArguments
) -> dict[str, Any]:
    """NLLs in nats per sentence and statistics of the latents, on `num_eval_sentences` of the validation split."""
    figures = evaluate_likelihoods(
        model,
        text.splits["validation"],
        text.collate,
        batch_size=args.eval_batch_size,
        max_sentences=args.num_eval_sentences,
        seed=args.seed,
    )
    nlls = {name: figures[name]["value"] for name in ("reconstruction_nll", "prior_nll")}
    return {**nlls, **figures["latents"]}


def quick_evaluation(text: PreparedText, args: TrainingArguments, accelerator: Accelerator) -> Callable[..., Any]:
    """The evaluation that runs while training: a part of the validation split, and four sentences."""

    def evaluate(model: LatentEBMForTextGeneration, step: int) -> dict[str, float]:
        flat = validation_figures(model, text, args)
        accelerator.print(
            f"step {step}: validation NLL per sentence {flat['reconstruction_nll']:.1f} reconstructed, "
            f"{flat['prior_nll']:.1f} from prior draws; standard deviation {flat['posterior_std']:.2f} posterior, "
            f"{flat['prior_std']:.2f} prior; {flat['active_units']} active units"
        )
        for sentence in generate_texts(model, text.tokenizer, 4, seed=step):
            accelerator.print(f"    {sentence}")
        return flat

    return evaluate


def finish_text_run(
    model: LatentEBMForTextGeneration, text: PreparedText, args: TrainingArguments, run: dict[str, Any]
) -> dict[str, Any]:
    """Saves the model, evaluates it on every split that was not trained on, and writes results, samples and plots.

    Args:
        model: The trained model.
        text: Its data.
        args: The settings.
        run: Facts on the run that belong into `results.json`.

    Returns:
        What was written, and the paths: the content of `results.json`.
    """
    folder = Path(args.output_dir)
    model.save_pretrained(folder / "model")
    text.tokenizer.save_pretrained(folder / "model")
    results: dict[str, Any] = {**run, "data": text.description.splitlines(), "splits": {}}
    for split in ("validation", "test"):
        figures = evaluate_likelihoods(
            model,
            text.splits[split],
            text.collate,
            batch_size=args.eval_batch_size,
            seed=args.seed,
            progress=partial(tqdm, desc=f"evaluating {split}"),
        )
        figures["words_per_sentence"] = float(column_array(text.splits[split], "words").mean())
        if "log_prob" in text.corpus.splits[split].column_names:  # a corpus that knows its own probabilities
            log_probs = text.corpus.splits[split]["log_prob"][:]
            figures["exact_nll"] = -sum(log_probs) / len(log_probs)
        results["splits"][split] = figures
    texts = generate_texts(
        model, text.tokenizer, args.num_eval_samples, batch_size=args.eval_batch_size, seed=args.seed
    )
    results["samples"] = sample_statistics(texts, column_array(text.splits["test"], "words"))
    (folder / "samples.txt").write_text(
        "\n".join(" ".join(each.splitlines()) for each in texts) + "\n", encoding="utf-8"
    )
    return write_results(folder, results, {"samples": folder / "samples.txt"})


def describe_results(results: dict[str, Any]) -> str:
    """The results of a run for people to read."""
    lines = []
    for split, figures in results["splits"].items():
        lines += describe_split(split, figures, NLLS)
        if "exact_nll" in figures:
            lines.append(
                f"{split:>10}  {'exact entropy':<20} {figures['exact_nll']:10.2f} nats per sentence, of these rows"
            )
    samples = results["samples"]
    lines.append(
        f"   samples  {100 * samples['unique_rate']:.1f} % unique of {samples['n']}; mean length "
        f"{samples['mean_length']:.1f} words (real text: {samples['real_mean_length']:.1f})"
    )
    if "plot_missing" in results:
        lines.append(f"      plot  none: {results['plot_missing']}")
    texts = Path(results["paths"]["samples"]).read_text(encoding="utf-8").splitlines()
    return "\n".join([*lines, "", "16 samples, as they came:", *(f"  {text}" for text in texts[:16])])
