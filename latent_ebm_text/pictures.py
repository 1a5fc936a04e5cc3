"""What all pictures share: matplotlib, which is an extra, and how a file is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from latent_ebm_text.errors import UsageError


def new_picture(width: float, height: float) -> Any:
    """An empty `matplotlib.figure.Figure` of this size in inches, which needs no display.

    Raises:
        UsageError: If matplotlib is not installed (names the extra).
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("plots need matplotlib: pip install 'latent-ebm-text[plots]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def save_picture(figure: Any, path: Path) -> Path:
    """Writes a PNG, and the folder it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
