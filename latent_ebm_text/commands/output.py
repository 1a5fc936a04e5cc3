"""Output of commands, for people or for programs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


def show(data: Any, lines: list[str], as_json: bool) -> None:
    """Prints data as JSON, or lines for people."""
    print(json.dumps(_finite(data), indent=2, ensure_ascii=False) if as_json else "\n".join(lines))


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
