"""What a finished run writes down of itself: how it was started, with what, on what, and how it went."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from latent_ebm_text.training.trainer import TrainingResult
from latent_ebm_text.version import __version__


class Corpus(Protocol):
    """Data with a name and a fingerprint, of any modality."""

    @property
    def name(self) -> str:
        """What the data is."""

    @property
    def fingerprint(self) -> str:
        """Of all of it."""


def run_record(result: TrainingResult, *, corpus: Corpus, settings: Sequence[Any]) -> dict[str, Any]:
    """The facts on a run that `results.json` and the model's card hold.

    Args:
        result: How the training ended.
        corpus: What it was trained on.
        settings: The dataclasses of its arguments.
    """
    return {
        "command": " ".join(sys.argv),
        "step": result.step,
        "training_seconds": round(result.seconds, 1),
        "warnings": result.warnings,
        "dataset": {"name": corpus.name, "fingerprint": corpus.fingerprint},
        "settings": {name: value for arguments in settings for name, value in asdict(arguments).items()},
        "environment": describe_environment(),
    }


def describe_environment() -> dict[str, Any]:
    """Versions, machine, date, and the commit where the library is used from a repository."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor_name()
    return {
        "latent_ebm_text": __version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "python": platform.python_version(),
        "device": device,
        "threads": torch.get_num_threads(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def processor_name() -> str:
    """The processor as the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the library's own repository, marked where files were changed since."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
