"""Unsupervised anomaly detection on images: one class is held out and should look improbable (paper, section 4.4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from latent_ebm_text.anomaly.calibration import LatentCalibration
from latent_ebm_text.data.images import ImageCorpus
from latent_ebm_text.errors import DataError, UsageError
from latent_ebm_text.evaluation.image_features import image_classes
from latent_ebm_text.latents.rng import derived_generator, derived_seed
from latent_ebm_text.latents.samplers import LangevinSampler
from latent_ebm_text.latents.samplers.schedules import schedule_values
from latent_ebm_text.models.sharing import share_out
from latent_ebm_text.networks.dropout import evaluation_mode

if TYPE_CHECKING:
    from latent_ebm_text.data.images import ImageCollator
    from latent_ebm_text.models.modeling_image import LatentEBMForImageGeneration

#: Share of the normal images that a model is trained on.
TRAINING_PART = 0.8
#: The anomaly scores, higher for the more anomalous. `joint` is the paper's. `proposal` needs a model with an encoder;
#: `mode`, and the last three, must be asked for.
SCORES = {
    "joint": "E(z) - log p(x | z), which is -log p(x, z) up to a constant, at a draw of the model's posterior sampler",
    "proposal": "E(z) - log p(x | z) at the mean of the encoder's proposal",
    "mode": "E(z) - log p(x | z) at the most probable of several latents, each found by noiseless steps from a draw",
    "squared_error": "squared error per pixel at the latent of mode, or else of proposal",
    "unexplained": "that squared error divided by the squared distance from the model's mean image, so that no image "
    "scores high merely because it has much ink",
    "prior_energy": "E(z) at that latent",
    "error": "log of the squared error less what is usual at this latent, in standard deviations of training images",
    "rarity": "-log density of this latent under a mixture of Gaussians, in standard deviations of training images",
    "calibrated": "the larger of error and rarity, which finds what either of them finds",
}


def held_out_split(labels: NDArray[np.int64], held_out: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Training and test images in the protocol of the paper and its predecessors.

    A model is trained on 80 % of the images of all classes but one, drawn at random. The rest of these images and all
    images of the class held out are scored.

    Args:
        labels: `(n,)`, the class of each image.
        held_out: The class that is an anomaly.
        seed: Seed of the draw.

    Returns:
        Ascending indices of the training images and of the test images.

    Raises:
        DataError: If there is no such class, or no other.
    """
    classes = np.unique(labels).tolist()
    if held_out not in classes:
        raise DataError(f"class {held_out} is not among those of the images: {classes}")
    if len(classes) < 2:
        raise DataError(f"all images are of class {held_out}: anomaly detection needs at least two classes")
    normal = np.flatnonzero(labels != held_out)
    order = np.random.default_rng(derived_seed(seed, "held-out split", held_out)).permutation(len(normal))
    size = int(TRAINING_PART * len(normal))
    test = np.concatenate([normal[order[size:]], np.flatnonzero(labels == held_out)])
    return np.sort(normal[order[:size]]), np.sort(test)


def image_labels(corpus: ImageCorpus) -> tuple[Any, NDArray[np.int64]]:
    """The images of all splits of a corpus, and their classes.

    Raises:
        UsageError: If the corpus has no labels.
    """
    from datasets import concatenate_datasets

    labels = [image_classes(corpus, split) for split in corpus.splits]
    return concatenate_datasets(list(corpus.splits.values())), np.concatenate(labels)


@torch.no_grad()
def anomaly_scores(
    model: LatentEBMForImageGeneration,
    images: Any,
    collate: ImageCollator,
    *,
    num_chains: int = 4,
    mode_steps: int = 50,
    batch_size: int = 256,
    seed: int = 0,
    training_images: Any = None,
    progress: Callable[[range], Any] = iter,
    accelerator: Accelerator | None = None,
) -> dict[str, Tensor]:
    """The scores of [`SCORES`] that are available, `(n,)` each; higher for the more anomalous.

    Args:
        model: The model.
        images: Rows with `pixels`.
        collate: Makes a batch of rows.
        num_chains: Latents per image among which `mode` chooses the most probable; 0 leaves `mode` out.
        mode_steps: Noiseless steps from each of them, of the size of the posterior sampler's last step.
        batch_size: Images per batch.
        seed: Seed of the chains.
        training_images: Rows with `pixels` that the model was trained on, a few thousand, for the calibrated score.
        progress: Wraps the range of batches, to show progress.
        accelerator: The processes that share the batches, all of which call this; this one alone by default.

    Raises:
        UsageError: If there is neither an encoder nor a chain whose latent could be scored.
    """
    if num_chains < 1 and model.encoder is None:
        raise UsageError("a model without an encoder needs num_chains of 1 or more")
    options: dict[str, Any] = {"num_chains": num_chains, "mode_steps": mode_steps, "batch_size": batch_size}
    options |= {"seed": seed, "progress": progress, "accelerator": accelerator}
    scores, latents = _scores_and_latents(model, images, collate, **options)
    if training_images is not None:
        usual, usual_latents = _scores_and_latents(model, training_images, collate, **options)
        calibration = LatentCalibration().fit(usual_latents.numpy(), usual["squared_error"].numpy(), seed=seed)
        found = calibration.scores(latents.numpy(), scores["squared_error"].numpy())
        scores |= {name: torch.from_numpy(values) for name, values in found.items()}
    return scores


def _scores_and_latents(
    model: LatentEBMForImageGeneration,
    images: Any,
    collate: ImageCollator,
    *,
    num_chains: int,
    mode_steps: int,
    batch_size: int,
    seed: int,
    progress: Callable[[range], Any],
    accelerator: Accelerator | None,
) -> tuple[dict[str, Tensor], Tensor]:
    """The scores that need no training images, and the latents `(n, latent_dim)` of the squared errors, in float64."""
    with evaluation_mode(model):
        generator = derived_generator(seed, "mean image", device=model.device)
        mean_image = model.generate(num_samples=512, generator=generator).mean(dim=0)

    def score(number: int) -> dict[str, Tensor]:
        pixels = collate.batch(images, number * batch_size, min((number + 1) * batch_size, len(images)))
        pixels = pixels.to(model.device)
        generator = derived_generator(seed, "anomaly scores", number, device=model.device)
        draws = model.posterior_draws(
            pixels, num_draws=max(num_chains, 1), batch_size=len(pixels), generator=generator
        )
        last = model.score(pixels, latents=draws[0], batch_size=len(pixels))
        found = {"joint": last.joint_energy}
        if model.encoder is not None:
            proposal = model.encoder.propose({"pixel_values": pixels}).mean
            last = model.score(pixels, latents=proposal, batch_size=len(pixels))
            found["proposal"] = last.joint_energy
        if num_chains > 0:
            mode = _most_probable(model, pixels, draws, mode_steps)
            last = model.score(pixels, latents=mode, batch_size=len(pixels))
            found["mode"] = last.joint_energy
        assert last.squared_error is not None
        distance = (pixels - mean_image).square().flatten(1).mean(dim=1).cpu()
        found["squared_error"], found["prior_energy"] = last.squared_error, last.prior_energy
        found["unexplained"] = last.squared_error / distance.clamp(min=1e-6)  # the mean image itself has none
        return found | {"latents": last.latents[0].double()}

    with evaluation_mode(model):
        parts = share_out(score, -(-len(images) // batch_size), accelerator, progress=progress)
    joined = {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}
    latents = joined.pop("latents")
    return joined, latents


def _most_probable(model: LatentEBMForImageGeneration, pixels: Tensor, draws: Tensor, num_steps: int) -> Tensor:
    """For every image, the best latent that noiseless steps from its draws `(num_draws, n, latent_dim)` find."""
    sampler = model.posterior_sampler
    assert isinstance(sampler, LangevinSampler)  # the only one that the recipes use
    size = schedule_values(sampler.step_size, sampler.num_steps, name="step_size")[-1]
    climb = replace(sampler, num_steps=num_steps, step_size=size, temperature=0.0, integrator="euler")
    ends = torch.stack([model.encode(pixels, initial_latents=draw, sampler=climb) for draw in draws])
    energies = torch.stack([model.score(pixels, latents=end, batch_size=len(pixels)).joint_energy for end in ends])
    return ends[energies.argmin(dim=0), torch.arange(len(pixels))]
