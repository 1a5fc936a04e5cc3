"""The state from which a training run is resumed, in memory and on disk."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.optim.swa_utils import AveragedModel

from latent_ebm_text.errors import CheckpointError, UsageError
from latent_ebm_text.latents.prior import GaussianPrior
from latent_ebm_text.latents.samplers import ChainStore
from latent_ebm_text.models.modeling_base import LatentEBMPreTrainedModel
from latent_ebm_text.training.arguments import TrainingArguments
from latent_ebm_text.training.checkpointing import (
    Checkpoint,
    flatten_optimizer_state,
    load_latest_checkpoint,
    restore_optimizer_state,
    save_checkpoint,
    whole_tensor,
)
from latent_ebm_text.training.information import INITIAL_WEIGHT, InformationController
from latent_ebm_text.training.prior_chains import PriorChains
from latent_ebm_text.training.reporting import MetricsFile, RunningMeans, find_problems
from latent_ebm_text.training.resuming import changed_settings, check_state, check_tensors, run_settings
from latent_ebm_text.training.sharding import ShardedCopy


class TrainingState:
    """Weights, optimizer, averages, chains and counters of a run, from the newest checkpoint or for a new run.

    A new run publishes a checkpoint before its first step, so that there is always a good state to return to, and a
    full or read-only disk is found before any work is done. Every process holds a state and calls every method.

    Args:
        model: The model, which receives the weights of the checkpoint.
        optimizer: A torch optimizer, not yet prepared by `accelerator`, which receives the checkpoint's state.
        args: The settings.
        identity: What a checkpoint must have in common with this run.
        num_examples: Number of training examples, each with a chain if inference is persistent.
        total: Number of steps of the whole training.
        accelerator: Devices and processes.
        sharded: The copy of the model that learns in its place, whose parameters the optimizer has.

    Attributes:
        step: Number of optimizer steps done.
        settings_history: The settings that a resumed run has changed, `{"step": ..., "changed": {name: [old, new]}}`.
        averaging_from: The step from which on weights are averaged.
        rollbacks: How often the run has returned to a checkpoint because a number was not finite.
        averaged: The mean of the weights over the last part of the training, if averaging is enabled.
        chains: One chain per training example, if inference is persistent.
        prior_chains: Chains of the prior that go on from step to step, if the settings ask for them.
        metrics: The metrics file, with lines up to `step`.
        means: Means of the metrics since the last line of `metrics`.
        warnings: What went wrong and was repaired, in words.
        controller: Sets the likelihood weight, if the settings say how much information the latent is to carry.

    Raises:
        CheckpointError: If the newest complete checkpoint belongs to another model or library version, or is none that
            a training writes.
        UsageError: If a setting differs from that of the checkpoint and may not, or the chains cannot be kept.
    """

    step: int
    rollbacks: int = 0
    settings_history: list[dict[str, Any]]
    metrics: MetricsFile
    means: RunningMeans
    warnings: list[str]
    controller: InformationController | None

    def __init__(
        self,
        model: LatentEBMPreTrainedModel,
        optimizer: torch.optim.Optimizer,
        args: TrainingArguments,
        identity: dict[str, Any],
        num_examples: int,
        total: int,
        accelerator: Accelerator,
        sharded: ShardedCopy | None = None,
    ) -> None:
        self.model, self.optimizer, self.args, self.identity = model, optimizer, args, identity
        self.accelerator, self.sharded, self.folder = accelerator, sharded, Path(args.output_dir)
        self.num_examples, self.total = num_examples, total
        self.settings = run_settings(args, accelerator)
        self.settings_history = []
        self.averaging_from = min(round(args.averaging_start * total), total - 1)
        self.averaged = AveragedModel(model, device=accelerator.device) if args.averaging_start < 1 else None
        has_energy = not isinstance(model.prior, GaussianPrior)
        self.prior_chains = (
            PriorChains(model, args, accelerator) if has_energy and args.prior_chain_num_steps is not None else None
        )
        # Loaded and compared before anything is written, so that the folder of another run is not modified.
        checkpoint = self._newest_checkpoint()
        if checkpoint is not None:
            self.settings_history = list(checkpoint.state["settings_history"])
            changed = changed_settings(checkpoint, self.settings, folder=self.folder, total=total)
            self._check_tensors(checkpoint)
        self.chains = self._open_chains() if args.inference == "persistent" else None
        self._take(checkpoint)
        if checkpoint is None:
            self.save()
            return
        accelerator.print(f"resuming from {checkpoint.path}")
        if changed:
            self.settings_history.append({"step": self.step, "changed": changed})
            values = ", ".join(f"{name} {new} (was {old})" for name, (old, new) in changed.items())
            accelerator.print(f"note: from step {self.step} on with other settings: {values}")

    @property
    def seconds(self) -> float:
        """Training time in seconds, over all runs of this folder."""
        return time.monotonic() - self._started

    def save(self) -> None:
        """Publishes a checkpoint of this step, unless it already exists."""
        self.accelerator.wait_for_everyone()  # every process has written the chains of its examples
        is_main = self.accelerator.is_main_process
        optimizer_tensors, optimizer_rest = flatten_optimizer_state(self.optimizer)
        for name, tensor in optimizer_tensors.items():
            if self.sharded is not None:
                whole = whole_tensor(tensor)
                optimizer_tensors[name] = whole.cpu() if is_main else tensor
        prior_chains = None if self.prior_chains is None else self.prior_chains.whole()
        if is_main:
            tensors = {"model": dict(self.model.state_dict()), "optimizer": optimizer_tensors}
            if self.averaged is not None:
                tensors["averaged"] = dict(self.averaged.state_dict())
            if self.chains is not None:
                tensors["chains"] = {"latents": self.chains.snapshot()}
            if prior_chains is not None:
                tensors["prior_chains"] = {"latents": prior_chains}
            state = {
                "seconds": self.seconds,
                "rollbacks": self.rollbacks,
                "means": self.means.state(),
                "warnings": self.warnings,
                "controller": self.controller and self.controller.state(),
                "settings": self.settings,
                "settings_history": self.settings_history,
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

    def note_evaluation(self, metrics: dict[str, float]) -> None:
        """Writes the metrics of an evaluation at this step, and prints what is wrong."""
        self.metrics.write("validation", self.step, {**metrics, "seconds": self.seconds})
        for problem in find_problems(metrics, {**vars(self.args), **self.model.config.to_dict()}):
            self.accelerator.print(f"step {self.step}: {problem}")

    def roll_back(self, reason: str) -> None:
        """Returns to the newest checkpoint of this run, and counts the rollback.

        Raises:
            CheckpointError: If there is none, or none that a training writes.
        """
        rollbacks = self.rollbacks + 1
        checkpoint = self._newest_checkpoint()
        if checkpoint is None:
            raise CheckpointError(f"{reason}, and {self.folder} holds no whole checkpoint to go back to")
        self._check_tensors(checkpoint)
        self._take(checkpoint)
        self.rollbacks = rollbacks
        note = (
            f"{reason}. Went back to step {self.step}; from there on with learning rates {2**rollbacks} times smaller "
            f"(time {rollbacks} of at most {self.args.max_rollbacks})"
        )
        self.warnings.append(note)
        self.metrics.write("rollback", self.step, {"reason": reason, "rollbacks": rollbacks})
        self.accelerator.print(note)

    def _newest_checkpoint(self) -> Checkpoint | None:
        checkpoint, skipped = load_latest_checkpoint(self.folder / "checkpoints", identity=self.identity)
        for line in skipped:
            self.accelerator.print(f"skipped an incomplete checkpoint: {line}")
        self.accelerator.wait_for_everyone()  # or a process would find a checkpoint that another has published since
        if checkpoint is not None:
            check_state(checkpoint)
        return checkpoint

    def _check_tensors(self, checkpoint: Checkpoint) -> None:
        tensors = {"model": self.model.state_dict()}
        if self.averaged is not None:
            tensors["averaged"] = self.averaged.state_dict()
        if self.args.inference == "persistent":
            tensors["chains"] = {"latents": torch.empty(self.num_examples, self.model.config.latent_dim)}
        if self.prior_chains is not None:
            shape = PriorChains.shape(self.args, self.model.config.latent_dim)
            tensors["prior_chains"] = {"latents": torch.empty(shape)}
        check_tensors(checkpoint, tensors, self.optimizer)

    def _open_chains(self) -> ChainStore:
        """Opens the chains of all processes in one file; a process reads and writes the rows of its own examples."""
        path = self.folder / "chains.bin"
        world = self.accelerator.num_processes
        if int(os.environ.get("LOCAL_WORLD_SIZE", world)) < world:
            raise UsageError(
                "inference 'persistent' keeps its chains on one machine; use another inference on several machines"
            )
        with self.accelerator.main_process_first():
            if self.accelerator.is_main_process:
                # The file of an earlier run is ahead of its last checkpoint, which holds the chains to continue.
                path.unlink(missing_ok=True)
            return ChainStore(path, self.num_examples, self.model.config.latent_dim)

    def _take(self, checkpoint: Checkpoint | None) -> None:
        """Takes the state of a checkpoint, or without one the state before the first step."""
        state: dict[str, Any] = {"seconds": 0.0, "rollbacks": 0, "means": None, "warnings": [], "controller": None}
        if checkpoint is not None:
            state |= checkpoint.state
        self.step, self.rollbacks = checkpoint.step if checkpoint else 0, state["rollbacks"]
        self._started = time.monotonic() - state["seconds"]
        self.means = RunningMeans(state["means"])
        self.warnings = list(state["warnings"])
        self.controller = None
        if self.args.information is not None:
            weight = self.args.initial_likelihood_weight or INITIAL_WEIGHT
            self.controller = InformationController(
                self.args.information,
                self.total,
                self.model.config.latent_dim,
                weight,
                state["controller"],
                self.accelerator.device,
            )
        if checkpoint is not None:
            self.model.load_state_dict(checkpoint.tensors["model"])
            if self.sharded is not None:
                self.sharded.take(self.model)
            try:
                restore_optimizer_state(self.optimizer, checkpoint.tensors["optimizer"], state["optimizer"])
            except CheckpointError as error:
                raise CheckpointError(f"{checkpoint.path} cannot be resumed from: {error}") from error
            if self.averaged is not None:
                self.averaged.load_state_dict(checkpoint.tensors["averaged"])
                if self.step <= self.averaging_from:  # a run that was made longer: its end is later now
                    self.averaged.n_averaged.zero_()
            if self.chains is not None and self.accelerator.is_main_process:
                self.chains.restore(checkpoint.tensors["chains"]["latents"])
            if self.prior_chains is not None:
                self.prior_chains.restore(checkpoint.tensors["prior_chains"]["latents"])
            self.accelerator.wait_for_everyone()
        self.metrics = MetricsFile(
            self.folder / "metrics.jsonl",
            first_step=self.step,
            enabled=self.accelerator.is_main_process,
            track=self.accelerator.log,
        )
