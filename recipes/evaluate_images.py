"""Evaluate an image model: test MSE, NLLs, use of the latent, FID and KID of its samples.

    python recipes/evaluate_images.py --model runs/cifar10/model --dataset_name cifar10
    python recipes/evaluate_images.py --model runs/mnist/model --dataset_name mnist --features classifier
    accelerate launch recipes/evaluate_images.py --model runs/cifar10/model --dataset_name cifar10  # on all devices

As in the paper, --num_samples samples are compared with as many training images. With `--features classifier`, a
classifier that is trained once on the labels of the data set and kept in --cache_dir, nothing is downloaded; the
distances are then not FID and KID, and are not called so.
"""

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from accelerate.utils import tqdm

from latent_ebm_text import LatentEBMForImageGeneration
from latent_ebm_text.commands.arguments import ImageDataArguments
from latent_ebm_text.commands.parsing import parse_arguments
from latent_ebm_text.commands.running import run_command
from latent_ebm_text.commands.runs import describe_splits
from latent_ebm_text.commands.train_images import SHOWN, prepare
from latent_ebm_text.data.images import ImageCollator
from latent_ebm_text.data.splits import random_rows
from latent_ebm_text.errors import UsageError, require_in_interval
from latent_ebm_text.evaluation.image_features import (
    accuracy,
    collect_features,
    image_distances,
    inception_features,
    load_classifier,
)
from latent_ebm_text.evaluation.images import evaluate_images, generate_images, long_run
from latent_ebm_text.evaluation.plots import save_grid, save_reconstructions
from latent_ebm_text.hub.folders import IMAGE, find_model, model_kind
from latent_ebm_text.models.sharing import all_processes
from latent_ebm_text.training.arguments import option, required


@dataclass
class EvaluationArguments:
    """Evaluation"""

    model: str = required("Folder or Hub id of the model.")
    output_dir: str = option("runs/evaluation-images", "Folder of the report.")
    features: Literal["inception", "classifier"] = field(
        default="inception",
        metadata={
            "help": "Features for the distances: Inception (FID, KID), or a classifier of the data set's own labels."
        },
    )
    cache_dir: str = option("runs/evaluators", "Folder where classifiers are kept.")
    num_samples: int = option(50_000, "Generated and real images for the distances.")
    max_images: int | None = option(None, "Random test images for MSE and NLL; all by default.")
    long_run_steps: int = option(2500, "Steps of the long run of the prior's chains.")
    batch_size: int = option(256, "Images a batch.")
    seed: int = option(0, "Seed of all random draws.")

    def __post_init__(self) -> None:
        require_in_interval("num_samples", self.num_samples, 2, float("inf"))
        if self.max_images is not None:
            require_in_interval("max_images", self.max_images, 2, float("inf"))


def main() -> None:
    data_args, args = parse_arguments((ImageDataArguments, EvaluationArguments), description=__doc__)
    accelerator = all_processes()
    with accelerator.main_process_first():  # which downloads, where that is needed
        extractor = inception_features() if args.features == "inception" else None  # may be missing
    folder = find_model(args.model)
    if model_kind(folder) != IMAGE:
        raise UsageError(f"{args.model} is a model of text; this needs one of images")
    model = LatentEBMForImageGeneration.from_pretrained(folder).eval().to(accelerator.device)
    corpus = prepare(data_args, accelerator)
    accelerator.print(corpus.describe())
    collate, name = ImageCollator(corpus.image_size, corpus.num_channels), args.features
    notes = corpus.describe().splitlines()
    if extractor is None:
        progress = partial(tqdm, desc="training the classifier")
        with accelerator.main_process_first():
            classifier, name = load_classifier(corpus, cache_dir=args.cache_dir, progress=progress)
        notes.append(f"{name} classifies {accuracy(classifier, corpus):.1%} of the test images correctly")
        extractor = classifier.features
        accelerator.print(notes[-1])
    test = corpus.splits["test"]
    metrics = evaluate_images(
        model,
        test if args.max_images is None else random_rows(test, args.max_images),
        collate,
        batch_size=args.batch_size,
        seed=args.seed,
        progress=partial(tqdm, desc="test images"),
        accelerator=accelerator,
    )

    num_images = min(args.num_samples, len(corpus.splits["train"]))
    samples = generate_images(model, num_images, batch_size=args.batch_size, seed=args.seed, accelerator=accelerator)
    sampled = samples.split(args.batch_size)

    def real(number: int) -> torch.Tensor:
        start = number * args.batch_size
        return collate.batch(corpus.splits["train"], start, min(start + args.batch_size, num_images))

    real_features, features = (
        collect_features(
            extractor, batch, len(sampled), progress=partial(tqdm, desc=description), accelerator=accelerator
        )
        for description, batch in (("real images", real), ("samples", sampled.__getitem__))
    )
    accelerator.end_training()
    if not accelerator.is_main_process:
        return
    distances = image_distances(real_features, features, name)

    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    pixels = next(collate.batches(corpus.splits["test"], 256))
    save_grid(samples[:64], folder / "samples.png", columns=8)
    shown = pixels[:32]
    save_reconstructions(shown, model.reconstruct(shown), folder / "reconstructions.png", columns=min(8, len(shown)))
    if model.config.prior_type == "energy":
        strips, metrics["long_run"] = long_run(model, pixels, num_steps=args.long_run_steps, seed=args.seed)
        save_grid(strips[:8].flatten(0, 1), folder / "long_run.png", columns=strips.shape[1])
    report = {"model": args.model, "data": notes, "metrics": {**metrics, **distances}}
    (folder / "evaluation.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print("\n".join(describe_splits({"splits": {"test": metrics}}, SHOWN)))
    for name, estimates in metrics.get("long_run", {}).items():
        ends = (f"{end} {each['value']:.3f} ± {each['standard_error']:.3f}" for end, each in estimates.items())
        print(f"long run of the prior's chains, {name.replace('_', ' ')}: {', '.join(ends)}")
    for title, distance in distances.items():
        print(f"{title}: {distance['value']:.5g} ({num_images:,} samples, {num_images:,} training images)")
    print(folder / "evaluation.json")


if __name__ == "__main__":
    run_command(main)
