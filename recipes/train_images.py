"""Train a latent space energy-based prior model on images: the same prior, chains and loop as for text.

    accelerate launch recipes/train_images.py                                            # digits, no download, minutes
    accelerate launch recipes/train_images.py --dataset_name path/to/folder --adapt_images --image_size 32
    accelerate launch recipes/train_mnist.py | train_svhn.py | train_cifar10.py | train_celeba.py    # the paper's

Run it again and it goes on from its newest checkpoint.
"""

from pathlib import Path

from latent_ebm_text.training.arguments import HubArguments, TrainingArguments
from latent_ebm_text.training.configuration import parse_recipe_arguments, run_recipe
from latent_ebm_text.training.images import ImageDataArguments, ImageModelArguments, train_image_model

CONFIGS = Path(__file__).parent / "configs"


def main(default_config: Path = CONFIGS / "quickstart_images.yaml", description: str | None = __doc__) -> int:
    data_args, model_args, args, hub_args = parse_recipe_arguments(
        (ImageDataArguments, ImageModelArguments, TrainingArguments, HubArguments),
        default_config=default_config,
        description=description or "",
    )
    return train_image_model(data_args, model_args, args, hub_args)


if __name__ == "__main__":
    run_recipe(main)
