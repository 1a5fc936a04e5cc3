"""Maximum likelihood learning of prior and decoder by Langevin sampling (algorithm 1 of the paper), on Accelerate."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from latent_ebm_text.data.batching import BucketedBatches
from latent_ebm_text.errors import DivergenceError, UsageError
from latent_ebm_text.modeling_base import LatentEBMPreTrainedModel
from latent_ebm_text.samplers import ChainStore, sampler_from_dict
from latent_ebm_text.streams import stream, stream_seed
from latent_ebm_text.training.arguments import TrainingArguments, ramp
from latent_ebm_text.training.checkpointing import (
    Checkpoint,
    flatten_optimizer_state,
    load_latest_checkpoint,
    restore_optimizer_state,
    save_checkpoint,
)
from latent_ebm_text.training.reporting import Health, MetricsFile, RunningMeans


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
        warnings: What looked wrong, in words.
    """

    step: int
    seconds: float
    signal: int | None = None
    warnings: list[str] = field(default_factory=list)


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

    Args:
        model: The model; holds the trained weights afterwards.
        data: The training data.
        args: The settings.
        identity: What a checkpoint must have in common with this run to be resumed: model, data, seed.
        evaluate: `(model, step)` to figures, called every `args.eval_every` steps. Knows the modality, draws from
            streams of its own and leaves the training undisturbed.
        accelerator: Devices and processes, and the trackers that metrics also go to; made here by default.
        on_save: `(model, step)`, called on the main process after every checkpoint but the last.

    Raises:
        DivergenceError: If a chain, the loss or a gradient is not finite; the weights are as before the bad step.
        CheckpointError: If the newest complete checkpoint belongs to another model or library version.
        UsageError: If `args.output_dir` cannot be a folder.
    """
    accelerator = accelerator or Accelerator(cpu=not torch.cuda.is_available())
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    folder, persistent = Path(args.output_dir), args.inference == "persistent"
    if (args.inference in ("amortized", "variational")) != (model.encoder is not None):
        raise UsageError(
            "inference 'amortized' or 'variational' and encoder_hidden_size go together: set both or neither"
        )
    optimizer = build_optimizer(model, args)
    checkpoint = _newest_checkpoint(folder, identity, accelerator)
    chains = _open_chains(folder, len(data.batches.lengths), model, accelerator) if persistent else None
    step, seconds = _resume(checkpoint, model, optimizer, chains, accelerator)
    averaged = AveragedModel(model) if args.averaging_start < 1 else None
    if averaged is not None and checkpoint is not None and "averaged" in checkpoint.tensors:
        averaged.load_state_dict(checkpoint.tensors["averaged"])
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    metrics = MetricsFile(
        folder / "metrics.jsonl", first_step=step, enabled=accelerator.is_main_process, track=accelerator.log
    )
    means = RunningMeans(checkpoint.state["means"] if checkpoint else None)
    health = Health(args, likelihood_weight=model.config.likelihood_weight)

    total = max(1, math.ceil(args.num_epochs * len(data.batches)))
    bar = tqdm(total=total, initial=min(step, total), desc="training", unit="step", dynamic_ncols=True)
    started, stopped = time.monotonic() - seconds, _StopSignals()
    current_epoch, batches = -1, data.batches.epoch(0)
    model.train()
    with bar, stopped:
        while step < total:
            # The batch of this step: a function of (seed, step) alone.
            epoch, position = divmod(step, len(data.batches))
            if epoch != current_epoch:
                current_epoch, batches = epoch, data.batches.epoch(epoch)
            batch = batches[position]
            indices = torch.from_numpy(batch[rank::world] if len(batch) >= world else batch[:1])
            inputs = {name: value.to(device) for name, value in data.load(indices.numpy()).items()}
            weight = likelihood_weight(step, args, model.config.likelihood_weight)

            # Dropout, and whatever else the model draws from torch's global stream.
            torch.manual_seed(stream_seed(args.seed, "dropout", step, rank))

            # 1. Posterior draws z+ for the batch, by Langevin dynamics; variational ones are drawn with a gradient.
            latents = None
            if args.inference != "variational":
                latents = _posterior_draws(model, inputs, indices, chains, step, rank, weight, args)

            # 2. Prior draws z-, by Langevin dynamics from N(0, I).
            noise = stream(args.seed, "prior", step, rank, device=device)
            with _naming(step):
                prior_latents = model.sample_prior(len(indices), generator=noise).latents

            # 3. One loss whose gradient is the learning gradient of both parts (eq. 6 and 7).
            output = wrapped(**inputs, latents=latents, prior_latents=prior_latents, likelihood_weight=weight)
            accelerator.backward(output.loss * (len(indices) * world / max(len(batch), world)))

            # 4. One update, unless something is not finite.
            for group, rate in zip(optimizer.param_groups, learning_rates(step, total, args), strict=True):
                group["lr"] = rate
            norms = [
                float(accelerator.clip_grad_norm_(list(part.parameters()), limit))
                for part, limit in (
                    (_likelihood_parts(model), args.max_decoder_grad_norm),
                    (model.prior, args.max_prior_grad_norm),
                )
            ]
            _require_finite(step, indices, output, norms)
            optimizer.step()
            optimizer.zero_grad()
            if averaged is not None and step >= round(args.averaging_start * total):
                averaged.update_parameters(model)
            if chains is not None:
                chains.write(indices, output.latents)
            step += 1
            bar.update()

            means.add(_measure(output, prior_latents, norms, weight, optimizer), len(batch))
            if step % args.log_every == 0:
                record = means.take()
                health.observe(record)
                metrics.write("train", step, {**record, "seconds": time.monotonic() - started})
                bar.set_postfix(nll=f"{record['reconstruction_nll']:.1f}", gap=f"{record['energy_gap']:.1f}")
            if step % args.eval_every == 0 and step < total:
                figures = evaluate(model, step)
                metrics.write("validation", step, {**figures, "seconds": time.monotonic() - started})
                for warning in health.judge(figures) if model.config.latent_dim else ():
                    accelerator.print(f"step {step}: {warning}")
            signal_number = stopped.agreed(accelerator)
            if signal_number or step % args.save_every == 0 or step == total:
                state = {"seconds": time.monotonic() - started, "means": means.state()}
                _save(model, averaged, optimizer, chains, folder, step, state, identity, args, accelerator)
                if on_save is not None and step < total and accelerator.is_main_process:
                    on_save(model, step)
            if signal_number:
                break
    if averaged is not None and step == total:
        model.load_state_dict(averaged.module.state_dict())
    return TrainingResult(step, time.monotonic() - started, stopped.agreed(accelerator), health.warnings)


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
    """Decoder, and encoder where there is one: what learns from the likelihood."""
    return nn.ModuleList([model.decoder] if model.encoder is None else [model.decoder, model.encoder])


def _posterior_draws(
    model: LatentEBMPreTrainedModel,
    inputs: dict[str, Tensor],
    indices: Tensor,
    chains: ChainStore | None,
    step: int,
    rank: int,
    weight: float,
    args: TrainingArguments,
) -> Tensor:
    """The ends of short-run chains, or of a few steps from an example's own chain or the encoder's proposal."""
    noise = stream(args.seed, "posterior", step, rank, device=model.device)
    sampler, initial = model.posterior_sampler, None
    if args.inference != "short_run":
        step_sizes = ramp(args.chain_step_size, args.chain_step_size_end)
        visit = {"num_steps": args.chain_num_steps, "step_size": step_sizes}
        sampler = sampler_from_dict({**model.config.posterior_sampler, **visit})
    if chains is not None:
        start_noise = stream(args.seed, "chain start", step, rank)
        initial = chains.start(indices, refresh=args.chain_refresh, generator=start_noise).to(model.device)
    with _naming(step):
        return model.sample_posterior(
            inputs, likelihood_weight=weight, initial_latents=initial, sampler=sampler, generator=noise
        ).latents


def likelihood_weight(step: int, args: TrainingArguments, final: float) -> float:
    """The weight `w` of the posterior `p(z) p(x|z)^w` at a step: falls geometrically to its final value."""
    if args.initial_likelihood_weight is None:
        return final
    remaining = max(0.0, 1.0 - step / args.likelihood_weight_steps)
    return float(final * (args.initial_likelihood_weight / final) ** remaining)


def learning_rates(step: int, total: int, args: TrainingArguments) -> tuple[float, float]:
    """Learning rates of decoder and prior at a step.

    Both fall linearly to `final_learning_rate_factor` of themselves at the last step, after a warm-up from zero; the
    prior's is zero until `prior_start`.
    """
    fall = 1.0 - (1.0 - args.final_learning_rate_factor) * step / total
    rates = []
    for rate, first in ((args.decoder_learning_rate, 0), (args.prior_learning_rate, round(args.prior_start * total))):
        warmup = (step - first + 1) / args.warmup_steps if args.warmup_steps else float(step >= first)
        rates.append(rate * fall * min(1.0, max(0.0, warmup)))
    return rates[0], rates[1]


@contextmanager
def _naming(step: int) -> Iterator[None]:
    """Adds the training step to the message of a chain that diverges."""
    try:
        yield
    except DivergenceError as error:
        raise DivergenceError(f"training step {step + 1}: {error}; nothing was updated") from error


def _require_finite(step: int, indices: Tensor, output: Any, norms: list[float]) -> None:
    figures = {
        "reconstruction loss": float(output.reconstruction_loss.detach()),
        "posterior-prior energy gap": float(output.prior_loss.detach()),
        "decoder gradient norm": norms[0],
        "prior gradient norm": norms[1],
    }
    for name, value in figures.items():
        if not math.isfinite(value):
            raise DivergenceError(
                f"the {name} is {value} at step {step + 1} (examples {indices[:4].tolist()}...): nothing was updated. "
                "Lower decoder_learning_rate or prior_learning_rate and run again, which goes on from the last "
                "checkpoint, or start anew with a higher energy_penalty"
            )


def _measure(
    output: Any, prior_latents: Tensor, norms: list[float], weight: float, optimizer: Any
) -> dict[str, float]:
    return {
        "loss": float(output.loss.detach()),
        "reconstruction_nll": float(output.reconstruction_loss.detach()),
        "energy_gap": float(output.prior_loss.detach()),
        "penalty": float(output.penalty.detach()),
        "posterior_std": _spread(output.latents),
        "prior_std": _spread(prior_latents),
        "decoder_grad_norm": norms[0],
        "prior_grad_norm": norms[1],
        "likelihood_weight": weight,
        "decoder_learning_rate": optimizer.param_groups[0]["lr"],
    }


def _spread(latents: Tensor) -> float:
    """Standard deviation, averaged over dimensions; zero of a single row (a short last batch may be one)."""
    if latents.numel() == 0:
        return 0.0
    return float(latents.std(dim=0, correction=int(len(latents) > 1)).mean())


def _save(
    model: LatentEBMPreTrainedModel,
    averaged: AveragedModel | None,
    optimizer: Any,
    chains: ChainStore | None,
    folder: Path,
    step: int,
    state: dict[str, Any],
    identity: dict[str, Any],
    args: TrainingArguments,
    accelerator: Accelerator,
) -> None:
    accelerator.wait_for_everyone()  # every process has written the chains of its examples
    if accelerator.is_main_process:
        optimizer_tensors, optimizer_rest = flatten_optimizer_state(getattr(optimizer, "optimizer", optimizer))
        tensors = {"model": dict(model.state_dict()), "optimizer": optimizer_tensors}
        if averaged is not None:
            tensors["averaged"] = dict(averaged.state_dict())
        if chains is not None:
            tensors["chains"] = {"latents": chains.snapshot()}
        state = {**state, "optimizer": optimizer_rest}
        save_checkpoint(
            folder / "checkpoints", step, tensors, state, identity=identity, keep_last=args.keep_checkpoints
        )
    accelerator.wait_for_everyone()


def _open_chains(
    folder: Path, num_chains: int, model: LatentEBMPreTrainedModel, accelerator: Accelerator
) -> ChainStore:
    """The chains of all processes, in one file: each process reads and writes the rows of its own examples."""
    path = folder / "chains.bin"
    with accelerator.main_process_first():
        if accelerator.is_main_process:
            # Whatever an earlier run left is ahead of its last checkpoint, which holds the chains to go on from.
            path.unlink(missing_ok=True)
        return ChainStore(path, num_chains, model.config.latent_dim)


def _newest_checkpoint(folder: Path, identity: dict[str, Any], accelerator: Accelerator) -> Checkpoint | None:
    """Looked for before anything is written, so that the folder of another run stays as it is."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"output_dir {folder} cannot be used: {error.strerror}") from error
    checkpoint, skipped = load_latest_checkpoint(folder / "checkpoints", identity=identity)
    for line in skipped:
        accelerator.print(f"skipped an incomplete checkpoint: {line}")
    return checkpoint


def _resume(
    checkpoint: Checkpoint | None,
    model: LatentEBMPreTrainedModel,
    optimizer: torch.optim.Optimizer,
    chains: ChainStore | None,
    accelerator: Accelerator,
) -> tuple[int, float]:
    if checkpoint is None:
        return 0, 0.0
    model.load_state_dict(checkpoint.tensors["model"])
    restore_optimizer_state(optimizer, checkpoint.tensors["optimizer"], checkpoint.state["optimizer"])
    if chains is not None and accelerator.is_main_process:
        chains.restore(checkpoint.tensors["chains"]["latents"])
    accelerator.wait_for_everyone()
    accelerator.print(f"resuming from {checkpoint.path}")
    return checkpoint.step, float(checkpoint.state["seconds"])


class _StopSignals:
    """Turns SIGTERM and SIGINT into a request to save and leave after the current step."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> _StopSignals:
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._receive)
        except ValueError:  # not in the main thread: signals are then the caller's business
            pass
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number

    def agreed(self, accelerator: Accelerator) -> int | None:
        """The signal that any process has received: all of them leave together."""
        if accelerator.num_processes > 1:
            highest = torch.tensor([self.received or 0], device=accelerator.device)
            if not int(accelerator.reduce(highest, reduction="sum")):
                return None
            self.received = signal.SIGTERM
        return self.received
