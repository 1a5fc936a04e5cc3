"""Features of images, and Fréchet and kernel distances between two sets of images in these features.

Features come from the Inception network of FID and KID or, where its weights cannot be downloaded, from a small
classifier that is trained on the labels of the data set itself. A distance in the features of a classifier tells
models of one data set apart, and is comparable with nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from latent_ebm_text.data.images import ImageCollator
from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents.rng import derived_seed
from latent_ebm_text.models.sharing import share_out

if TYPE_CHECKING:
    from latent_ebm_text.data.images import ImageCorpus

#: Turns images `(batch, channels, height, width)` in [-1, 1] into features `(batch, size)`.
FeatureExtractor = Callable[[Tensor], Tensor]

#: To be raised with every change of the classifier's training, so that cached classifiers are trained again.
RECIPE_VERSION = 1
NUM_STEPS, BATCH_SIZE, LEARNING_RATE = 1000, 128, 2e-3


# -------- features


@torch.no_grad()
def collect_features(
    extractor: FeatureExtractor,
    batch: Callable[[int], Tensor],
    num_batches: int,
    *,
    progress: Callable[[range], Iterable[int]] = iter,
    accelerator: Accelerator | None = None,
) -> Tensor:
    """Features of all images, `(n, size)` in double precision, on the CPU.

    Args:
        extractor: Computes the features of a batch.
        batch: The images of a batch, by its number.
        num_batches: Number of batches.
        progress: Wraps the range of batches, to show progress.
        accelerator: The processes that share the batches, all of which call this; this one alone by default.
    """
    parts = share_out(
        lambda number: extractor(batch(number)).double().cpu(), num_batches, accelerator, progress=progress
    )
    return torch.cat([part.cpu() for part in parts])


def inception_features() -> FeatureExtractor:
    """The 2048 features of the Inception network of FID, by torch-fidelity, which downloads its weights at first use.

    Raises:
        UsageError: If torch-fidelity is missing, or its weights cannot be downloaded.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import (  # type: ignore[import-not-found]
            FeatureExtractorInceptionV3,
        )
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision was built for another torch
        raise UsageError(f"FID and KID need torch-fidelity: pip install 'latent-ebm-text[fid]' ({error})") from error
    try:
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).eval()
    except OSError as error:
        raise UsageError(
            f"the weights of the Inception network cannot be downloaded ({error}): download them elsewhere first, or "
            "take the features of a classifier of the data set itself"
        ) from error

    def features(images: Tensor) -> Tensor:
        network.to(images.device)
        (result,) = network(images.expand(-1, 3, -1, -1).add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8))
        return result

    return features


class ImageClassifier(nn.Module):
    """Three convolutions, each of which halves the image, and a linear map of their mean over the image.

    Args:
        num_channels: Number of channels of an image.
        num_classes: Number of classes.
        width: Number of channels of the first convolution; there are `4 * width` features.
    """

    def __init__(self, num_channels: int, num_classes: int, width: int = 32) -> None:
        super().__init__()
        sizes = (num_channels, width, 2 * width, 4 * width)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in zip(sizes[:-1], sizes[1:], strict=True)
        )
        self.out = nn.Linear(sizes[-1], num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Images `(batch, num_channels, size, size)` in [-1, 1] to `(batch, 4 * width)`."""
        x = images.contiguous(memory_format=torch.channels_last)
        for convolution in self.convolutions:
            x = F.relu(convolution(x))
        return x.mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Unnormalised log-probabilities of the classes, `(batch, num_classes)`."""
        logits: Tensor = self.out(self.features(images))
        return logits


def load_classifier(
    corpus: ImageCorpus, *, cache_dir: str | Path, seed: int = 0, progress: Callable[[range], Iterable[int]] = iter
) -> tuple[ImageClassifier, str]:
    """The classifier of a data set, trained on its training split, or read from the cache if it was trained before.

    Args:
        corpus: Images with labels.
        cache_dir: Where classifiers are kept, as safetensors.
        seed: Seed of the initial weights and of the batches.
        progress: Wraps the range of training steps, to show progress.

    Returns:
        The classifier in evaluation mode, and its name: equal names mean equal data, labels and training.

    Raises:
        UsageError: If the images have no labels or only one class, or are smaller than 8 pixels; or if the cache
            cannot be written to.
    """
    labels = image_classes(corpus, "train")
    classes, targets = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise UsageError(f"a classifier needs two classes at least; all training images of {corpus.name} are of one")
    if corpus.image_size < 8:
        raise UsageError(f"a classifier needs images of 8 pixels at least, got {corpus.image_size}")
    identity = f"{RECIPE_VERSION} {corpus.fingerprint} {seed} ".encode() + labels.tobytes()
    name = f"classifier-{hashlib.sha256(identity).hexdigest()[:8]}"
    path = Path(cache_dir) / f"{name}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "classifier weights"))
        classifier = ImageClassifier(corpus.num_channels, len(classes))
        with contextlib.suppress(FileNotFoundError, SafetensorError):  # trained if it is not there, or damaged
            classifier.load_state_dict(load_file(path))
            return classifier.eval(), name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cache_dir {cache_dir} cannot be used: {error.strerror}; name another folder") from error
        _train(classifier, corpus, torch.from_numpy(targets), seed, progress)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    save_file(classifier.state_dict(), unfinished)
    unfinished.replace(path)  # a kill leaves a whole file or none
    return classifier.eval(), name


def _train(
    classifier: ImageClassifier,
    corpus: ImageCorpus,
    targets: Tensor,
    seed: int,
    progress: Callable[[range], Iterable[int]],
) -> None:
    rng = np.random.default_rng(derived_seed(seed, "classifier batches"))
    collate, images = ImageCollator(corpus.image_size, corpus.num_channels), corpus.splits["train"]
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, NUM_STEPS)
    classifier.train()
    for _ in progress(range(NUM_STEPS)):
        chosen = rng.choice(len(images), min(BATCH_SIZE, len(images)), replace=False)
        pixels = next(collate.batches(images.select(chosen), len(chosen)))
        loss = F.cross_entropy(classifier(pixels), targets[torch.from_numpy(chosen)])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()


@torch.no_grad()
def accuracy(classifier: ImageClassifier, corpus: ImageCorpus) -> float:
    """Proportion of the test images that are classified correctly."""
    classes = np.unique(image_classes(corpus, "train"))
    batches = ImageCollator(corpus.image_size, corpus.num_channels).batches(corpus.splits["test"], 512)
    found = classes[torch.cat([classifier(pixels).argmax(dim=1) for pixels in batches]).numpy()]
    return float((found == image_classes(corpus, "test")).mean())


def image_classes(corpus: ImageCorpus, split: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The class of each image of a split, `(n,)`.

    Raises:
        UsageError: If the corpus has no labels.
    """
    dataset = corpus.splits[split]
    if "label" not in dataset.column_names:
        raise UsageError(
            f"classes are needed, and {corpus.name} has no label column of integers: name it by label_column"
        )
    return np.asarray(dataset["label"][:], dtype=np.int64)


# -------- distances


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """`|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))` of Gaussians with the moments of two sets of features `(n, size)`.

    See Heusel et al. (2017). The distance is biased upward in finite samples: compare only values with equal n.
    """
    _require_samples(first, second)
    root = _square_root(torch.cov(first.t()))
    covariance = torch.cov(second.t())
    eigenvalues = torch.linalg.eigvalsh(root @ covariance @ root).clamp(min=0)
    means = (first.mean(dim=0) - second.mean(dim=0)).square().sum()
    traces = root.square().sum() + covariance.trace()
    return float(means + traces - 2 * eigenvalues.sqrt().sum())


def _square_root(covariance: Tensor) -> Tensor:
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    return (vectors * eigenvalues.clamp(min=0).sqrt()) @ vectors.t()


def kernel_distance(
    first: Tensor, second: Tensor, *, subset_size: int = 1000, num_subsets: int = 100, seed: int = 0
) -> tuple[float, float]:
    """Squared maximum mean discrepancy of two sets of features `(n, size)`, with the kernel `(x y / size + 1)^3`.

    This is the unbiased estimate of Bińkowski et al. (2018), averaged over random subsets.

    Returns:
        The mean, and the standard deviation over subsets, which is no standard error, since subsets overlap.
    """
    _require_samples(first, second)
    size, rng, values = min(subset_size, len(first), len(second)), np.random.default_rng(seed), []
    for _ in range(num_subsets):
        x, y = (part[torch.from_numpy(rng.permutation(len(part))[:size])] for part in (first, second))
        xx, yy, xy = (((a @ b.t()) / a.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
        within = sum(float(kernel.sum() - kernel.trace()) / (size * (size - 1)) for kernel in (xx, yy))
        values.append(within - 2 * float(xy.mean()))
    return float(np.mean(values)), float(np.std(values))


def _require_samples(first: Tensor, second: Tensor) -> None:
    if first.dim() != 2 or second.dim() != 2 or first.shape[1] != second.shape[1] or min(len(first), len(second)) < 2:
        raise UsageError(
            f"a distance needs two sets of features (n, size) with n of 2 or more, got {tuple(first.shape)} and "
            f"{tuple(second.shape)}"
        )


def image_distances(real: Tensor, generated: Tensor, name: str) -> dict[str, Any]:
    """Both distances between the features of real and of generated images.

    Args:
        real: `(n, size)`.
        generated: `(n, size)`.
        name: The name of the extractor. Only distances in the features of `"inception"` are called FID and KID.

    Returns:
        JSON-able values by the names of the distances.
    """
    frechet, kernel = ("FID", "KID")
    if name != "inception":
        frechet, kernel = f"Fréchet distance on {name}", f"kernel distance on {name}"
    mean, deviation = kernel_distance(real, generated)
    counts = {"n_real": len(real), "n_generated": len(generated), "features": name}
    return {
        frechet: {"value": frechet_distance(real, generated), **counts},
        kernel: {"value": mean, "standard_deviation_over_subsets": deviation, **counts},
    }
