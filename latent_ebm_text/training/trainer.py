"""Maximum likelihood learning of prior and decoder on Accelerate: algorithm 1 of the paper, or with an encoder."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from torch import Tensor, nn

from latent_ebm_text.data.batching import BucketedBatches
from latent_ebm_text.errors import DivergenceError, UsageError
from latent_ebm_text.latents.rng import BatchGenerator, derived_generator, derived_seed
from latent_ebm_text.latents.samplers import LangevinSampler, Sampler, sampler_from_dict
from latent_ebm_text.latents.samplers.base import FiniteCheck, deferred_checks
from latent_ebm_text.models.modeling_base import LatentEBMPreTrainedModel
from latent_ebm_text.training.arguments import TrainingArguments
from latent_ebm_text.training.checkpointing import whole_tensor
from latent_ebm_text.training.information import step_size_under
from latent_ebm_text.training.locking import only_run
from latent_ebm_text.training.sharding import ShardedCopy, check_sharding, is_sharding_asked_for
from latent_ebm_text.training.state import TrainingState
from latent_ebm_text.training.stopping import StopSignals, failing_together


@dataclass(frozen=True)
class TrainingData:
    """What the loop needs to know of the data.

    Attributes:
        examples: Rows by index list, `examples[[0, 5]]` giving a dict of columns, as a `datasets.Dataset` does.
        batches: The order of the examples, a function of (seed, epoch).
        collate: Makes the model's inputs of a list of rows.
    """

    examples: Any
    batches: BucketedBatches
    collate: Callable[[Sequence[dict[str, Any]]], dict[str, Tensor]]

    def load(self, indices: np.ndarray) -> dict[str, Tensor]:
        """The model's inputs for some examples."""
        columns = self.examples[indices]
        return self.collate([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])


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


@dataclass(frozen=True)
class _Share:
    """What one process has of a step: its examples of the batch, and their draws.

    Attributes:
        inputs: The model's inputs.
        indices: `(share,)`, the examples. A process for which a short batch has none takes one that does not count.
        part: Their part of the batch, times the number of processes, over which gradients are averaged.
        latents: `(share, latent_dim)` posterior draws; none where the model draws them itself.
        prior_latents: `(share, latent_dim)`.
        likelihood_weight: `w` at this step.
        checks: Whether the chains have stayed finite, each with the name of the chains; not read yet.
    """

    inputs: dict[str, Tensor]
    indices: Tensor
    part: float
    latents: Tensor | None
    prior_latents: Tensor
    likelihood_weight: float
    checks: list[tuple[str, FiniteCheck]]


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
    args.check_encoder(model.encoder is not None)
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
        model.gradient_checkpointing_enable({"use_reentrant": False})
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
                    share = stopped.interruptible(partial(_draw, state, data, step))
                if stopped.agreed(accelerator):
                    break
                assert share is not None

                # 2. One loss whose gradient is the learning gradient of both parts (eq. 6 and 7).
                with failing_together(accelerator), _explaining_memory(share, args):
                    output = _add_gradient(wrapped, share, accelerator)
                    measured = _clip_and_measure(learner, args, accelerator, output, share)
                _require_finite_gradients(learner, measured, share)
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
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate / 2**state.rollbacks
            optimizer.step()
            optimizer.zero_grad()
            if sharded is not None:
                sharded.update(model)
            if state.averaged is not None and step >= state.averaging_from:
                state.averaged.update_parameters(model)
            if state.chains is not None and share.part:
                state.chains.write(share.indices, output.latents)
            measured["decoder_learning_rate"] = optimizer.param_groups[0]["lr"]
            if state.controller is not None:
                generator = derived_generator(args.seed, "information", step, device=accelerator.device)
                state.controller.observe(step, model, share.inputs, share.prior_latents, generator, accelerator)
                measured["information"] = state.controller.information
                measured["information_target"] = state.controller.target
            state.step += 1
            bar.update()

            state.means.add(measured, len(data.batches.at(step)))
            if state.step % args.log_every == 0:
                record = state.means.take()
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
        model.config.likelihood_weight = weight = state.controller.weight
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


def build_optimizer(model: LatentEBMPreTrainedModel, args: TrainingArguments) -> torch.optim.AdamW:
    """One AdamW with two groups, decoder and prior; the same steps as two optimizers, in one call.

    Fused: each weight is read and written once, where torch's plain loop passes over memory a dozen times.
    """
    decoder_rate, prior_rate = args.decoder_learning_rate, args.prior_learning_rate
    return torch.optim.AdamW(
        [
            {
                "params": [weight for weight in _likelihood_parts(model).parameters() if weight.requires_grad],
                "lr": decoder_rate,
                "weight_decay": args.decoder_weight_decay,
            },
            {"params": list(model.prior.parameters()), "lr": prior_rate, "weight_decay": args.prior_weight_decay},
        ],
        betas=(0.9, 0.99),
        fused=True,
    )


def _likelihood_parts(model: LatentEBMPreTrainedModel) -> nn.ModuleList:
    """What learns from the likelihood: all but the prior."""
    return nn.ModuleList([part for part in model.children() if part is not model.prior])


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
            share = _draw(state, data, step)
            output = _add_gradient(wrapped, share, state.accelerator)
            _clip_and_measure(learner, state.args, state.accelerator, output, share)  # waits for the device
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


def _add_gradient(wrapped: nn.Module, share: _Share, accelerator: Accelerator) -> Any:
    """The model's output for a share of a batch, after its backward pass."""
    output = wrapped(
        **share.inputs,
        latents=share.latents,
        prior_latents=share.prior_latents,
        likelihood_weight=share.likelihood_weight,
    )
    accelerator.backward(output.loss * share.part)
    return output


def _draw(state: TrainingState, data: TrainingData, step: int) -> _Share:
    """The examples of this process in the batch of a step, their posterior draws z+, and as many prior draws z-."""
    model, args, accelerator = state.model, state.args, state.accelerator
    rank, world = accelerator.process_index, accelerator.num_processes
    batch = data.batches.at(step)
    rows = torch.arange(rank, len(batch), world)
    part = len(rows) * world / len(batch)
    rows = rows if len(rows) else torch.zeros(1, dtype=torch.long)
    indices = torch.from_numpy(batch)[rows]
    loaded = data.load(indices.numpy())
    inputs = {name: value.to(accelerator.device, non_blocking=True) for name, value in loaded.items()}
    weight = likelihood_weight(step, state.total, args, model.config.likelihood_weight)
    if state.controller is not None:
        weight = state.controller.weight

    def noise(purpose: str, device: torch.device | str = accelerator.device) -> BatchGenerator:
        return BatchGenerator(derived_seed(args.seed, purpose, step), rows, len(batch), device)

    # What the model draws from torch's global generator: the tokens of its softmax, dropout, an encoder's draws.
    torch.manual_seed(derived_seed(args.seed, "likelihood", step, rank))
    chains: list[tuple[str, FiniteCheck]] = []
    latents = None  # those of variational inference are drawn with a gradient, by the model
    if args.inference != "variational":
        initial = None
        if state.chains is not None:
            start_noise = noise("chain start", "cpu")
            initial = state.chains.start(indices, refresh=args.chain_refresh, generator=start_noise)
        with _naming_chains("posterior", indices), deferred_checks() as checks:
            latents = model.sample_posterior(
                inputs,
                likelihood_weight=weight,
                initial_latents=initial,
                sampler=_posterior_sampler(model, args),
                generator=noise("posterior"),
            ).latents
        chains += [("posterior", check) for check in checks]
    with _naming_chains("prior", indices), deferred_checks() as checks:
        prior_latents = model.sample_prior(len(rows), generator=noise("prior")).latents
    chains += [("prior", check) for check in checks]
    return _Share(inputs, indices, part, latents, prior_latents, weight, chains)


@contextmanager
def _naming_chains(name: str, indices: Tensor) -> Iterator[None]:
    """Says of which chains a `DivergenceError` is, those of the posterior by the numbers of their examples."""
    try:
        yield
    except DivergenceError as error:
        whose = f"posterior of {_name(indices[error.rows])}" if name == "posterior" else name
        raise DivergenceError(f"{whose}: {error}") from error


def _posterior_sampler(model: LatentEBMPreTrainedModel, args: TrainingArguments) -> Sampler:
    """The model's own for chains from N(0, I); a few steps for those that go on from somewhere better."""
    if args.inference == "short_run":
        return model.posterior_sampler
    visit = {"num_steps": args.chain_num_steps, "step_size": args.chain_step_size}
    return sampler_from_dict({**model.config.posterior_sampler, **visit})


def _clip_and_measure(
    model: LatentEBMPreTrainedModel, args: TrainingArguments, accelerator: Accelerator, output: Any, share: _Share
) -> dict[str, float]:
    """Shortens the gradients of decoder (with encoder) and prior to their limits; returns the metrics of the step.

    All that the host wants to know of a step is read here, at once, before anything is updated.

    Raises:
        DivergenceError: If a chain of this process, its loss or a part of it is not finite.
    """
    parts = ((_likelihood_parts(model), args.max_decoder_grad_norm), (model.prior, args.max_prior_grad_norm))
    decoder_norm, prior_norm = (
        whole_tensor(accelerator.clip_grad_norm_(list(part.parameters()), limit)) for part, limit in parts
    )
    values = {
        "reconstruction_nll": output.reconstruction_loss,
        "energy_gap": output.prior_loss,
        "penalty": output.penalty,
        "loss": output.loss,
        "decoder_grad_norm": decoder_norm,
        "prior_grad_norm": prior_norm,
        "posterior_std": _spread(output.latents),
        "prior_std": _spread(share.prior_latents),
    }
    wanted = [*values.values(), *(check.finite_steps for _, check in share.checks)]
    numbers = torch.stack([value.detach().double() for value in wanted]).tolist()
    for (name, check), steps in zip(share.checks, numbers[len(values) :], strict=True):
        with _naming_chains(name, share.indices):
            check.verify(int(steps))
    measured = dict(zip(values, numbers, strict=False))
    for name, title in _PARTS_OF_LOSS.items():
        if not math.isfinite(measured[name]):
            raise DivergenceError(f"the {title} is {measured[name]} on {_name(share.indices)}")
    return {**measured, "likelihood_weight": share.likelihood_weight}


def _require_finite_gradients(model: LatentEBMPreTrainedModel, measured: dict[str, float], share: _Share) -> None:
    """Raises a `DivergenceError`, in all processes or in none, since gradients are those of all of them."""
    if not math.isfinite(measured["decoder_grad_norm"] + measured["prior_grad_norm"]):
        broken = [name for name, weight in model.named_parameters() if not _is_finite(weight.grad)]
        raise DivergenceError(f"the gradient of {', '.join(broken[:3])} is not finite on {_name(share.indices)}")


#: The parts of the loss by their metrics, in the order in which they are looked at, with their names for people.
_PARTS_OF_LOSS = {
    "reconstruction_nll": "reconstruction loss",
    "energy_gap": "posterior-prior energy gap",
    "penalty": "energy penalty",
    "loss": "loss",
}


def _is_finite(gradient: Tensor | None) -> bool:
    return gradient is None or bool(whole_tensor(gradient).isfinite().all())


@contextmanager
def _explaining_memory(share: _Share, args: TrainingArguments) -> Iterator[None]:
    """Says what to lower where a batch does not fit into the memory of its device."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        batch = next(iter(share.inputs.values()))
        lower = [f"train_batch_size to {max(1, args.train_batch_size // 2)}"]
        size, further = f"{len(batch)} images", ""
        if batch.dim() == 2:
            lower.append(f"max_length to {batch.shape[1] // 2}")
            size = f"{len(batch)} sentences of {batch.shape[1]} tokens"
            further = "" if args.gradient_checkpointing else "; for a transformer set gradient_checkpointing"
        raise UsageError(
            f"the memory of the device {batch.device} is too small for a step on {size}: lower {' or '.join(lower)}, "
            f"which halves what a step needs{further}"
        ) from error


def _name(indices: Tensor) -> str:
    """Examples by their numbers, the first few."""
    return f"examples {indices[:8].tolist()}" + (f" and {len(indices) - 8} more" if len(indices) > 8 else "")


def likelihood_weight(step: int, total: int, args: TrainingArguments, final: float) -> float:
    """The weight `w` of the posterior `p(z) p(x|z)^w` at a step: falls geometrically to its final value."""
    if args.initial_likelihood_weight is None:
        return final
    remaining = max(0.0, 1.0 - step / (args.likelihood_weight_fall * total))
    return float(final * (args.initial_likelihood_weight / final) ** remaining)


def learning_rates(step: int, total: int, args: TrainingArguments) -> tuple[float, float]:
    """Learning rates of decoder and prior at a step.

    Both fall linearly to `final_learning_rate_factor` of themselves at the last step, after a warm-up from zero; the
    prior's is zero until `prior_start`.
    """
    fall = 1.0 - (1.0 - args.final_learning_rate_factor) * step / total
    rates, steps = [], args.warmup * total
    for rate, first in ((args.decoder_learning_rate, 0), (args.prior_learning_rate, round(args.prior_start * total))):
        warmup = (step - first + 1) / max(steps, 1.0)
        rates.append(rate * fall * min(1.0, max(0.0, warmup)))
    return rates[0], rates[1]


def _spread(latents: Tensor) -> Tensor:
    """Standard deviation, averaged over dimensions; zero of a single row (a short last batch may be one)."""
    if latents.numel() == 0:
        return latents.new_zeros(())
    return latents.detach().std(dim=0, correction=int(len(latents) > 1)).mean()
