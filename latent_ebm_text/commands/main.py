"""The program `latent-ebm`: its commands by name. Each is a function of its own module, imported when it is called."""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys

from latent_ebm_text import __version__
from latent_ebm_text.errors import UsageError

#: Every command with its module and what it does.
COMMANDS = {
    "train": ("train", "Train a text model, or with --images an image model."),
    "evaluate": ("evaluate_text", "Measure a text model; every metric comes with its interval."),
    "generate": ("sentences", "Draw latents from the prior and decode them."),
    "edit": ("sentences", "Rewrite sentences so that they have attributes."),
    "score": ("sentences", "Score how improbable sentences are; higher is more anomalous."),
    "interpolate": ("sentences", "Walk from one sentence to another through the latent space."),
    "distil": ("distil", "Distil the prior into a flow, which draws latents in one pass."),
    "push": ("push", "Push a model with its card to the Hugging Face Hub."),
    "verify": ("verify", "Measure the metrics of a model's card again and compare."),
    "doctor": ("doctor", "Examine the installation and the machine, and a run."),
}
_HELP = """usage: latent-ebm COMMAND [options]

Generative models whose latent vector has a learned energy-based prior.

Commands:
{commands}

`latent-ebm COMMAND --help` shows the options of a command, with examples; `latent-ebm --version` the version.
Exit codes: 0 success; 1 failure, or a check that failed; 2 wrong usage; 130 interrupted, 143 terminated (a training
saves a checkpoint first)."""


def main() -> None:
    """Runs a command and leaves with its exit code; an error raised on purpose becomes one line on stderr."""
    from latent_ebm_text.commands.running import run_command

    if "_ARGCOMPLETE" in os.environ:
        complete()
    run_command(lambda: run(sys.argv[1:]))


def run(argv: list[str]) -> int | None:
    """Runs the command that the arguments name, and returns its exit code."""
    name = argv[0] if argv else "--help"
    if name in ("--help", "-h"):
        commands = "\n".join(f"  {command:<12} {summary}" for command, (_, summary) in COMMANDS.items())
        print(_HELP.format(commands=commands))
        return 0 if argv else 2
    if name == "--version":
        print(__version__)
        return 0
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1)
        raise UsageError(f"unknown command {name!r}; {f'did you mean {nearest[0]!r}?' if nearest else 'see --help'}")
    module = importlib.import_module(f"latent_ebm_text.commands.{COMMANDS[name][0]}")
    code: int | None = getattr(module, name)(argv[1:])
    return code


def complete() -> None:
    """Completes a command line for the shell, which calls the program for it (extra `completion`)."""
    import argcomplete

    line = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])]
    words = line.split()
    if len(words) > 1 and words[1] in COMMANDS and len(line) > len(" ".join(words[:2])):
        os.environ["_ARGCOMPLETE"] = "2"  # the options are those of the second word
        run([*words[1:2], *(word for word in words[2:] if word == "--images")])
    parser = argparse.ArgumentParser(prog="latent-ebm")
    parser.add_argument("command", choices=list(COMMANDS))
    argcomplete.autocomplete(parser)
