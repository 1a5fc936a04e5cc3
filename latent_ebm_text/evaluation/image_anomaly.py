"""Unsupervised anomaly detection on images: one class is held out, and must look improbable (paper, section 4.4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latent_ebm_text.data.images import ImageCorpus
from latent_ebm_text.errors import DataError, UsageError
from latent_ebm_text.evaluation.image_classifier import image_classes
from latent_ebm_text.evaluation.mode import evaluation_mode
from latent_ebm_text.samplers import LangevinSampler
from latent_ebm_text.samplers.schedules import schedule_values
from latent_ebm_text.streams import stream, stream_seed

if TYPE_CHECKING:
    from latent_ebm_text.data.images import ImageCollator
    from latent_ebm_text.modeling_image import ImageScores, LatentEBMForImageGeneration

#: Part of the normal images that a model is trained on.
TRAINING_PART = 0.8
#: What an anomaly score is made of. The first is the paper's; `proposal` is there where a model has an encoder, `mode`
#: where it is asked for.
SCORES = {
    "joint": "-log p(x, z) at the end of one chain of the model's own posterior sampler",
    "proposal": "-log p(x, z) at the mean of what the encoder proposes",
    "mode": "-log p(x, z) at the most probable of several latents, each found by noiseless steps from such an end",
    "reconstruction": "squared error per pixel at the latent of the last of these",
    "unexplained": "the same as a part of the squared distance from the model's mean image, whatever ink an image has",
    "prior_energy": "E(z) of the same latent",
    "calibrated": "the larger of prior energy and squared error, each in standard deviations above the mean of "
    "training images: what either of them finds",
}


def held_out_split(labels: NDArray[np.int64], held_out: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The protocol of the paper and of those before it: what is trained on, and what is scored.

    Trained on: 80 % of the images of all classes but one, drawn at random. Scored: the rest of these and every image
    of the class held out.

    Args:
        labels: `(n,)`, the class of each image.
        held_out: The class that is an anomaly.
        seed: Of the draw.

    Returns:
        Indices of the images of training and of the test, ascending.

    Raises:
        DataError: If there is no such class, or no other.
    """
    classes = np.unique(labels).tolist()
    if held_out not in classes:
        raise DataError(f"class {held_out} is not among those of the images: {classes}")
    if len(classes) < 2:
        raise DataError(f"all images are of class {held_out}: anomaly detection needs at least two classes")
    normal = np.flatnonzero(labels != held_out)
    order = np.random.default_rng(stream_seed(seed, "held-out split", held_out)).permutation(len(normal))
    size = int(TRAINING_PART * len(normal))
    test = np.concatenate([normal[order[size:]], np.flatnonzero(labels == held_out)])
    return np.sort(normal[order[:size]]), np.sort(test)


def image_labels(corpus: ImageCorpus) -> tuple[Any, NDArray[np.int64]]:
    """All images of a corpus, whatever their split, and their classes.

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
) -> dict[str, Tensor]:
    """The scores of [`SCORES`] that there are, `(n,)` each; higher for the more anomalous.

    Args:
        model: The model.
        images: Rows with `pixels`.
        collate: Makes a batch of rows.
        num_chains: Latents per image among which the most probable is chosen for `mode`; 0 to leave it out.
        mode_steps: Noiseless steps, of the size of the posterior sampler's last, that each of them takes.
        batch_size: Images a batch.
        seed: Of the chains.
        training_images: Rows with `pixels` that the model was trained on, a few thousand, for the calibrated score.
        progress: Wraps the range of batch starts, to show progress.

    Raises:
        UsageError: If no latent is asked for that a reconstruction could be made of.
    """
    if num_chains < 1 and model.encoder is None:
        raise UsageError("a model without an encoder needs num_chains of 1 or more")
    parts: dict[str, list[Tensor]] = {}
    with evaluation_mode(model):
        generator = stream(seed, "mean image", device=model.device)
        mean_image = model.generate(num_samples=512, generator=generator).mean(dim=0)
        for number, pixels in enumerate(collate.batches(images, batch_size, progress=progress)):
            pixels = pixels.to(model.device)
            generator = stream(seed, "anomaly scores", number, device=model.device)
            draws = [model.score(pixels, generator=generator) for _ in range(max(num_chains, 1))]
            found = {"joint": -draws[0].log_joint}
            if model.encoder is not None:
                last = model.score(pixels, latents=model.encoder.propose({"pixel_values": pixels}).mean)
                found["proposal"] = -last.log_joint
            if num_chains > 0:
                last = _most_probable(model, pixels, draws, mode_steps)
                found["mode"] = -last.log_joint
            found["reconstruction"], found["prior_energy"] = last.reconstruction, last.prior_energy
            distance = (pixels - mean_image).square().flatten(1).mean(dim=1)
            found["unexplained"] = last.reconstruction / distance.clamp(min=1e-6)  # an image that is the mean image
            for name, score in found.items():
                parts.setdefault(name, []).append(score.cpu())
    scores = {name: torch.cat(each) for name, each in parts.items()}
    if training_images is not None:
        options = {"num_chains": num_chains, "mode_steps": mode_steps, "batch_size": batch_size, "seed": seed}
        usual = anomaly_scores(model, training_images, collate, **options, progress=progress)
        both = [(scores[name], usual[name]) for name in ("prior_energy", "reconstruction")]
        scores["calibrated"] = torch.stack([(score - own.mean()) / own.std() for score, own in both]).amax(dim=0)
    return scores


def _most_probable(
    model: LatentEBMForImageGeneration, pixels: Tensor, draws: list[ImageScores], num_steps: int
) -> ImageScores:
    """Of every image the best of the latents that noiseless steps lead to from these draws."""
    sampler = model.posterior_sampler
    assert isinstance(sampler, LangevinSampler)  # the only one that recipes make
    size = schedule_values(sampler.step_size, sampler.num_steps, name="step_size")[-1]
    climb = replace(sampler, num_steps=num_steps, step_size=size, temperature=0.0, integrator="euler")
    ends = [model.encode(pixels, initial_latents=draw.latents, sampler=climb) for draw in draws]
    joints = torch.stack([model.score(pixels, latents=end).log_joint for end in ends])
    best = torch.stack(ends)[joints.argmax(dim=0), torch.arange(len(pixels))]
    return model.score(pixels, latents=best)
