"""What training an image model adds to the loop: its arguments and data, and the folder of a finished run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import tqdm

from latent_ebm_text.configuration import LatentEBMImageConfig
from latent_ebm_text.data.batching import BucketedBatches
from latent_ebm_text.data.images import ImageCollator, ImageCorpus, load_image_dataset
from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.image_plots import plot_chain_energies, save_grid, save_reconstructions
from latent_ebm_text.evaluation.images import chain_strips, evaluate_images, generate_images
from latent_ebm_text.hub.training import make_pusher
from latent_ebm_text.image_processing import LatentEBMImageProcessor
from latent_ebm_text.modeling_image import LatentEBMForImageGeneration
from latent_ebm_text.streams import stream_seed
from latent_ebm_text.training.arguments import HubArguments, LatentArguments, TrainingArguments
from latent_ebm_text.training.configuration import option, require_positive
from latent_ebm_text.training.record import run_record
from latent_ebm_text.training.runs import describe_split, run_identity, run_training, write_results
from latent_ebm_text.training.tracking import make_accelerator, start_tracking
from latent_ebm_text.training.trainer import TrainingData

#: Name, title and unit of what a finished run shows of each split.
ESTIMATES = (
    ("mse", "reconstruction MSE", "per pixel in [-1, 1]"),
    ("reconstruction_nll", "reconstruction NLL", "nats per image"),
    ("prior_nll", "prior NLL", "nats per image"),
)


@dataclass
class ImageModelArguments(LatentArguments):
    """Model and samplers. The defaults are the paper's for SVHN."""

    latent_dim: int = option(100, "Size of the latent z.")
    prior_activation: Literal["gelu", "leaky_relu"] = option("leaky_relu", "Activation of the energy network.")
    decoder_channels: str = option("512,256,128", "Maps after the first and every hidden layer of the decoder.")
    decoder_first_size: int = option(4, "Height and width after its first layer; every further one doubles them.")
    pixel_std: float = option(0.3, "Standard deviation of the Gaussian likelihood, for pixels in [-1, 1].")
    encoder_hidden_size: int | None = option(
        None, "Maps after the first layer of an encoder that proposes latents (inference amortized or variational)."
    )

    def image_config(self, image_size: int, num_channels: int) -> LatentEBMImageConfig:
        """The configuration of an image model; raises `UsageError` for a value that cannot be right."""
        try:
            channels = [int(part) for part in self.decoder_channels.split(",")]
        except ValueError as error:
            raise UsageError(
                f"decoder_channels must be integers with commas between them, got {self.decoder_channels!r}"
            ) from error
        return LatentEBMImageConfig(
            image_size=image_size,
            num_channels=num_channels,
            decoder_channels=channels,
            decoder_first_size=self.decoder_first_size,
            pixel_std=self.pixel_std,
            encoder_hidden_size=self.encoder_hidden_size,
            **self.latent_settings(),
        )


@dataclass
class ImageDataArguments:
    """Data"""

    dataset_name: str = option(
        "digits", "`digits` (no download), `mnist`, `svhn`, `cifar10`, `celeba`, a Hub id, a local folder or file."
    )
    image_column: str | None = option(None, "Column that holds the images; found by itself where there is one.")
    label_column: str | None = option(None, "Column that holds the classes; `label` by default.")
    train_split: str | None = option(None, "Split to train on, where it is not the one called train.")
    image_size: int | None = option(None, "Height and width that images must have; those of the first by default.")
    num_channels: int | None = option(None, "1 for grey, 3 for colour; what the first image has by default.")
    adapt_images: bool = option(False, "Crop images to their central square, resize and convert them where needed.")
    strict: bool = option(False, "Stop at an image that cannot be read, where it would be skipped and counted.")
    num_images: int | None = option(None, "Train on so many images; none for all.")

    def __post_init__(self) -> None:
        for name in ("image_size", "num_images"):
            if getattr(self, name) is not None:
                require_positive(name, getattr(self, name))

    def load(self, accelerator: Accelerator) -> ImageCorpus:
        """The images; the first process works."""
        with accelerator.main_process_first():
            return load_image_dataset(
                self.dataset_name,
                image_column=self.image_column,
                label_column=self.label_column,
                train_split=self.train_split,
                image_size=self.image_size,
                num_channels=self.num_channels,
                adapt=self.adapt_images,
                strict=self.strict,
                num_images=self.num_images,
            )


def training_data(images: Any, collate: ImageCollator, args: TrainingArguments) -> TrainingData:
    """Rows with `pixels`, in batches whose order is a function of (seed, epoch)."""
    batches = BucketedBatches(np.ones(len(images)), args.train_batch_size, args.seed)
    return TrainingData(images.select_columns("pixels"), batches, collate)


def train_image_model(
    data_args: ImageDataArguments, model_args: ImageModelArguments, args: TrainingArguments, hub_args: HubArguments
) -> int:
    """What every recipe for images does: reads them, trains a model, evaluates it, prints what came of it, and pushes
    it where that is wished.

    Returns:
        The exit code of the recipe: 0, or 128 and the number of the signal that stopped it.
    """
    args.check_encoder(model_args.encoder_hidden_size is not None)
    torch.set_float32_matmul_precision(args.matmul_precision)
    accelerator = make_accelerator(args)
    pusher = make_pusher(hub_args, args.output_dir, accelerator)

    # Data: decoded, counted, described, so that nobody is mistaken about what was trained on.
    corpus = data_args.load(accelerator)
    accelerator.print(corpus.describe())
    collate = ImageCollator(corpus.image_size, corpus.num_channels)

    # Model: the same initial weights on every process.
    torch.manual_seed(stream_seed(args.seed, "initial weights"))
    model = LatentEBMForImageGeneration(model_args.image_config(corpus.image_size, corpus.num_channels))
    start_tracking(accelerator, args, data_args, model_args)
    return run_training(
        model,
        training_data(corpus.splits["train"], collate, args),
        args,
        identity=run_identity(model, args, data=corpus.fingerprint),
        evaluate=quick_evaluation(corpus.splits["validation"], collate, args, accelerator),
        finish=partial(finish_image_run, model, corpus, args),
        describe=describe_results,
        record=partial(run_record, corpus=corpus, settings=(data_args, model_args, args)),
        processor=LatentEBMImageProcessor(corpus.image_size, corpus.num_channels),
        accelerator=accelerator,
        pusher=pusher,
    )


def quick_evaluation(
    images: Any, collate: ImageCollator, args: TrainingArguments, accelerator: Accelerator
) -> Callable[..., dict[str, float]]:
    """The evaluation that runs while training: a part of the validation images, and a grid of samples."""

    def evaluate(model: LatentEBMForImageGeneration, step: int) -> dict[str, float]:
        figures = evaluate_images(
            model,
            images,
            collate,
            batch_size=args.eval_batch_size,
            max_images=args.num_eval_sentences,
            seed=args.seed,
        )
        nlls = {name: figures[name]["value"] for name in ("mse", "reconstruction_nll", "prior_nll")}
        latents = figures["latents"]
        accelerator.print(
            f"step {step}: validation MSE {nlls['mse']:.4f}; NLL per image {nlls['reconstruction_nll']:.1f} "
            f"reconstructed, {nlls['prior_nll']:.1f} from prior draws; standard deviation "
            f"{latents['posterior_std']:.2f} posterior, {latents['prior_std']:.2f} prior; "
            f"{latents['active_units']} active units"
        )
        if accelerator.is_main_process:
            samples = generate_images(model, 64, seed=args.seed)
            save_grid(samples, Path(args.output_dir) / "samples" / f"step-{step:08d}.png", columns=8)
        return {**nlls, **latents}

    return evaluate


def finish_image_run(
    model: LatentEBMForImageGeneration, corpus: ImageCorpus, args: TrainingArguments, run: dict[str, Any]
) -> dict[str, Any]:
    """Saves the model, evaluates it on every split that was not trained on, and writes results and pictures.

    Args:
        model: The trained model.
        corpus: Its data.
        args: The settings.
        run: Facts on the run that belong into `results.json`.

    Returns:
        What was written, and the paths: the content of `results.json`.
    """
    folder = Path(args.output_dir)
    collate = ImageCollator(corpus.image_size, corpus.num_channels)
    model.eval().save_pretrained(folder / "model")
    LatentEBMImageProcessor(corpus.image_size, corpus.num_channels).save_pretrained(folder / "model")
    results: dict[str, Any] = {**run, "data": corpus.describe().splitlines(), "splits": {}}
    for split in ("validation", "test"):
        results["splits"][split] = evaluate_images(
            model,
            corpus.splits[split],
            collate,
            batch_size=args.eval_batch_size,
            seed=args.seed,
            progress=partial(tqdm, desc=f"evaluating {split}"),
        )
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

    return write_results(
        folder, results, {"samples": samples, "reconstructions": reconstructions, "chains": chains}, plots
    )


def describe_results(results: dict[str, Any]) -> str:
    """The results of a run for people to read."""
    lines = []
    for split, figures in results["splits"].items():
        lines += describe_split(split, figures, ESTIMATES)
    if "plot_missing" in results:
        lines.append(f"      plot  none: {results['plot_missing']}")
    return "\n".join(lines)
