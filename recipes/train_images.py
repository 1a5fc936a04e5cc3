"""Train a latent space energy-based prior model on images: the same prior, chains and loop as for text.

    accelerate launch recipes/train_images.py                                            # digits, no download, minutes
    accelerate launch recipes/train_images.py --dataset_name path/to/folder --adapt_images --image_size 32
    accelerate launch recipes/train_mnist.py | train_svhn.py | train_cifar10.py | train_celeba.py    # the paper's

Run it again and it goes on from its newest checkpoint.
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from latent_ebm_text import LatentEBMForImageGeneration
from latent_ebm_text.data.images import ImageCollator
from latent_ebm_text.streams import stream_seed
from latent_ebm_text.training.arguments import TrainingArguments
from latent_ebm_text.training.configuration import parse_recipe_arguments, run_recipe
from latent_ebm_text.training.images import (
    ImageDataArguments,
    ImageModelArguments,
    describe_results,
    finish_image_run,
    quick_evaluation,
    run_identity,
    training_data,
)
from latent_ebm_text.training.trainer import train

CONFIGS = Path(__file__).parent / "configs"


def main(default_config: Path = CONFIGS / "quickstart_images.yaml", description: str | None = __doc__) -> int:
    data_args, model_args, args = parse_recipe_arguments(
        (ImageDataArguments, ImageModelArguments, TrainingArguments),
        default_config=default_config,
        description=description or "",
    )
    torch.set_float32_matmul_precision(args.matmul_precision)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())

    # Data: decoded, counted, described, so that nobody is mistaken about what was trained on.
    corpus = data_args.load(accelerator)
    accelerator.print(corpus.describe())
    collate = ImageCollator(corpus.image_size, corpus.num_channels)

    # Model: the same initial weights on every process.
    torch.manual_seed(stream_seed(args.seed, "initial weights"))
    model = LatentEBMForImageGeneration(model_args.image_config(corpus.image_size, corpus.num_channels))
    accelerator.print(f"model: {model.num_parameters():,} parameters, {model.config.latent_dim} latent dimensions")

    # Training: from the newest checkpoint, where there is one.
    result = train(
        model,
        training_data(corpus.splits["train"], collate, args),
        args,
        identity=run_identity(model, corpus.fingerprint, args),
        evaluate=quick_evaluation(corpus.splits["validation"], collate, args, accelerator),
        accelerator=accelerator,
    )
    if result.signal is not None:
        accelerator.print(f"stopped by signal {result.signal} after step {result.step}; run again to go on")
        return args.exit_code(result.signal)

    # Evaluation, and everything a reader wants to see.
    if accelerator.is_main_process:
        run = {
            "command": " ".join(sys.argv),
            "step": result.step,
            "training_seconds": round(result.seconds, 1),
            "warnings": result.warnings,
        }
        results = finish_image_run(model, corpus, args, run)
        print(f"\ntrained {result.step} steps in {result.seconds / 60:.1f} min\n{describe_results(results)}")
        print("\n".join(["", *(f"{name:>15}: {path}" for name, path in results["paths"].items())]))
    return 0


if __name__ == "__main__":
    run_recipe(main)
