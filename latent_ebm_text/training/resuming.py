"""What a checkpoint must hold for a run to continue from it: its tensors, its state, and the settings of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from latent_ebm_text.errors import CheckpointError, UsageError
from latent_ebm_text.training.arguments import TrainingArguments
from latent_ebm_text.training.checkpointing import Checkpoint
from latent_ebm_text.training.information import InformationController

#: Learning rates that were halved so often are zero.
_MOST_ROLLBACKS = 1000

# -------- settings

#: Settings that decide what is measured, written or survived, or on which machine, and not what is learned.
_NOT_LEARNING = {
    "eval_batch_size", "log_every", "eval_every", "save_every", "keep_checkpoints", "report_to", "max_rollbacks",
    "num_eval_examples", "num_eval_samples", "matmul_precision", "gradient_checkpointing", "mixed_precision",
    "num_processes", "device",
}  # fmt: skip
#: Settings of a training that may differ when it is resumed. Those of no other name may.
_MAY_DIFFER = {
    *_NOT_LEARNING,
    "num_epochs",  # to make a run longer
    "decoder_learning_rate", "prior_learning_rate", "chain_step_size",  # the remedies for numbers that are not finite
}  # fmt: skip


def run_settings(args: TrainingArguments, accelerator: Accelerator) -> dict[str, Any]:
    """The settings that a checkpoint records, with JSON's types: all but where the run is and how its process ends."""
    settings = {name: value for name, value in asdict(args).items() if name not in ("output_dir", "usr1_exit_code")}
    machine = {
        "mixed_precision": str(accelerator.mixed_precision),
        "num_processes": accelerator.num_processes,
        "device": accelerator.device.type,
    }
    return dict(json.loads(json.dumps({**settings, **machine})))


def changed_settings(
    checkpoint: Checkpoint, given: Mapping[str, Any], *, folder: Path, total: int
) -> dict[str, list[Any]]:
    """The settings that differ from those of a checkpoint, each with its old and its new value.

    Args:
        checkpoint: The checkpoint.
        given: The settings of the run that is to continue from it.
        folder: The folder of the run.
        total: Number of steps of the run.

    Raises:
        UsageError: If a setting differs that may not differ, or nothing is left that would be learned with it.
    """
    saved, step = checkpoint.state["settings"], checkpoint.step
    changed = {name: [saved[name], value] for name, value in given.items() if saved.get(name, value) != value}
    refused = changed.keys() - (_MAY_DIFFER if step < total else _NOT_LEARNING)
    if refused:
        what = f"a run of {step} steps" if step < total else f"a finished run (step {step} of {total})"
        how = ", ".join(f"{name} {changed[name][0]} (not {changed[name][1]})" for name in sorted(refused))
        raise UsageError(
            f"{folder} holds {what}, trained with {how}; nothing was changed. Train as before, or choose another "
            "output_dir"
        )
    return changed


# -------- content


def check_state(checkpoint: Checkpoint) -> None:
    """Raises a `CheckpointError` unless the entries of `state.json` can be what a training has written."""
    for entry, is_sound in _sound_entries(checkpoint.state).items():
        if not is_sound:
            raise _foreign(checkpoint.path / "state.json", f"its {entry} is missing or cannot be right")


def check_tensors(
    checkpoint: Checkpoint, tensors: Mapping[str, Mapping[str, torch.Tensor]], optimizer: torch.optim.Optimizer
) -> None:
    """Checks that a checkpoint, whose files are intact, holds the tensors of this training.

    Args:
        checkpoint: The checkpoint.
        tensors: The tensors that it must hold beside those of the optimizer: their names, shapes and types.
        optimizer: The optimizer, an AdamW, that is to take its state.

    Raises:
        CheckpointError: Names the file and the tensor.
    """
    for name, expected in {**tensors, "optimizer": _moments(optimizer, checkpoint)}.items():
        path = checkpoint.path / f"{name}.safetensors"
        if name not in checkpoint.tensors:
            raise _foreign(path, "it is missing")
        found = checkpoint.tensors[name]
        for key in sorted(expected.keys() | found.keys()):
            if key not in found or key not in expected:
                raise _foreign(path, f"{'it lacks' if key in expected else 'no training writes'} the tensor {key}")
            is_now, should_be = (f"{each[key].dtype} of shape {list(each[key].shape)}" for each in (found, expected))
            if is_now != should_be:
                raise _foreign(path, f"{key} is {is_now} and should be {should_be}")


def _foreign(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not what a training of this version writes: {why}. Remove {path.parent} to go on from the "
        "checkpoint before it, or choose another output_dir"
    )


def _moments(optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """What AdamW keeps of each weight that had a gradient, as `flatten_optimizer_state` names it."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    found = {key.split(".")[1] for key in checkpoint.tensors.get("optimizer", {}) if key.startswith("state.")}
    return {
        f"state.{number}.{name}": like
        for number, weight in enumerate(weights)
        if str(number) in found
        for name, like in (("step", torch.empty(())), ("exp_avg", weight), ("exp_avg_sq", weight))
    }


def _sound_entries(state: Mapping[str, Any]) -> dict[str, bool]:
    """The entries of a state, and whether each can be what a training has written."""

    def is_number(value: Any) -> bool:
        return type(value) in (int, float) and abs(value) < 1e300

    seconds, rollbacks = state.get("seconds", -1), state.get("rollbacks")
    means, warnings, history = state.get("means"), state.get("warnings"), state.get("settings_history")
    controller = state.get("controller", {})
    sums, examples = (means.get("sums"), means.get("examples")) if isinstance(means, dict) else (None, None)
    return {
        "seconds": is_number(seconds) and seconds >= 0,
        "rollbacks": type(rollbacks) is int and 0 <= rollbacks <= _MOST_ROLLBACKS,
        "means": isinstance(sums, dict) and all(map(is_number, sums.values()))
        and type(examples) is int and examples >= 0,
        "warnings": isinstance(warnings, list) and all(isinstance(warning, str) for warning in warnings),
        "settings": isinstance(state.get("settings"), dict),
        "settings_history": isinstance(history, list) and all(isinstance(change, dict) for change in history),
        "controller": controller is None or InformationController.is_state(controller),
        "optimizer": isinstance(state.get("optimizer"), dict),
    }  # fmt: skip
