"""The score and the training step of an image model, against the same model in plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import partial

import torch
from cases_posterior import _gradients, seeded
from sizes import Sizes
from timing import Case, Product, comparison
from torch import Tensor, nn

from latent_ebm_text import LatentEBMForImageGeneration, LatentEBMImageConfig
from latent_ebm_text.training.arguments import TrainingArguments
from latent_ebm_text.training.step import build_optimizer


def images(sizes: Sizes, repeats: int) -> Iterator[str]:
    """The gradient of `log p(x | z)` in z, and a training step (20 posterior and 60 prior steps), of one batch, at the
    paper's size for SVHN. The plain code is written as published scripts are: two calls of autograd a step."""
    return comparison([partial(image_gradient, sizes), partial(image_step, sizes)], repeats)


def _model(sizes: Sizes) -> LatentEBMForImageGeneration:
    torch.manual_seed(0)
    width = sizes.image_width
    config = LatentEBMImageConfig(
        latent_dim=sizes.image_latent,
        decoder_channels=[8 * width, 4 * width, 2 * width],
        prior_hidden_size=sizes.prior_hidden,
        prior_sampler={"name": "langevin", "num_steps": sizes.prior_steps, "step_size": 0.4},
        posterior_sampler={"name": "langevin", "num_steps": sizes.posterior_steps, "step_size": 0.1},
    )
    return LatentEBMForImageGeneration(config)


class PlainImageModel:
    """Decoder and prior as stacks of layers, with the weights of `model`."""

    def __init__(self, model: LatentEBMForImageGeneration) -> None:
        slope = 0.2
        parts = [
            part for layer in (model.decoder.first, *model.decoder.hidden) for part in (layer, nn.LeakyReLU(slope))
        ]
        self.decoder = deepcopy(nn.Sequential(*parts, model.decoder.out, nn.Tanh()))
        tilts = [part for layer in model.prior.hidden for part in (layer, nn.LeakyReLU(slope))]
        self.tilt = deepcopy(nn.Sequential(*tilts, model.prior.out))
        self.config = model.config

    def error(self, pixels: Tensor, latents: Tensor) -> Tensor:
        """`|x - g(z)|^2 / (2 sigma^2)`, summed over the batch."""
        return (pixels - self.decoder(latents[:, :, None, None])).square().sum() / (2 * self.config.pixel_std**2)

    def error_gradient(self, pixels: Tensor, latents: Tensor) -> Tensor:
        """Its gradient in z."""
        latents = latents.detach().requires_grad_(True)
        return torch.autograd.grad(self.error(pixels, latents), latents)[0]

    def sample(self, pixels: Tensor | None, latents: Tensor) -> Tensor:
        """The posterior's chain of these images, or the prior's chain."""
        sampler = self.config.prior_sampler if pixels is None else self.config.posterior_sampler
        step_size = sampler["step_size"]
        for _ in range(sampler["num_steps"]):
            latents = latents.detach().requires_grad_(True)
            gradient = latents - torch.autograd.grad(self.tilt(latents).sum(), latents)[0]
            if pixels is not None:
                gradient = gradient + torch.autograd.grad(self.error(pixels, latents), latents)[0]
            latents = latents - 0.5 * step_size**2 * gradient + step_size * torch.randn_like(latents)
        return latents.detach()


def image_gradient(sizes: Sizes) -> Case:
    """`d log p(x | z) / d z` of a batch."""
    model, pixels = _model(sizes), torch.rand(sizes.image_batch, 3, 32, 32) * 2 - 1
    plain, latents = PlainImageModel(model), torch.randn(sizes.image_batch, sizes.image_latent)
    return Case(
        "images, gradient in z",
        lambda: [model.decoder.likelihood({"pixel_values": pixels}).score(latents)],
        lambda: [-plain.error_gradient(pixels, latents)],
        _products(sizes, passes=2),
    )


def image_step(sizes: Sizes) -> Case:
    """Chains, loss, backward pass and update of one batch."""
    model, args = _model(sizes), TrainingArguments()
    pixels, start = (
        torch.rand(sizes.image_batch, 3, 32, 32) * 2 - 1,
        torch.randn(sizes.image_batch, sizes.image_latent),
    )
    plain, optimizer = PlainImageModel(model), build_optimizer(model, args)
    parts = (plain.decoder, plain.tilt)
    plain_optimizers = []
    for part, group in zip(parts, optimizer.param_groups, strict=True):
        settings = {key: group[key] for key in ("lr", "betas", "weight_decay")}
        plain_optimizers.append(torch.optim.AdamW(part.parameters(), **settings))

    def ours() -> Sequence[Tensor]:
        latents = model.sample_posterior({"pixel_values": pixels}, initial_latents=start).latents
        prior_latents = model.sample_prior(len(start), initial_latents=start).latents
        output = model(pixels, latents=latents, prior_latents=prior_latents)
        output.loss.backward()
        optimizer.step()
        gradients = _gradients(model.decoder, model.prior)
        optimizer.zero_grad()
        return [latents, prior_latents, *gradients]

    def plainly() -> Sequence[Tensor]:
        latents, prior_latents = plain.sample(pixels, start), plain.sample(None, start)
        (plain.error(pixels, latents) / len(start)).backward()
        (plain.tilt(prior_latents).mean() - plain.tilt(latents).mean()).backward()
        for plain_optimizer in plain_optimizers:
            plain_optimizer.step()
        gradients = _gradients(*parts)
        for plain_optimizer in plain_optimizers:
            plain_optimizer.zero_grad()
        return [latents, prior_latents, *gradients]

    return Case(
        "images, training step", seeded(ours), seeded(plainly), _products(sizes, 2 * sizes.posterior_steps + 3)
    )


def _products(sizes: Sizes, passes: int) -> tuple[Product, ...]:
    """Matrix products of so many passes through the decoder, forward or backward."""
    batch, width = sizes.image_batch, sizes.image_width
    return (
        Product(batch, sizes.image_latent, 16 * 8 * width, passes),
        Product(16 * batch, 8 * width, 16 * 4 * width, passes),
        Product(64 * batch, 4 * width, 16 * 2 * width, passes),
        Product(256 * batch, 2 * width, 16 * 3, passes),
    )
