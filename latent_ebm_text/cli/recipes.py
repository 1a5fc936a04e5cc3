"""Commands that take the arguments of a recipe: `train`, `evaluate`."""

from __future__ import annotations

import contextlib
import json as json_module
import sys
from dataclasses import fields
from typing import Any

import typer
from typer.core import TyperCommand

_TRAIN = """Train a model of text, or with --images one of images; as recipes/train_text.py and train_images.py do.

    latent-ebm train --config quickstart                       # a config that comes with the library, or a file
    latent-ebm train --dataset_name my_corpus.txt --output_dir runs/mine --report_to tensorboard
    latent-ebm train --config ptb_cpu --dataset_name path/to/ptb --push_to_hub --hub_model_id me/latent-ebm-ptb
    latent-ebm train --images --config mnist
    accelerate launch -m latent_ebm_text.cli train ...         # on several devices

Run it again and it goes on from its newest checkpoint. --json prints the run's results as JSON at the end."""
_EVALUATE = """Measure a model of text, each figure with its interval. The same as recipes/evaluate_text.py.

    latent-ebm evaluate --model runs/ptb-cpu --dataset_name path/to/ptb --evaluator quick
    latent-ebm evaluate --model me/latent-ebm-ptb --dataset_name ptb --output_dir runs/evaluation --json

--json prints the report as JSON."""


class RecipeCommand(TyperCommand):
    """A command whose options are the fields of a recipe's dataclasses, for completion too."""

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """The options that begin with what was typed."""
        from typer._click.shell_completion import CompletionItem  # typer's own copy of click

        arguments = _train_arguments("--images" in ctx.args) if self.name == "train" else _evaluate_arguments()
        options = {field.name: field.metadata.get("help") for dtype in arguments for field in fields(dtype)}
        options |= {"config": "YAML file with values for any of the options", "json": "Print JSON, for programs."}
        return [
            CompletionItem(f"--{name}", help=help)
            for name, help in options.items()
            if f"--{name}".startswith(incomplete)
        ]


def train(context: typer.Context) -> None:
    """Train a model: `latent-ebm train --help` lists every setting."""
    from latent_ebm_text.training.configuration import bundled_config, parse_recipe_arguments

    argv, as_json = _without("--json", context.args)
    argv, images = _without("--images", argv)
    data, model, args, hub = parse_recipe_arguments(
        _train_arguments(images),
        argv,
        default_config=bundled_config("quickstart_images" if images else "text"),
        description=_TRAIN,
        prog=context.command_path,
    )
    # With --json standard output is for the results alone.
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        if images:
            from latent_ebm_text.training.images import train_image_model as train_model
        else:
            from latent_ebm_text.training.text import train_text_model as train_model  # type: ignore[assignment]
        code = train_model(data, model, args, hub)
    if as_json and code == 0:
        _print_file(args.output_dir, "results.json")
    raise typer.Exit(code)


def evaluate(context: typer.Context) -> None:
    """Measure a model: `latent-ebm evaluate --help` lists every setting."""
    from latent_ebm_text.training.configuration import parse_recipe_arguments

    argv, as_json = _without("--json", context.args)
    data, args = parse_recipe_arguments(_evaluate_arguments(), argv, description=_EVALUATE, prog=context.command_path)
    from latent_ebm_text.evaluation.text_report import run_text_evaluation

    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        paths = run_text_evaluation(data, args)
    if as_json:
        _print_file(args.output_dir, "evaluation.json")
    else:
        typer.echo("\n".join(map(str, paths)))


def _train_arguments(images: bool) -> tuple[type, ...]:
    from latent_ebm_text.training.arguments import DataArguments, HubArguments, ModelArguments, TrainingArguments

    if not images:
        return DataArguments, ModelArguments, TrainingArguments, HubArguments
    from latent_ebm_text.training.images import ImageDataArguments, ImageModelArguments

    return ImageDataArguments, ImageModelArguments, TrainingArguments, HubArguments


def _evaluate_arguments() -> tuple[type, ...]:
    from latent_ebm_text.evaluation.text_report import TextEvaluationArguments
    from latent_ebm_text.training.arguments import DataArguments

    return DataArguments, TextEvaluationArguments


def _without(flag: str, argv: list[str]) -> tuple[list[str], bool]:
    return [argument for argument in argv if argument != flag], flag in argv


def _print_file(folder: str, name: str) -> None:
    with open(f"{folder}/{name}", encoding="utf-8") as file:
        typer.echo(json_module.dumps(json_module.load(file), indent=2, ensure_ascii=False))
