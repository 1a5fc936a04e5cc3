"""Evaluate an image model: test MSE, NLLs, use of the latent, FID and KID of its samples.

    python recipes/evaluate_images.py --model runs/cifar10/model --dataset_name cifar10
    python recipes/evaluate_images.py --model runs/mnist/model --dataset_name mnist

Samples are compared with the training images, as the paper does, each with as many as --num_samples. With features
other than Inception's the distances are not FID and KID, and are not called so.
"""

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import tqdm

from latent_ebm_text import LatentEBMForImageGeneration
from latent_ebm_text.data.images import ImageCollator
from latent_ebm_text.evaluation.feature_distance import collect_features, image_distances, load_features
from latent_ebm_text.evaluation.images import evaluate_images, generate_images
from latent_ebm_text.training.configuration import parse_recipe_arguments, require_in_interval, run_recipe
from latent_ebm_text.training.images import ImageDataArguments


@dataclass
class EvaluationArguments:
    """Evaluation"""

    model: str = field(metadata={"help": "Folder or Hub id of the model."})
    output_dir: str = field(default="runs/evaluation-images", metadata={"help": "Folder of the report."})
    features: str = field(default="inception", metadata={"help": "inception (FID, KID)."})
    num_samples: int = field(default=50_000, metadata={"help": "Images generated, and real ones beside them."})
    max_images: int | None = field(default=None, metadata={"help": "Test images of MSE and NLL; none for all."})
    batch_size: int = field(default=256, metadata={"help": "Images a batch."})
    seed: int = field(default=0, metadata={"help": "Of every draw."})

    def __post_init__(self) -> None:
        require_in_interval("num_samples", self.num_samples, 2, float("inf"))


def main() -> None:
    data_args, args = parse_recipe_arguments((ImageDataArguments, EvaluationArguments), description=__doc__)
    extractor = load_features(args.features)
    model = LatentEBMForImageGeneration.from_pretrained(args.model).eval()
    corpus = data_args.load(Accelerator(cpu=True))
    print(corpus.describe())
    collate = ImageCollator(corpus.image_size, corpus.num_channels)
    figures = evaluate_images(
        model,
        corpus.splits["test"],
        collate,
        batch_size=args.batch_size,
        max_images=args.max_images,
        seed=args.seed,
        progress=partial(tqdm, desc="test images"),
    )

    train = corpus.splits["train"]
    num_images = min(args.num_samples, len(train))
    starts = range(0, num_images, args.batch_size)
    real = (
        collate([{"pixels": row} for row in train[start : min(start + args.batch_size, num_images)]["pixels"]])
        for start in tqdm(starts, desc="real images")
    )
    samples = generate_images(model, num_images, batch_size=args.batch_size, seed=args.seed).split(args.batch_size)
    figures |= image_distances(
        collect_features(extractor, (batch["pixel_values"] for batch in real)),
        collect_features(extractor, tqdm(samples, desc="samples")),
        args.features,
    )

    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    report = {"model": args.model, "data": corpus.describe().splitlines(), "figures": figures}
    (folder / "evaluation.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, figure in figures.items():
        print(f"{name:>40}: {figure['value']:.5g}" if "value" in figure else f"{name:>40}: {figure}")
    print(folder / "evaluation.json")


if __name__ == "__main__":
    run_recipe(main)
