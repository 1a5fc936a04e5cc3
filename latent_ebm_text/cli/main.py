"""The program `latent-ebm`. What the commands do is in the library; here they are named, described and printed."""

from __future__ import annotations

from typing import Annotated

import typer

from latent_ebm_text.cli.checks import doctor, verify
from latent_ebm_text.cli.recipes import RecipeCommand, evaluate, train
from latent_ebm_text.cli.sentences import generate, interpolate, score
from latent_ebm_text.cli.sharing import push
from latent_ebm_text.errors import run_recipe
from latent_ebm_text.version import __version__

#: Options may be written with dashes or, as in recipes, with underscores.
_EITHER_WAY = {"token_normalize_func": lambda name: name.replace("_", "-")}
#: Arguments of a recipe are read by the recipe's own parser, in the same words as in a YAML file.
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

app = typer.Typer(
    name="latent-ebm",
    help="Generative models whose latent vector has a learned energy-based prior.\n\n"
    "Exit codes: 0 all well; 1 it failed, or a check did; 2 it was called wrongly; 130 interrupted, 143 terminated "
    "(a training has saved first).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for _recipe in (train, evaluate):
    app.command(cls=RecipeCommand, context_settings=_PASS_ON)(_recipe)
for _command in (generate, score, interpolate, push, verify, doctor):
    app.command(context_settings=_EITHER_WAY)(_command)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Options of the program itself."""


def main() -> None:
    """Runs the program and leaves with its exit code; an error raised on purpose is one line on stderr."""
    run_recipe(app)
