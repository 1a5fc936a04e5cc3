"""Maximum likelihood learning of prior and decoder on Accelerate: algorithm 1 of the paper, or with an encoder."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from torch import nn

from latent_ebm_text.errors import DivergenceError, UsageError
from latent_ebm_text.latents.rng import derived_generator
from latent_ebm_text.latents.samplers import LangevinSampler
from latent_ebm_text.models.modeling_base import LatentEBMPreTrainedModel
from latent_ebm_text.training.arguments import TrainingArguments
from latent_ebm_text.training.information import step_size_under
from latent_ebm_text.training.locking import only_run
from latent_ebm_text.training.sharding import ShardedCopy, check_sharding, is_sharding_asked_for
from latent_ebm_text.training.state import TrainingState
from latent_ebm_text.training.step import (
    TrainingData,
    add_gradient,
    build_optimizer,
    clip_and_measure,
    draw,
    explaining_memory,
    learning_rates,
    require_finite_gradients,
    update_average,
)
from latent_ebm_text.training.stopping import StopSignals, failing_together


@dataclass
class TrainingResult:
    """How a training ended.

    Attributes:
        step: Optimizer steps done, over all runs of this folder.
        seconds: Time spent training, over all runs of this folder.
        signal: The signal that stopped it, if one did; the state was saved.
        warnings: What went wrong and was repaired, in words.
        settings_history: Settings that were changed when the run was resumed, each time with the step, and under
            `changed` the old and the new value of each.
    """

    step: int
    seconds: float
    signal: int | None = None
    warnings: list[str] = field(default_factory=list)
    settings_history: list[dict[str, Any]] = field(default_factory=list)


def train(
    model: LatentEBMPreTrainedModel,
    data: TrainingData,
    args: TrainingArguments,
    *,
    identity: dict[str, Any],
    evaluate: Callable[[LatentEBMPreTrainedModel, int], dict[str, float]],
    accelerator: Accelerator | None = None,
    on_save: Callable[[LatentEBMPreTrainedModel, int], None] | None = None,
) -> TrainingResult:
    """Trains a model of any modality, from the newest checkpoint in `args.output_dir` where there is one.

    SIGTERM, SIGINT and SIGUSR1 end it with a checkpoint. A value that is not finite sends it back to the newest
    checkpoint, with smaller learning rates from there on. Before its first step it prints how long it will take.

    Args:
        model: The model; holds the trained weights afterwards.
        data: The training data.
        args: The settings.
        identity: What a checkpoint must have in common with this run to be resumed: model, data, seed.
        evaluate: `(model, step)` to metrics, called every `args.eval_every` steps; if the model has a latent, they
            include what [`~latent_ebm_text.training.reporting.find_problems`] needs. It knows the modality, has random
            number generators of its own, does not change the state of the training, and waits for no other process.
        accelerator: Devices and processes, and the trackers that also receive the metrics; made here by default.
        on_save: `(model, step)`, called on the main process after every checkpoint but the last.

    Raises:
        DivergenceError: If a chain, the loss or a gradient is not finite once more after `args.max_rollbacks`
            rollbacks; the weights are as before the bad step.
        CheckpointError: If the newest complete checkpoint belongs to another model or library version, or is none that
            a training writes.
        UsageError: If `args.output_dir` cannot be a folder, another run is going on in it, a setting differs from
            that of its checkpoint and may not, the precision is fp16, FSDP does not go with the decoder, or
            `args.gradient_checkpointing` does not.
    """
    accelerator = accelerator or Accelerator(cpu=not torch.cuda.is_available())
    require_no_loss_scale(accelerator.mixed_precision)
    if args.automatic:
        raise UsageError(f"{args.automatic[0]} is 'auto', and nothing here says what it follows from: give a number")
    args.check_inference(model.encoder is not None, model.config.num_fit_steps)
    check_sharding(hasattr(model.decoder, "lm"), accelerator)
    with only_run(Path(args.output_dir), accelerator):
        return _train(model, data, args, identity, evaluate, accelerator, on_save)


def _train(
    model: LatentEBMPreTrainedModel,
    data: TrainingData,
    args: TrainingArguments,
    identity: dict[str, Any],
    evaluate: Callable[[LatentEBMPreTrainedModel, int], dict[str, float]],
    accelerator: Accelerator,
    on_save: Callable[[LatentEBMPreTrainedModel, int], None] | None,
) -> TrainingResult:
    if args.gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise UsageError("gradient_checkpointing is for transformer decoders; leave it out")
        # The name of transformers from 5.23 on, and the one before.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    is_sharded = is_sharding_asked_for(accelerator) and accelerator.num_processes > 1
    sharded = ShardedCopy(model, accelerator) if is_sharded else None
    learner = model if sharded is None else sharded.learner
    optimizer = build_optimizer(learner, args)
    total = max(1, math.ceil(args.num_epochs * len(data.batches)))
    state = TrainingState(model, optimizer, args, identity, len(data.batches.lengths), total, accelerator, sharded)
    if sharded is None:
        wrapped, optimizer = accelerator.prepare(model, optimizer)
    else:
        wrapped = sharded.module
        accelerator.print(f"FSDP2 shards gradients and optimizer state over {accelerator.num_processes} processes")

    bar = tqdm(total=total, initial=min(state.step, total), desc="training", unit="step", dynamic_ncols=True)
    model.train()
    with bar, StopSignals() as stopped:
        if total - state.step >= _MIN_FORECAST_STEPS:
            seconds = (total - state.step) * _seconds_per_step(state, data, wrapped, learner)
            accelerator.print(f"training {total - state.step:,} steps: about {minutes(seconds)} on this machine")
        while state.step < total:
            step = state.step
            try:
                # 1. What leaves no trace, so that a signal may end it anywhere: evaluation, batch, draws. Evaluation
                # comes before a step rather than after one, so that a run that was stopped in it makes up for it.
                with failing_together(accelerator):
                    if step and step % args.eval_every == 0:
                        metrics = stopped.interruptible(partial(evaluate, model, step))
                        if metrics is not None:
                            state.note_evaluation(metrics)
                    share = stopped.interruptible(partial(draw, state, data, step))
                if stopped.agreed(accelerator):
                    break
                assert share is not None

                # 2. One loss whose gradient is the learning gradient of both parts (eq. 6 and 7).
                with failing_together(accelerator), explaining_memory(share, args):
                    output = add_gradient(wrapped, share, accelerator)
                    measured = clip_and_measure(learner, args, accelerator, output, share)
                require_finite_gradients(learner, measured, share)
            except DivergenceError as error:
                optimizer.zero_grad()
                reason = f"training step {step + 1}: {error}"
                if state.rollbacks == args.max_rollbacks:
                    raise DivergenceError(f"{reason}. {_ADVICE}") from error
                state.roll_back(reason)
                bar.update(state.step - step)
                continue

            # 3. One update.
            rates = learning_rates(step, total, args)
            for group, rate in zip(optimizer.param_groups, rates, strict=False):  # not all have pretrained weights
                group["lr"] = rate / 2**state.rollbacks
            optimizer.step()
            optimizer.zero_grad()
            if sharded is not None:
                sharded.update(model)
            if state.averaged is not None and step >= state.averaging_from:
                update_average(state.averaged, model)
            if state.chains is not None and share.part:
                state.chains.write(share.indices, output.latents)
            if state.prior_chains is not None and share.part:
                state.prior_chains.move(share.prior_latents)
            measured["decoder_learning_rate"] = optimizer.param_groups[0]["lr"]
            if state.controller is not None:
                generator = derived_generator(args.seed, "information", step, device=accelerator.device)
                state.controller.observe(step, model, share.inputs, share.prior_latents, generator, accelerator)
            state.step += 1
            bar.update()

            state.means.add(measured, len(data.batches.at(step)))
            if state.step % args.log_every == 0:
                record = state.means.take()
                if state.controller is not None:
                    record |= state.controller.metrics()
                state.metrics.write("train", state.step, {**record, "seconds": state.seconds})
                bar.set_postfix(nll=f"{record['reconstruction_nll']:.1f}", gap=f"{record['energy_gap']:.1f}")
            if state.step % args.save_every == 0 or state.step == total:
                state.save()
                if on_save is not None and state.step < total and accelerator.is_main_process:
                    on_save(model, state.step)
        if stopped.agreed(accelerator):
            state.save()
    if state.controller is not None:
        # Of the posterior that was trained, and of its chains.
        model.config.likelihood_weight = weight = float(state.controller.weight)
        sampler = model.config.posterior_sampler
        if sampler["name"] == "langevin":
            step_size = step_size_under(weight, sampler.get("step_size", LangevinSampler.step_size))
            model.config.posterior_sampler = {**sampler, "step_size": step_size}
    if state.averaged is not None and state.step == total and state.averaged.n_averaged > 0:
        model.load_state_dict(state.averaged.module.state_dict())
    return TrainingResult(state.step, state.seconds, stopped.received, state.warnings, state.settings_history)


def require_no_loss_scale(mixed_precision: str) -> None:
    """Raises a `UsageError` for fp16: its scaled losses overflow on purpose, which here is a divergence."""
    if mixed_precision == "fp16":
        raise UsageError("mixed precision fp16 is not supported: use bf16, or none")


_ADVICE = (
    "Nothing was updated by that step, and going back did not help. Lower decoder_learning_rate or "
    "prior_learning_rate, or chain_step_size, and run again, which goes on from the last checkpoint; or start anew in "
    "another output_dir with a smaller step_size of the samplers or a higher energy_penalty"
)


#: Trainings with fewer steps left are over sooner than one would read how long they take.
_MIN_FORECAST_STEPS = 100
#: The batches that are timed, by their place among the batches of an epoch ordered by size.
_TIMED_QUANTILES = (1 / 6, 1 / 2, 5 / 6)


def _seconds_per_step(
    state: TrainingState, data: TrainingData, wrapped: nn.Module, learner: LatentEBMPreTrainedModel
) -> float:
    """The time of a step, measured on batches of typical sizes before the training; leaves no trace in it.

    Every draw is a function of its step and no weight is updated, so the training is the same with and without it.
    """
    steps = sorted(range(len(data.batches)), key=lambda step: data.batches.lengths[data.batches.at(step)].sum())
    timed = [steps[int(quantile * len(steps))] for quantile in _TIMED_QUANTILES]
    seconds = 0.0
    for number, step in enumerate((timed[1], *timed)):  # the first warms up
        started = time.monotonic()
        try:
            share = draw(state, data, step)
            output = add_gradient(wrapped, share, state.accelerator)
            clip_and_measure(learner, state.args, state.accelerator, output, share)  # waits for the device
        except DivergenceError:  # the loop meets it again, and deals with it
            pass
        state.optimizer.zero_grad()
        if number:
            seconds += time.monotonic() - started
    return seconds / len(timed)


def minutes(seconds: float) -> str:
    """A duration for people, such as `"41 min"`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
