"""One step of a training: this process's share of a batch, its draws, its gradient, and the numbers that are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from latent_ebm_text.data.batching import BucketedBatches
from latent_ebm_text.errors import DivergenceError, UsageError
from latent_ebm_text.latents.rng import BatchGenerator, derived_seed
from latent_ebm_text.latents.samplers import Sampler, sampler_from_dict
from latent_ebm_text.latents.samplers.base import FiniteCheck, deferred_checks
from latent_ebm_text.models.modeling_base import LatentEBMPreTrainedModel
from latent_ebm_text.training.arguments import TrainingArguments
from latent_ebm_text.training.checkpointing import whole_tensor
from latent_ebm_text.training.state import TrainingState

#: Share of the decoder's learning rate at which pretrained weights learn: they have little to change.
_PRETRAINED_RATE = 0.1
#: The parts of the loss by their metrics, in the order in which they are looked at, with their names for people.
_PARTS_OF_LOSS = {
    "reconstruction_nll": "reconstruction loss",
    "energy_gap": "posterior-prior energy gap",
    "penalty": "energy penalty",
    "loss": "loss",
}


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


@dataclass(frozen=True)
class Share:
    """What one process has of a step: its examples of the batch, and their draws.

    Attributes:
        inputs: The model's inputs.
        indices: `(share,)`, the examples. A process for which a short batch has none takes one that does not count.
        part: Their part of the batch, times the number of processes, over which gradients are averaged.
        latents: `(share, latent_dim)` posterior draws; none where the model draws them itself.
        prior_latents: `(share, latent_dim)`, or more where chains of the prior go on from step to step.
        likelihood_weight: `w` at this step; a scalar on the device where a controller sets it.
        checks: Whether the chains have stayed finite, each with the name of the chains; not read yet.
    """

    inputs: dict[str, Tensor]
    indices: Tensor
    part: float
    latents: Tensor | None
    prior_latents: Tensor
    likelihood_weight: float | Tensor
    checks: list[tuple[str, FiniteCheck]]


def draw(state: TrainingState, data: TrainingData, step: int) -> Share:
    """The examples of this process in the batch of a step, their posterior draws z+, and prior draws z-."""
    model, args, accelerator = state.model, state.args, state.accelerator
    rank, world = accelerator.process_index, accelerator.num_processes
    batch = data.batches.at(step)
    rows = torch.arange(rank, len(batch), world)
    part = len(rows) * world / len(batch)
    rows = rows if len(rows) else torch.zeros(1, dtype=torch.long)
    indices = torch.from_numpy(batch)[rows]
    loaded = data.load(indices.numpy())
    # Without pinned memory the copy to a GPU would wait for what still runs there.
    is_pinned = accelerator.device.type == "cuda"
    inputs = {
        name: (value.pin_memory() if is_pinned else value).to(accelerator.device, non_blocking=True)
        for name, value in loaded.items()
    }
    weight = likelihood_weight(step, state.total, args, model.config.likelihood_weight)

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
        if state.prior_chains is None:
            prior_latents = model.sample_prior(len(rows), generator=noise("prior")).latents
        else:
            prior_latents = state.prior_chains.advanced(model, rows, len(batch), step)
    chains += [("prior", check) for check in checks]
    # A controller goes with variational inference, so no chain above has missed its weight.
    of_loss: float | Tensor = weight if state.controller is None else state.controller.weight.float()
    return Share(inputs, indices, part, latents, prior_latents, of_loss, chains)


def add_gradient(wrapped: nn.Module, share: Share, accelerator: Accelerator) -> Any:
    """The model's output for a share of a batch, after its backward pass."""
    output = wrapped(
        **share.inputs,
        latents=share.latents,
        prior_latents=share.prior_latents,
        likelihood_weight=share.likelihood_weight,
    )
    accelerator.backward(output.loss * share.part)
    return output


def clip_and_measure(
    model: LatentEBMPreTrainedModel, args: TrainingArguments, accelerator: Accelerator, output: Any, share: Share
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
    weight = share.likelihood_weight
    if isinstance(weight, Tensor):
        values["likelihood_weight"] = weight
    wanted = [*values.values(), *(check.finite_steps for _, check in share.checks)]
    numbers = torch.stack([value.detach().double() for value in wanted]).tolist()
    for (name, check), steps in zip(share.checks, numbers[len(values) :], strict=True):
        with _naming_chains(name, share.indices):
            check.verify(int(steps))
    measured = dict(zip(values, numbers, strict=False))
    for name, title in _PARTS_OF_LOSS.items():
        if not math.isfinite(measured[name]):
            raise DivergenceError(f"the {title} is {measured[name]} on {_name(share.indices)}")
    return measured if isinstance(weight, Tensor) else {**measured, "likelihood_weight": weight}


def require_finite_gradients(model: LatentEBMPreTrainedModel, measured: dict[str, float], share: Share) -> None:
    """Raises a `DivergenceError`, in all processes or in none, since gradients are those of all of them."""
    if not math.isfinite(measured["decoder_grad_norm"] + measured["prior_grad_norm"]):
        broken = [name for name, weight in model.named_parameters() if not _is_finite(weight.grad)]
        raise DivergenceError(f"the gradient of {', '.join(broken[:3])} is not finite on {_name(share.indices)}")


@contextmanager
def explaining_memory(share: Share, args: TrainingArguments) -> Iterator[None]:
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


def build_optimizer(model: LatentEBMPreTrainedModel, args: TrainingArguments) -> torch.optim.AdamW:
    """One AdamW with a group for the decoder, one for the prior, and one for pretrained weights where they learn.

    The same steps as an optimizer for each, in one call. Fused: each weight is read and written once, where torch's
    plain loop passes over memory a dozen times.
    """
    pretrained = [weight for weight in model.pretrained_weights() if weight.requires_grad]
    known = set(map(id, pretrained))
    new = [
        weight for weight in _likelihood_parts(model).parameters() if weight.requires_grad and id(weight) not in known
    ]
    likelihood = {"lr": args.decoder_learning_rate, "weight_decay": args.decoder_weight_decay}
    groups: list[dict[str, Any]] = [
        {"params": new, **likelihood},
        {
            "params": list(model.prior.parameters()),
            "lr": args.prior_learning_rate,
            "weight_decay": args.prior_weight_decay,
        },
    ]
    if pretrained:
        groups.append({"params": pretrained, **likelihood})
    return torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=True)


@torch.no_grad()
def update_average(averaged: AveragedModel, model: LatentEBMPreTrainedModel) -> None:
    """Takes the weights of a model into an average, as `averaged.update_parameters` does.

    That one reads on the host how many weights there are in the average, which waits for a GPU.
    """
    averaged.n_averaged += 1
    for average, weight in zip(averaged.parameters(), model.parameters(), strict=True):
        average.lerp_(weight, averaged.n_averaged.reciprocal().to(weight.dtype))
    for kept, current in zip(averaged.module.buffers(), model.buffers(), strict=True):
        kept.copy_(current)


def likelihood_weight(step: int, total: int, args: TrainingArguments, final: float) -> float:
    """The weight `w` of the posterior `p(z) p(x|z)^w` at a step: falls geometrically to its final value."""
    if args.initial_likelihood_weight is None:
        return final
    remaining = max(0.0, 1.0 - step / (args.likelihood_weight_fall * total))
    return float(final * (args.initial_likelihood_weight / final) ** remaining)


def learning_rates(step: int, total: int, args: TrainingArguments) -> tuple[float, float, float]:
    """Learning rates of decoder, prior and pretrained weights at a step.

    They fall linearly to `final_learning_rate_factor` of themselves at the last step, after a warm-up from zero; the
    prior's is zero until `prior_start`. Pretrained weights learn at a tenth of the decoder's rate.
    """
    fall = 1.0 - (1.0 - args.final_learning_rate_factor) * step / total
    rates, steps = [], args.warmup * total
    for rate, first in ((args.decoder_learning_rate, 0), (args.prior_learning_rate, round(args.prior_start * total))):
        warmup = (step - first + 1) / max(steps, 1.0)
        rates.append(rate * fall * min(1.0, max(0.0, warmup)))
    return rates[0], rates[1], _PRETRAINED_RATE * rates[0]


def _likelihood_parts(model: LatentEBMPreTrainedModel) -> nn.ModuleList:
    """What learns from the likelihood: all but the prior."""
    return nn.ModuleList([part for part in model.children() if part is not model.prior])


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


def _is_finite(gradient: Tensor | None) -> bool:
    return gradient is None or bool(whole_tensor(gradient).isfinite().all())


def _name(indices: Tensor) -> str:
    """Examples by their numbers, the first few."""
    return f"examples {indices[:8].tolist()}" + (f" and {len(indices) - 8} more" if len(indices) > 8 else "")


def _spread(latents: Tensor) -> Tensor:
    """Standard deviation, averaged over dimensions; zero of a single row (a short last batch may be one)."""
    if latents.numel() == 0:
        return latents.new_zeros(())
    return latents.detach().std(dim=0, correction=int(len(latents) > 1)).mean()
