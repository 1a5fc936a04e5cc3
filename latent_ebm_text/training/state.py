"""All that a training is resumed from, in memory and on disk."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.optim.swa_utils import AveragedModel

from latent_ebm_text.errors import UsageError
from latent_ebm_text.modeling_base import LatentEBMPreTrainedModel
from latent_ebm_text.samplers import ChainStore
from latent_ebm_text.training.arguments import TrainingArguments
from latent_ebm_text.training.checkpointing import (
    Checkpoint,
    flatten_optimizer_state,
    load_latest_checkpoint,
    restore_optimizer_state,
    save_checkpoint,
)
from latent_ebm_text.training.reporting import Health, MetricsFile, RunningMeans


class TrainingState:
    """Weights, optimizer, averages, chains and counters of a run: that of the newest checkpoint, or of a new run.

    A new run publishes its first state before its first step: there is always a good state to go back to, and a disk
    that is full or refuses is found before any work is done. Every process holds one, and calls every method.

    Args:
        model: Gets the weights of the checkpoint.
        optimizer: Gets its state. Of torch, not yet prepared by `accelerator`.
        args: The settings.
        identity: What a checkpoint must have in common with this run.
        num_examples: Training examples, each with a chain where inference is persistent.
        accelerator: Devices and processes.

    Attributes:
        step: Optimizer steps done.
        rollbacks: How often a number that was not finite has sent the run back.
        averaged: The mean of the weights over the last part of the training, where asked for.
        chains: One per training example, where inference is persistent.
        metrics: The file of figures; holds those up to `step`.
        means: Of the figures since the last line of `metrics`.
        health: What looked wrong so far.

    Raises:
        CheckpointError: If the newest complete checkpoint belongs to another model or library version.
        UsageError: If the folder cannot be used.
    """

    step: int
    rollbacks: int = 0
    metrics: MetricsFile
    means: RunningMeans
    health: Health

    def __init__(
        self,
        model: LatentEBMPreTrainedModel,
        optimizer: torch.optim.Optimizer,
        args: TrainingArguments,
        identity: dict[str, Any],
        num_examples: int,
        accelerator: Accelerator,
    ) -> None:
        self.model, self.optimizer, self.args, self.identity = model, optimizer, args, identity
        self.accelerator, self.folder = accelerator, Path(args.output_dir)
        # Looked for before anything is written, so that the folder of another run stays as it is.
        checkpoint = self._newest_checkpoint()
        self.averaged = AveragedModel(model, device=accelerator.device) if args.averaging_start < 1 else None
        self.chains = self._open_chains(num_examples) if args.inference == "persistent" else None
        self._take(checkpoint)
        if checkpoint is None:
            self.save()
        else:
            accelerator.print(f"resuming from {checkpoint.path}")

    @property
    def seconds(self) -> float:
        """Time spent training, over all runs of this folder."""
        return time.monotonic() - self._started

    def save(self) -> None:
        """Publishes a checkpoint of this step; one that is there already is left as it is."""
        self.accelerator.wait_for_everyone()  # every process has written the chains of its examples
        if self.accelerator.is_main_process:
            optimizer_tensors, optimizer_rest = flatten_optimizer_state(self.optimizer)
            tensors = {"model": dict(self.model.state_dict()), "optimizer": optimizer_tensors}
            if self.averaged is not None:
                tensors["averaged"] = dict(self.averaged.state_dict())
            if self.chains is not None:
                tensors["chains"] = {"latents": self.chains.snapshot()}
            state = {
                "seconds": self.seconds,
                "rollbacks": self.rollbacks,
                "means": self.means.state(),
                "health": self.health.state(),
                "optimizer": optimizer_rest,
            }
            save_checkpoint(
                self.folder / "checkpoints",
                self.step,
                tensors,
                state,
                identity=self.identity,
                keep_last=self.args.keep_checkpoints,
            )
        self.accelerator.wait_for_everyone()

    def note_evaluation(self, figures: dict[str, float]) -> None:
        """Writes the figures of an evaluation at this step, and warns of what looks wrong."""
        self.metrics.write("validation", self.step, {**figures, "seconds": self.seconds})
        for warning in self.health.judge(figures) if self.model.config.latent_dim else ():
            self.accelerator.print(f"step {self.step}: {warning}")

    def roll_back(self, reason: str) -> None:
        """Goes back to the newest checkpoint, which is of this run, and counts that."""
        rollbacks = self.rollbacks + 1
        self._take(self._newest_checkpoint())
        self.rollbacks = rollbacks
        note = (
            f"{reason}. Went back to step {self.step}; from there on with learning rates {2**rollbacks} times smaller "
            f"(time {rollbacks} of at most {self.args.max_rollbacks})"
        )
        self.health.warnings.append(note)
        self.metrics.write("rollback", self.step, {"reason": reason, "rollbacks": rollbacks})
        self.accelerator.print(note)

    def _newest_checkpoint(self) -> Checkpoint | None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"output_dir {self.folder} cannot be used: {error.strerror}") from error
        checkpoint, skipped = load_latest_checkpoint(self.folder / "checkpoints", identity=self.identity)
        for line in skipped:
            self.accelerator.print(f"skipped an incomplete checkpoint: {line}")
        self.accelerator.wait_for_everyone()  # or a process would find what another has published since
        return checkpoint

    def _open_chains(self, num_chains: int) -> ChainStore:
        """The chains of all processes, in one file: each process reads and writes the rows of its own examples."""
        path = self.folder / "chains.bin"
        world = self.accelerator.num_processes
        if int(os.environ.get("LOCAL_WORLD_SIZE", world)) < world:
            raise UsageError(
                "inference 'persistent' keeps its chains in the memory of one machine; use another on many"
            )
        with self.accelerator.main_process_first():
            if self.accelerator.is_main_process:
                # Whatever an earlier run left is ahead of its last checkpoint, which holds the chains to go on from.
                path.unlink(missing_ok=True)
            return ChainStore(path, num_chains, self.model.config.latent_dim)

    def _take(self, checkpoint: Checkpoint | None) -> None:
        """Becomes what a checkpoint holds; without one, the state before the first step."""
        state: dict[str, Any] = {"seconds": 0.0, "rollbacks": 0, "means": None, "health": None}
        if checkpoint is not None:
            state |= checkpoint.state
        self.step, self.rollbacks = checkpoint.step if checkpoint else 0, state["rollbacks"]
        self._started = time.monotonic() - state["seconds"]
        self.means = RunningMeans(state["means"])
        self.health = Health(self.args, likelihood_weight=self.model.config.likelihood_weight, state=state["health"])
        if checkpoint is not None:
            self.model.load_state_dict(checkpoint.tensors["model"])
            restore_optimizer_state(self.optimizer, checkpoint.tensors["optimizer"], state["optimizer"])
            if self.averaged is not None and "averaged" in checkpoint.tensors:
                self.averaged.load_state_dict(checkpoint.tensors["averaged"])
            if self.chains is not None and self.accelerator.is_main_process:
                self.chains.restore(checkpoint.tensors["chains"]["latents"])
            self.accelerator.wait_for_everyone()
        self.metrics = MetricsFile(
            self.folder / "metrics.jsonl",
            first_step=self.step,
            enabled=self.accelerator.is_main_process,
            track=self.accelerator.log,
        )
