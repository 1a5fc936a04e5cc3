"""Posterior gradient, posterior chain and whole training step, against the same model in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from plain import PlainModel
from products import prior_products, score_products, update_products
from sizes import Sizes
from timing import Case, comparison
from torch import Tensor

from latent_ebm_text.training.arguments import TrainingArguments
from latent_ebm_text.training.step import build_optimizer


def posterior_gradients(sizes: Sizes, repeats: int) -> Iterator[str]:
    """The gradient of `log p(x | z)` in z that every posterior step needs, of one batch."""
    return comparison([partial(posterior_gradient, sizes, tied) for tied in (False, True)], repeats)


def posterior_chains(sizes: Sizes, repeats: int) -> Iterator[str]:
    """The posterior's Langevin chain from N(0, I), of one batch."""
    return comparison([partial(posterior_chain, sizes, tied) for tied in (False, True)], repeats)


def training_steps(sizes: Sizes, repeats: int) -> Iterator[str]:
    """Posterior chain, prior chain, loss, backward pass, clipping and update, of one batch."""
    return comparison([partial(training_step, sizes, tied) for tied in (False, True)], repeats)


def posterior_gradient(sizes: Sizes, tied: bool) -> Case:
    """`d log p(x | z) / d z` of a batch, everything that depends on the batch included."""
    model, inputs = sizes.model(tied), sizes.inputs()
    plain, latents = PlainModel(model), torch.randn(sizes.batch, sizes.latent, device=sizes.device)
    return Case(
        f"posterior-gradient, {_layer(tied)}",
        lambda: [model.decoder.likelihood(inputs).score(latents)],
        lambda: [plain.likelihood_gradient(inputs["input_ids"], latents)],
        score_products(sizes, tied, steps=1),
    )


def posterior_chain(sizes: Sizes, tied: bool) -> Case:
    """The posterior's Langevin chain of a batch."""
    model, inputs = sizes.model(tied), sizes.inputs()
    plain, start = PlainModel(model), torch.randn(sizes.batch, sizes.latent, device=sizes.device)
    return Case(
        f"posterior-chain, {sizes.posterior_steps} steps, {_layer(tied)}",
        seeded(lambda: [model.sample_posterior(inputs, initial_latents=start).latents]),
        seeded(lambda: [plain.sample_posterior(inputs["input_ids"], start)]),
        score_products(sizes, tied, sizes.posterior_steps) + prior_products(sizes, sizes.batch, sizes.posterior_steps),
    )


def training_step(sizes: Sizes, tied: bool) -> Case:
    """Short-run posterior and prior chains, loss, backward pass, clipping and update, as `train` does them."""
    model, inputs, args = sizes.model(tied), sizes.inputs(), TrainingArguments()
    plain, start = PlainModel(model), torch.randn(sizes.batch, sizes.latent, device=sizes.device)
    batch = {**inputs, "labels": inputs["input_ids"]}
    optimizer = build_optimizer(model, args)
    decoder_group, prior_group = optimizer.param_groups
    plain_parts, plain_optimizers = (plain.decoder, plain.tilt), []
    for part, group in zip(plain_parts, (decoder_group, prior_group), strict=True):
        settings = {key: group[key] for key in ("lr", "betas", "weight_decay")}
        plain_optimizers.append(torch.optim.AdamW(part.parameters(), **settings))

    def clip(parts: Sequence[torch.nn.Module]) -> None:
        for part, limit in zip(parts, (args.max_decoder_grad_norm, args.max_prior_grad_norm), strict=True):
            torch.nn.utils.clip_grad_norm_(part.parameters(), limit)

    def ours() -> Sequence[Tensor]:
        latents = model.sample_posterior(inputs, initial_latents=start).latents
        prior_latents = model.sample_prior(sizes.batch, initial_latents=start).latents
        output = model(**batch, latents=latents, prior_latents=prior_latents)
        output.loss.backward()
        clip((model.decoder, model.prior))
        optimizer.step()
        gradients = _gradients(model.decoder, model.prior)
        optimizer.zero_grad()
        return [latents, prior_latents, output.loss.detach(), *gradients]

    def plainly() -> Sequence[Tensor]:
        latents = plain.sample_posterior(inputs["input_ids"], start)
        prior_latents = plain.sample_prior(start)
        decoder_loss = plain.decoder.nll(inputs["input_ids"], latents) / sizes.batch
        decoder_loss.backward()
        energies = [0.5 * z.square().sum(-1).mean() - plain.tilt(z).mean() for z in (latents, prior_latents)]
        prior_loss = energies[0] - energies[1]
        prior_loss.backward()
        clip(plain_parts)
        for plain_optimizer in plain_optimizers:
            plain_optimizer.step()
        gradients = _gradients(*plain_parts)
        for plain_optimizer in plain_optimizers:
            plain_optimizer.zero_grad()
        return [latents, prior_latents, (decoder_loss + prior_loss).detach(), *gradients]

    products = (
        score_products(sizes, tied, sizes.posterior_steps)
        + prior_products(sizes, sizes.batch, sizes.posterior_steps + sizes.prior_steps)
        + update_products(sizes, tied)
    )
    return Case(f"training-step, {_layer(tied)}", seeded(ours), seeded(plainly), products)


def _layer(tied: bool) -> str:
    return "tied low-rank output" if tied else "full-rank output"


def seeded(task: Callable[[], Sequence[Tensor]]) -> Callable[[], Sequence[Tensor]]:
    """The task with the same noise at every call."""

    def run() -> Sequence[Tensor]:
        torch.manual_seed(2)
        return task()

    return run


def _gradients(*parts: torch.nn.Module) -> list[Tensor]:
    gradients = [parameter.grad for part in parts for parameter in part.parameters()]
    assert all(gradient is not None for gradient in gradients)
    return gradients  # type: ignore[return-value]
