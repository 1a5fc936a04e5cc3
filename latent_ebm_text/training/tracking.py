"""Accelerate as trainings use it: devices, precision, and trackers beside `metrics.jsonl`."""

from __future__ import annotations

from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import parse_choice_from_env

from latent_ebm_text.errors import UsageError
from latent_ebm_text.training.arguments import TrainingArguments

TRACKERS = ("trackio", "tensorboard", "wandb")
PROJECT = "latent-ebm-text"


def make_accelerator(args: TrainingArguments) -> Accelerator:
    """Devices and processes as `accelerate launch` has set them up, with the trackers of `args.report_to`.

    A processor that has no kernels for the half precision it was asked for computes in float32, and a line says so.

    Raises:
        UsageError: If a tracker is unknown or not installed.
    """
    names = [name.strip() for name in args.report_to.split(",") if name.strip() not in ("", "none")]
    for name in names:
        if name not in TRACKERS:
            raise UsageError(f"report_to holds {name!r}; known trackers: {', '.join(TRACKERS)}")
        if find_spec(name) is None:
            raise UsageError(
                f"{name} is not installed: pip install 'latent-ebm-text[{name}]', or leave it out of report_to"
            )
    on_cpu, asked = not torch.cuda.is_available(), parse_choice_from_env("ACCELERATE_MIXED_PRECISION", "no")
    replaced = on_cpu and not _has_cpu_kernels(asked)
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision="no" if replaced else None,
        log_with=names or None,
        project_dir=args.output_dir,
    )
    if replaced:
        accelerator.print(f"note: this processor has no kernels for {asked}; training in float32 instead")
    return accelerator


def _has_cpu_kernels(mixed_precision: str) -> bool:
    """Whether oneDNN, to which torch leaves recurrent layers, can compute in a precision on this processor."""
    if mixed_precision == "bf16":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if mixed_precision == "fp16":
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return True


def start_tracking(accelerator: Accelerator, args: TrainingArguments, *settings: Any) -> None:
    """Begins a run, named after its folder, in all trackers; a project holds all runs.

    Args:
        accelerator: Made by [`make_accelerator`].
        args: The training's arguments.
        *settings: Further dataclasses of arguments that the trackers keep.
    """
    if not accelerator.log_with:
        return
    values = {name: value for arguments in (args, *settings) for name, value in asdict(arguments).items()}
    config = {name: value if isinstance(value, int | float | str) else str(value) for name, value in values.items()}
    name = Path(args.output_dir).resolve().name
    accelerator.init_trackers(
        PROJECT,
        config=config,
        init_kwargs={"trackio": {"name": name}, "wandb": {"name": name, "dir": args.output_dir}},
    )
