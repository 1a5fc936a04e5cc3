"""Training an image model, from the name of a dataset to a folder with model, metrics, plots and card.

[`train_image_model`] is what every recipe for images runs. It calls the steps below in the order in which they stand
here, and each of them can be called by itself.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import tqdm

from latent_ebm_text.commands.arguments import HubArguments, ImageDataArguments, ImageModelArguments, flat_settings
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
from latent_ebm_text.data.batching import BucketedBatches
from latent_ebm_text.data.image_processing import LatentEBMImageProcessor
from latent_ebm_text.data.images import ImageCollator, ImageCorpus, load_image_dataset
from latent_ebm_text.evaluation.images import chain_strips, evaluate_images, generate_images
from latent_ebm_text.evaluation.latents import plain_numbers
from latent_ebm_text.evaluation.plots import plot_chain_energies, save_grid, save_reconstructions
from latent_ebm_text.latents.rng import derived_seed
from latent_ebm_text.models.configuration import LatentEBMImageConfig
from latent_ebm_text.models.modeling_image import LatentEBMForImageGeneration
from latent_ebm_text.training import trainer
from latent_ebm_text.training.arguments import TrainingArguments
from latent_ebm_text.training.files import replaced_folder
from latent_ebm_text.training.locking import only_run
from latent_ebm_text.training.sharding import check_sharding
from latent_ebm_text.training.step import TrainingData
from latent_ebm_text.training.tracking import make_accelerator, set_precision, start_tracking
from latent_ebm_text.training.trainer import TrainingResult

#: Key, title and unit of the metrics that the end of a run prints for each split.
SHOWN = (
    ("mse", "reconstruction MSE", "per pixel in [-1, 1]"),
    ("reconstruction_nll", "reconstruction NLL", "nats per image"),
    ("prior_nll", "prior NLL", "nats per image"),
    ("latent_gain", "latent gain", "nats per image"),
)


def train_image_model(
    data_args: ImageDataArguments, model_args: ImageModelArguments, args: TrainingArguments, hub_args: HubArguments
) -> int:
    """Reads images, builds a model, trains and evaluates it, writes the results, and pushes them if asked to.

    Returns:
        The exit code of a recipe: 0, or that of the signal that stopped the training.
    """
    args.check_inference(model_args.settings["encoder_hidden_size"] is not None, model_args.settings["num_fit_steps"])
    check_sharding(is_causal_lm=False)
    set_precision(args.matmul_precision)
    accelerator = make_accelerator(args)
    pusher = make_pusher(hub_args, args.output_dir, accelerator)

    corpus = prepare(data_args, accelerator)
    accelerator.print(corpus.describe())
    model = build(model_args, corpus, args.seed)
    accelerator.print(describe_model(model))
    with only_run(Path(args.output_dir), accelerator):
        start_tracking(accelerator, args.output_dir, flat_settings(data_args, model_args, args))
        result = train(model, corpus, args, accelerator, pusher)
        if result.signal is not None:
            accelerator.print(describe_stop(result))
        else:
            metrics = evaluate(model, corpus, args, accelerator)
            if accelerator.is_main_process:
                record = run_record(result, corpus, data_args, model_args, args)
                results = write(model, corpus, args, {**record, **metrics})
                show_results(results, describe_splits(results, SHOWN))
                push(pusher)
        accelerator.end_training()
    return 0 if result.signal is None else args.exit_code(result.signal)


def prepare(args: ImageDataArguments, accelerator: Accelerator | None = None) -> ImageCorpus:
    """Reads and checks images; the first process does the work, the others read what it has cached.

    Args:
        args: What to read.
        accelerator: Devices and processes; this process alone by default.

    Raises:
        UsageError: If there is no such dataset, or an argument cannot be right.
        DataError: If the images cannot be used.
    """
    accelerator = accelerator or Accelerator(cpu=not torch.cuda.is_available())
    with accelerator.main_process_first():
        return load_image_dataset(
            args.dataset_name,
            image_column=args.image_column,
            label_column=args.label_column,
            train_split=args.train_split,
            image_size=args.image_size,
            num_channels=args.num_channels,
            adapt=args.adapt_images,
            strict=args.strict,
            num_images=args.num_images,
        )


def build(model_args: ImageModelArguments, corpus: ImageCorpus, seed: int = 0) -> LatentEBMForImageGeneration:
    """The model for images of the corpus's size; its initial weights are the same on every process.

    Raises:
        UsageError: If a setting cannot be right for images of this size.
    """
    torch.manual_seed(derived_seed(seed, "initial weights"))
    sizes = {"image_size": corpus.image_size, "num_channels": corpus.num_channels}
    config = LatentEBMImageConfig(**sizes, **model_args.settings)
    check_memory(LatentEBMForImageGeneration, config)
    return LatentEBMForImageGeneration(config)


def train(
    model: LatentEBMForImageGeneration,
    corpus: ImageCorpus,
    args: TrainingArguments,
    accelerator: Accelerator | None = None,
    pusher: TrainingPusher | None = None,
) -> TrainingResult:
    """Trains a model, from the newest checkpoint where there is one, and saves it with its image processor.

    Args:
        model: The model, which is trained in place.
        corpus: The images.
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
    processor = LatentEBMImageProcessor(corpus.image_size, corpus.num_channels)
    collate = ImageCollator(corpus.image_size, corpus.num_channels)
    result = train_on_images(
        model,
        corpus.splits["train"],
        corpus.splits["validation"],
        collate,
        args,
        identity=run_identity(model, args, data=corpus.fingerprint),
        accelerator=accelerator,
        on_save=None if pusher is None else partial(pusher.push_so_far, processor=processor),
    )
    if result.signal is None and accelerator.is_main_process:
        with replaced_folder(Path(args.output_dir) / "model") as written:
            model.eval().save_pretrained(written)
            processor.save_pretrained(written)
    return result


def train_on_images(
    model: LatentEBMForImageGeneration,
    images: Any,
    validation: Any,
    collate: ImageCollator,
    args: TrainingArguments,
    *,
    identity: dict[str, Any],
    accelerator: Accelerator,
    on_save: Any = None,
) -> TrainingResult:
    """The loop on rows of images, with metrics of a part of the validation images and a grid of samples meanwhile.

    Args:
        model: The model.
        images: Rows with `pixels` to train on.
        validation: Rows with `pixels` to evaluate on while training.
        collate: Makes a batch of rows.
        args: The settings.
        identity: What a checkpoint must have in common with this run.
        accelerator: Devices and processes.
        on_save: See [`~latent_ebm_text.training.trainer.train`].
    """

    def validate(model: LatentEBMForImageGeneration, step: int) -> dict[str, float]:
        found = evaluate_images(
            model,
            validation,
            collate,
            batch_size=args.eval_batch_size,
            max_images=args.num_eval_examples,
            seed=args.seed,
        )
        metrics = plain_numbers(found)
        show_validation(metrics, step, accelerator)
        if accelerator.is_main_process:
            samples = generate_images(model, 64, seed=args.seed)
            save_grid(samples, Path(args.output_dir) / "samples" / f"step-{step:08d}.png", columns=8)
        return metrics

    batches = BucketedBatches(np.ones(len(images)), args.train_batch_size, args.seed)
    data = TrainingData(images.select_columns("pixels"), batches, collate)
    return trainer.train(
        model, data, args, identity=identity, evaluate=validate, accelerator=accelerator, on_save=on_save
    )


def evaluate(
    model: LatentEBMForImageGeneration,
    corpus: ImageCorpus,
    args: TrainingArguments,
    accelerator: Accelerator | None = None,
) -> dict[str, Any]:
    """Measures a model on the splits that it was not trained on.

    Args:
        model: The model.
        corpus: The images.
        args: The settings of the training.
        accelerator: Devices and processes, which share the work and all call this; this process alone by default.

    Returns:
        The metrics, as `results.json` holds them under `splits`.
    """
    collate = ImageCollator(corpus.image_size, corpus.num_channels)
    return {
        "splits": {
            split: evaluate_images(
                model,
                corpus.splits[split],
                collate,
                batch_size=args.eval_batch_size,
                seed=args.seed,
                progress=partial(tqdm, desc=f"evaluating {split}"),
                accelerator=accelerator,
            )
            for split in ("validation", "test")
        }
    }


def write(
    model: LatentEBMForImageGeneration, corpus: ImageCorpus, args: TrainingArguments, results: dict[str, Any]
) -> dict[str, Any]:
    """Writes `results.json`, samples, reconstructions, chains and plots, and the card beside the model.

    Args:
        model: The trained model.
        corpus: The images.
        args: The settings of the training, with its folder.
        results: The facts about the run and the metrics of [`evaluate`].

    Returns:
        The content of `results.json`, with the paths of all files.
    """
    folder, collate = Path(args.output_dir), ImageCollator(corpus.image_size, corpus.num_channels)
    samples = save_grid(generate_images(model, 64, seed=args.seed), folder / "samples.png", columns=8)
    pixels = next(collate.batches(corpus.splits["test"], 32)).to(model.device)
    reconstructions = save_reconstructions(
        pixels, model.reconstruct(pixels), folder / "reconstructions.png", columns=min(8, len(pixels))
    )
    strips, energies = chain_strips(model, 8, seed=args.seed)
    chains = save_grid(strips.flatten(0, 1), folder / "chains.png", columns=strips.shape[1])

    def plots() -> dict[str, Path]:
        num_steps = model.prior_sampler.num_steps
        return {"energies": plot_chain_energies(energies, num_steps, folder / "chain_energies.png")}

    paths = {"samples": samples, "reconstructions": reconstructions, "chains": chains}
    return write_results(folder, {**results, "data": corpus.describe().splitlines()}, paths, plots)
