"""The command `train`, and what the training recipes call: from arguments to a run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from latent_ebm_text.commands import parsing
from latent_ebm_text.commands.arguments import (
    DataArguments,
    HubArguments,
    ImageDataArguments,
    ImageModelArguments,
    TextModelArguments,
)
from latent_ebm_text.commands.output import print_json_file
from latent_ebm_text.commands.running import run_command
from latent_ebm_text.training.arguments import TrainingArguments, option


@dataclass
class TrainArguments:
    """Command"""

    images: bool = option(False, "Train an image model; the options are then those of image models.")
    json: bool = option(False, "Print the results as JSON at the end.")


TEXT = (DataArguments, TextModelArguments, TrainingArguments, HubArguments)
IMAGES = (ImageDataArguments, ImageModelArguments, TrainingArguments, HubArguments)


def train(argv: list[str]) -> int:
    """Train a text model, or with --images an image model, as recipes/train_text.py and train_images.py do.

        latent-ebm train --config quickstart                        # a configuration of the library, or a file
        latent-ebm train --dataset_name my_corpus.txt --output_dir runs/mine --report_to tensorboard
        latent-ebm train --config ptb --dataset_name path/to/ptb --push_to_hub --hub_model_id me/latent-ebm-ptb
        latent-ebm train --images --config mnist
        accelerate launch -m latent_ebm_text.commands train ...     # on several devices

    Run the same command again to resume from the newest checkpoint.
    """
    images = "--images" in argv
    command, *arguments = parsing.parse_arguments(
        (TrainArguments, *(IMAGES if images else TEXT)),
        argv,
        description=parsing.description_of(train),
        default_config=parsing.bundled_config("quickstart_images" if images else "text"),
        prog="latent-ebm train",
    )
    with redirect_stdout(sys.stderr) if command.json else nullcontext():  # standard output is for the results alone
        code = _run(arguments, images)
    if command.json and code == 0:
        print_json_file(Path(arguments[2].output_dir) / "results.json")
    return code


def text_recipe(description: str | None, config: str) -> NoReturn:
    """Runs a recipe for text: parses its arguments, trains, and leaves the process with the exit code.

    Args:
        description: The docstring of the recipe, for `--help`.
        config: The configuration it starts from, by its name.
    """
    _recipe(TEXT, description, config)


def image_recipe(description: str | None, config: str) -> NoReturn:
    """Runs a recipe for images, as [`text_recipe`] does for text."""
    _recipe(IMAGES, description, config)


def _recipe(groups: tuple[type, ...], description: str | None, config: str) -> NoReturn:
    def main() -> int:
        arguments = parsing.parse_arguments(
            groups, description=description or "", default_config=parsing.bundled_config(config)
        )
        return _run(arguments, groups is IMAGES)

    run_command(main)


def _run(arguments: Sequence[Any], images: bool) -> int:
    if images:
        from latent_ebm_text.commands.train_images import train_image_model

        return train_image_model(*arguments)
    from latent_ebm_text.commands.train_text import train_text_model

    return train_text_model(*arguments)
