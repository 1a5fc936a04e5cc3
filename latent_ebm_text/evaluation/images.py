"""Evaluation of an image model: test MSE, reconstruction and prior NLL, use of the latent, samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from latent_ebm_text.evaluation.estimates import Estimate
from latent_ebm_text.evaluation.latents import compare_latents
from latent_ebm_text.evaluation.mode import evaluation_mode
from latent_ebm_text.samplers import watch_chain
from latent_ebm_text.streams import stream

if TYPE_CHECKING:
    from latent_ebm_text.data.images import ImageCollator
    from latent_ebm_text.modeling_image import LatentEBMForImageGeneration


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
) -> dict[str, Any]:
    """How well the model explains images through their own latents, and through latents of the prior.

    - `mse`: squared error of reconstructions, mean over pixels in [-1, 1] and channels, with z drawn by the model's
      own posterior sampler: the "MSE" of the paper's Table 1 where the images are those of a test split.
    - `reconstruction_nll`: `-log p(x | z)` in nats per image, with the same z; a density, which may be negative.
    - `prior_nll`: the same with z drawn from the prior. The difference is what the latent tells about the image.
    - `latents`: a [`~latent_ebm_text.evaluation.latents.LatentReport`].

    Two independent chains per image are averaged.

    Args:
        model: The model.
        dataset: Rows with `pixels`.
        collate: Makes a batch of rows.
        batch_size: Images a batch.
        max_images: Use the first so many only.
        seed: Of the chains.
        progress: Wraps the range of batch starts, to show progress.

    Returns:
        JSON-able figures, each with standard error, number of images and 95 % interval.
    """
    parts: list[tuple[Tensor, ...]] = []
    with evaluation_mode(model):
        batches = collate.batches(dataset, batch_size, max_images=max_images, progress=progress)
        for number, pixels in enumerate(batches):
            pixels = pixels.to(model.device)
            generator = stream(seed, "evaluation", number, device=model.device)
            first, second = (model.score(pixels, generator=generator) for _ in range(2))
            prior = model.sample_prior(len(pixels), generator=generator).latents
            prior_nll = -model.log_prob(pixels, latents=prior)
            nll = -(first.log_likelihood + second.log_likelihood) / 2
            mse = (first.reconstruction + second.reconstruction) / 2
            parts.append((first.latents, second.latents, prior, first.prior_energy, nll, prior_nll, mse))
    first_z, second_z, prior_z, energy, nll, prior_nll, mse = (torch.cat(part) for part in zip(*parts, strict=True))
    return {
        "mse": Estimate.of_mean(mse).to_dict(),
        "reconstruction_nll": Estimate.of_mean(nll).to_dict(),
        "prior_nll": Estimate.of_mean(prior_nll).to_dict(),
        "latents": compare_latents(first_z, second_z, prior_z, energy, model.prior.energy(prior_z)).to_dict(),
    }


@torch.no_grad()
def generate_images(
    model: LatentEBMForImageGeneration, num_samples: int, *, batch_size: int = 256, seed: int = 0
) -> Tensor:
    """Images of the model, `(num_samples, num_channels, image_size, image_size)` in [-1, 1], on the CPU."""
    images = []
    with evaluation_mode(model):
        for number, start in enumerate(range(0, num_samples, batch_size)):
            generator = stream(seed, "samples", number, device=model.device)
            size = min(batch_size, num_samples - start)
            images.append(model.generate(num_samples=size, generator=generator).cpu())
    return torch.cat(images)


@torch.no_grad()
def chain_strips(
    model: LatentEBMForImageGeneration,
    num_chains: int,
    *,
    num_pictures: int = 8,
    multiples: Sequence[int] = range(1, 11),
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """What the prior's chains show on their way, and for some times their length (the paper's transition figure).

    Args:
        model: The model.
        num_chains: Number of chains, from N(0, I).
        num_pictures: Pictures within the training chain, the start and the end included.
        multiples: After how many times the training chain there is a picture; the first of them is 1.
        seed: Of starts and noise.

    Returns:
        Images `(num_chains, num_pictures + len(multiples) - 1, channels, size, size)` in [-1, 1], and the energies
        after every step, `(1 + num_steps * max(multiples), num_chains)` in nats.
    """
    generator = stream(seed, "chain strips", device=model.device)
    latents, sampler = model.sample_reference(num_chains, generator), model.prior_sampler
    shown = torch.linspace(0, sampler.num_steps, num_pictures).round().int().tolist()
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

    Oversaturation, which chains in pixel space end in, shows as a mean absolute value above that of real images.

    Args:
        model: The model, with an energy-based prior.
        real: Real images `(n, channels, size, size)` to compare with.
        num_steps: Steps of the long chains, rounded up to a multiple of the training chain.
        num_chains: How many.
        seed: Of starts and noise.

    Returns:
        Pictures of the chains `(num_chains, pictures, channels, size, size)`, the training chain's first; and the mean
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
            name: Estimate.of_mean(images.abs().flatten(1).mean(dim=1)).to_dict() for name, images in ends.items()
        },
        "energy": {f"{step} steps": Estimate.of_mean(energies[step]).to_dict() for step in (length, steps)},
    }
