"""What all commands share: their common options, and printing for people or for programs."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

import typer

Model = Annotated[str, typer.Argument(help="Folder of a model or of a run, or an id of the Hub.", show_default=False)]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the Hub.")]
Seed = Annotated[int, typer.Option(help="Of every draw.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def show(data: Any, lines: list[str], as_json: bool) -> None:
    """Prints data as JSON, or lines for people."""
    typer.echo(json.dumps(_finite(data), indent=2, ensure_ascii=False) if as_json else "\n".join(lines))


def _finite(data: Any) -> Any:
    """The same without numbers that JSON does not know."""
    if isinstance(data, dict):
        return {name: _finite(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
