"""Output of commands, for people or for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: Shades of red among the 256 colours of terminals, from the least to the most surprising word.
_SHADES, _NATS_PER_SHADE = (224, 224, 217, 210, 203, 196), 2.5


def show(data: Any, lines: list[str], as_json: bool) -> None:
    """Prints data as JSON, or lines for people."""
    print(json.dumps(_finite(data), indent=2, ensure_ascii=False) if as_json else "\n".join(lines))


def with_surprise(words: Sequence[tuple[str, int, int, float]], *, in_colour: bool) -> str:
    """A sentence whose words show how surprising they are: in shades of red, or with the nats behind each word.

    Args:
        words: Words, each with where it begins and ends and its surprise in nats.
        in_colour: Whether to colour them, for terminals.
    """
    if not in_colour:
        return " ".join(f"{word} ({surprise:.1f})" for word, _, _, surprise in words)
    return " ".join(
        f"\x1b[48;5;{_SHADES[min(int(surprise / _NATS_PER_SHADE), len(_SHADES) - 1)]}m{word}\x1b[0m"
        if surprise >= _NATS_PER_SHADE
        else word
        for word, _, _, surprise in words
    )


def print_json_file(path: Path) -> None:
    """Prints the content of a JSON file."""
    print(json.dumps(json.loads(path.read_text(encoding="utf-8")), indent=2, ensure_ascii=False))


def _finite(data: Any) -> Any:
    """The same data with null for numbers that JSON does not know."""
    if isinstance(data, dict):
        return {name: _finite(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
