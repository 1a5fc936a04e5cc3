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
from latent_ebm_text.training.trainer import require_no_loss_scale

TRACKERS = ("trackio", "tensorboard", "wandb")
PROJECT = "latent-ebm-text"


def make_accelerator(args: TrainingArguments) -> Accelerator:
    """Devices and processes as `accelerate launch` has set them up, with the trackers of `args.report_to`.

    A processor that was asked for bfloat16 and has no kernels for it computes in float32, and a line says so.

    Raises:
        UsageError: If a tracker is unknown or not installed, or the precision is fp16.
    """
    names = [name.strip() for name in args.report_to.split(",") if name.strip() not in ("", "none")]
    for name in names:
        if name not in TRACKERS:
            raise UsageError(f"report_to holds {name!r}; known trackers: {', '.join(TRACKERS)}")
        if find_spec(name) is None:
            raise UsageError(
                f"{name} is not installed: pip install 'latent-ebm-text[{name}]', or leave it out of report_to"
            )
    asked = parse_choice_from_env("ACCELERATE_MIXED_PRECISION", "no")
    require_no_loss_scale(asked)
    on_cpu = not torch.cuda.is_available()
    replaced = on_cpu and asked == "bf16" and not _has_bfloat16_kernels()
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision="no" if replaced else None,
        log_with=names or None,
        project_dir=args.output_dir,
    )
    if replaced:
        accelerator.print(f"note: this processor has no kernels for {asked}; training in float32 instead")
    return accelerator


def _has_bfloat16_kernels() -> bool:
    """Whether oneDNN, to which torch leaves recurrent layers, can compute in bfloat16 on this processor."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


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
