"""Evaluation of an image model: its metrics, its samples, and the images along the chains of its prior."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from latent_ebm_text.evaluation.estimates import Estimate
from latent_ebm_text.evaluation.latents import LatentDraws, draw_metrics, latents_of_others, split_results
from latent_ebm_text.latents.rng import derived_generator
from latent_ebm_text.latents.samplers import watch_chain
from latent_ebm_text.models.sharing import share_out
from latent_ebm_text.networks.dropout import evaluation_mode

if TYPE_CHECKING:
    from latent_ebm_text.data.images import ImageCollator
    from latent_ebm_text.models.modeling_image import LatentEBMForImageGeneration


@torch.no_grad()
def evaluate_images(
    model: LatentEBMForImageGeneration,
    dataset: Any,
    collate: ImageCollator,
    *,
    batch_size: int = 256,
    max_images: int | None = None,
    seed: int = 0,
    progress: Callable[[range], Any] = iter,
    accelerator: Accelerator | None = None,
) -> dict[str, Any]:
    """How well the model explains images through their own latents and through latents of the prior.

    Args:
        model: The model; dropout is off while this runs.
        dataset: Rows with `pixels`.
        collate: Makes a batch of rows.
        batch_size: Images a batch.
        max_images: Number of images to use, from the first on; all by default.
        seed: Seed of the chains.
        progress: Wraps the range of batches, to show progress.
        accelerator: The processes that share the batches, all of which call this; this one alone by default.

    Returns:
        The metrics as `results.json` holds them: `mse` and those of
        [`~latent_ebm_text.evaluation.latents.draw_metrics`] with value, interval, n, name and definition; and
        `latents`, the plain numbers that describe the latents. On a test split, `mse` is the "MSE" of the paper's
        Table 1. The NLLs are those of a density, which may be negative.
    """
    num_images = min(len(dataset), max_images or len(dataset))
    num_batches = -(-num_images // batch_size)

    def pixels_of(number: int) -> Tensor:
        return collate.batch(dataset, number * batch_size, min((number + 1) * batch_size, num_images)).to(model.device)

    def draw(number: int) -> tuple[Tensor, ...]:
        pixels = pixels_of(number)
        generator = derived_generator(seed, "evaluation", number, device=model.device)
        scores = model.score(pixels, num_draws=2, batch_size=len(pixels), generator=generator)
        first, second = scores.latents.to(model.device)
        prior = model.sample_prior(len(pixels), generator=generator).latents
        prior_nll = -model.log_prob(pixels, latents=prior)
        energy = model.prior.energy(first)
        assert scores.squared_error is not None
        return scores.squared_error, first, second, prior, energy, scores.reconstruction, prior_nll

    with evaluation_mode(model):
        parts = share_out(draw, num_batches, accelerator, progress=progress)
        mse, first_z, second_z, prior_z, energy, nll, prior_nll = (
            torch.cat(part) for part in zip(*parts, strict=True)
        )
        others = latents_of_others(first_z).split(batch_size, dim=1)

        def exchange(number: int) -> tuple[Tensor, Tensor]:
            pixels = pixels_of(number)
            averaged = model.decoder.averaged_log_prob({"pixel_values": pixels}, others[number])
            return -model.log_prob(pixels, latents=others[number][0]), -averaged

        parts = share_out(exchange, num_batches, accelerator)
        other_nll, averaged_nll = (torch.cat(part) for part in zip(*parts, strict=True))
    prior_energy = model.prior.energy(prior_z)
    draws = LatentDraws(first_z, second_z, prior_z, energy, prior_energy, nll, prior_nll, other_nll, averaged_nll)
    metrics = {
        "mse": Estimate.of_mean(
            mse,
            "squared error per pixel in [-1, 1] of reconstructions, with z from the model's own posterior sampler, "
            "averaged over two chains",
        ),
        **draw_metrics(draws, "image"),
    }
    return split_results(metrics, len(mse))


@torch.no_grad()
def generate_images(
    model: LatentEBMForImageGeneration,
    num_samples: int,
    *,
    batch_size: int = 256,
    seed: int = 0,
    accelerator: Accelerator | None = None,
) -> Tensor:
    """Images drawn from the model, `(num_samples, num_channels, image_size, image_size)` in [-1, 1], on the CPU.

    The processes of `accelerator`, all of which call this, share the batches; all of them receive all images.
    """

    def generate(number: int) -> Tensor:
        generator = derived_generator(seed, "samples", number, device=model.device)
        size = min(batch_size, num_samples - number * batch_size)
        images: Tensor = model.generate(num_samples=size, generator=generator)
        return images.cpu()

    with evaluation_mode(model):
        batches = share_out(generate, -(-num_samples // batch_size), accelerator)
    return torch.cat([batch.cpu() for batch in batches])


@torch.no_grad()
def chain_strips(
    model: LatentEBMForImageGeneration,
    num_chains: int,
    *,
    num_images: int = 8,
    multiples: Sequence[int] = range(1, 11),
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """The images along chains of the prior, and after several times their length (the paper's transition figure).

    Args:
        model: The model.
        num_chains: Number of chains, which start from N(0, I).
        num_images: Images along the training chain, its start and end included.
        multiples: The multiples of the training chain's length after which there is an image; the first of them is 1.
        seed: Seed of the starts and of the noise.

    Returns:
        Images `(num_chains, num_images + len(multiples) - 1, channels, size, size)` in [-1, 1], and the energies
        after every step, `(1 + num_steps * max(multiples), num_chains)` in nats.
    """
    generator = derived_generator(seed, "chain strips", device=model.device)
    latents, sampler = model.sample_reference(num_chains, generator), model.prior_sampler
    shown = torch.linspace(0, sampler.num_steps, num_images).round().int().tolist()
    positions, energies = [latents], [model.prior.energy(latents)[None]]
    for repetition in range(1, max(multiples) + 1):
        visited, trace = watch_chain(sampler, latents, model.prior, generator=generator)
        latents = visited[-1]
        energies.append(trace.energies[1:])
        positions += [visited[step] for step in shown[1:-1]] if repetition == 1 else []
        positions += [latents] if repetition in multiples else []
    images = torch.stack([model.generate(latents=z) for z in positions], dim=1)
    return images.cpu(), torch.cat(energies).cpu()


@torch.no_grad()
def long_run(
    model: LatentEBMForImageGeneration, real: Tensor, *, num_steps: int = 2500, num_chains: int = 64, seed: int = 0
) -> tuple[Tensor, dict[str, Any]]:
    """Whether images stay what they are when the prior's chains run far beyond their length (paper, figure 4).

    Oversaturation, in which chains in pixel space end, shows as a mean absolute value above that of real images.

    Args:
        model: The model, with an energy-based prior.
        real: Real images `(n, channels, size, size)` to compare with.
        num_steps: Steps of the long chains, rounded up to a multiple of the training chain.
        num_chains: Number of chains.
        seed: Seed of the starts and of the noise.

    Returns:
        Images along the chains `(num_chains, images, channels, size, size)`, the training chain's first; and the mean
        absolute value of pixels (of real images, after the training chain, at the end) and energies with their errors.
    """
    length = model.prior_sampler.num_steps
    last = max(2, -(-num_steps // length))
    multiples = sorted({1, *np.geomspace(2, last, 7).round().astype(int).tolist()})
    strips, energies = chain_strips(model, num_chains, multiples=multiples, seed=seed)
    steps = length * last
    ends = {"real images": real, f"{length} steps": strips[:, -len(multiples)], f"{steps} steps": strips[:, -1]}
    return strips, {
        "mean_absolute_value": {
            name: Estimate.of_mean(
                images.abs().flatten(1).mean(dim=1), "mean absolute value of pixels in [-1, 1]"
            ).to_dict()
            for name, images in ends.items()
        },
        "energy": {
            f"{step} steps": Estimate.of_mean(energies[step], "mean energy of the chains in nats").to_dict()
            for step in (length, steps)
        },
    }
