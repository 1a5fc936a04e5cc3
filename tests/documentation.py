"""Reads code blocks out of Markdown, and checks commands of a shell without doing what they say."""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser as torchrun_parser

from latent_ebm_text.commands import main, parsing

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *ROOT.glob("examples/**/*.md"),
]
FENCE = re.compile(r"^```([\w+-]*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, its language, its text and the line that the text begins at."""

    page: Path
    language: str
    text: str
    line: int

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [Block(page, m[1], m[2], text.count("\n", 0, m.start(2)) + 1) for m in FENCE.finditer(text)]


ALL_BLOCKS = [block for page in PAGES for block in blocks(page)]


def commands(block: Block) -> list[str]:
    """The commands of a block in bash, continued lines joined, comments left out."""
    joined = block.text.replace("\\\n", " ").splitlines()
    return [line for line in joined if line.strip() and not line.lstrip().startswith("#")]


class Understood(Exception):
    """Raised by a script's parser of arguments in place of going on."""


def check_command(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a command names a script, a chore, an extra or an option that does not exist. Runs nothing."""
    for part in command.split(" | "):
        words = shlex.split(part, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):  # settings of the environment
            words = words[1:]
        program = Path(words[0]).name
        if program not in CHECKS:
            pytest.fail(f"no check for {program!r}: add one to CHECKS of {Path(__file__).name}")
        CHECKS[program](words[1:], monkeypatch)


def _make(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    chores = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {word for word in words if "=" not in word} <= set(chores), words


def _pip(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    known = re.findall(r"^(\w+) = \[", project.partition("[project.optional-dependencies]")[2], re.MULTILINE)
    assert words[0] == "install", words
    for extras in re.findall(r"latent-ebm-text\[([\w,]+)\]", " ".join(words)):
        assert set(extras.split(",")) <= set(known), extras


def _python(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    _script(words[0], words[1:], monkeypatch)


def _accelerate(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert words[0] == "launch", words
    launch = launch_command_parser().parse_args(words[1:])
    if launch.module:
        assert launch.training_script == "latent_ebm_text.commands", words
        _latent_ebm(launch.training_script_args, monkeypatch)
        return
    _script(launch.training_script, launch.training_script_args, monkeypatch)


def _torchrun(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    launch = torchrun_parser().parse_args(words)
    _script(launch.training_script, launch.training_script_args, monkeypatch)


def _script(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a script of this repository until it has understood its arguments, of which `...` stands for more."""
    arguments = [argument for argument in arguments if argument != "..."]
    path = ROOT / name
    assert path.is_file(), f"there is no {name}"
    known = set(sys.modules)
    with monkeypatch.context() as patch:
        patch.chdir(ROOT)
        patch.syspath_prepend(path.parent)
        patch.setattr(sys, "argv", [str(path), *arguments])
        patch.setattr(parsing, "parse_arguments", _then_stop(parsing.parse_arguments))
        patch.setattr(argparse.ArgumentParser, "parse_args", _then_stop(argparse.ArgumentParser.parse_args))
        try:
            runpy.run_path(str(path), run_name="__main__")
        except Understood:
            return
        except SystemExit as left:
            if "--help" not in arguments or left.code != 0:
                pytest.fail(f"{name} {' '.join(arguments)}: left with {left.code}")
        finally:
            for module in set(sys.modules) - known:  # they hold the functions that stop
                if str(getattr(sys.modules[module], "__file__", "")).startswith(str(path.parent)):
                    del sys.modules[module]


def _then_stop(parse: Callable[..., Any]) -> Callable[..., NoReturn]:
    def parse_and_stop(*args: Any, **kwargs: Any) -> NoReturn:
        parse(*args, **kwargs)
        raise Understood

    return parse_and_stop


def _latent_ebm(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parses the arguments of a command, by the parser that it uses itself."""
    with monkeypatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(parsing, "parse_arguments", _then_stop(parsing.parse_arguments))
        try:
            main.run(words)
        except Understood:
            return
        except SystemExit as left:
            if left.code != 0:
                pytest.fail(f"latent-ebm {' '.join(words)}: left with {left.code}")


def _nothing(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of the system, used as everybody uses it."""


CHECKS: dict[str, Callable[[list[str], pytest.MonkeyPatch], None]] = {
    "latent-ebm": _latent_ebm, "make": _make, "pip": _pip,
    "python": _python, "accelerate": _accelerate, "torchrun": _torchrun,
    "printf": _nothing, "cd": _nothing, "eval": _nothing, "git": _nothing, "hf": _nothing,
}  # fmt: skip


def shell_commands() -> Iterator[tuple[Block, str]]:
    """Every command of every block in bash."""
    for block in ALL_BLOCKS:
        if block.language == "bash":
            yield from ((block, command) for command in commands(block))
