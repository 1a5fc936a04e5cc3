"""Sets up Accelerate for training: devices, precision, and trackers in addition to `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import parse_choice_from_env

from latent_ebm_text.errors import UsageError
from latent_ebm_text.models.sharing import refuse_deepspeed
from latent_ebm_text.training.arguments import TrainingArguments
from latent_ebm_text.training.trainer import require_no_loss_scale

TRACKERS = ("trackio", "tensorboard", "wandb")
PROJECT = "latent-ebm-text"


def make_accelerator(args: TrainingArguments) -> Accelerator:
    """Creates the accelerator for the processes of `accelerate launch`, with the trackers of `args.report_to`.

    If bfloat16 is requested on a processor without kernels for it, training runs in float32, with a printed note.

    Raises:
        UsageError: If a tracker is unknown or not installed, the precision is fp16, or DeepSpeed is asked for.
    """
    refuse_deepspeed()
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


def set_precision(precision: str) -> None:
    """Sets the precision of matrix products and, on a GPU, of LSTMs and convolutions, which torch sets apart.

    Args:
        precision: `"highest"` for float32; `"high"` or `"medium"` for what is faster, see
            `torch.set_float32_matmul_precision`.
    """
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = precision != "highest"


def _has_bfloat16_kernels() -> bool:
    """Whether oneDNN, which runs torch's recurrent layers, can compute in bfloat16 on this processor."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def start_tracking(accelerator: Accelerator, folder: str, settings: Mapping[str, Any]) -> None:
    """Starts a run, named after its folder, in all trackers; all runs belong to one project.

    Args:
        accelerator: The accelerator from [`make_accelerator`].
        folder: The folder of the run.
        settings: The settings of the run that the trackers record.
    """
    if not accelerator.log_with:
        return
    config = {name: value if isinstance(value, int | float | str) else str(value) for name, value in settings.items()}
    name = Path(folder).resolve().name
    accelerator.init_trackers(
        PROJECT, config=config, init_kwargs={"trackio": {"name": name}, "wandb": {"name": name, "dir": folder}}
    )
