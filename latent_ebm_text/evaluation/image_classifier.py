"""Features for distances between images, made on the spot: those of a small classifier of the data set's own labels.

For where the weights of a well-known network cannot be downloaded. A distance in these features tells models of one
data set apart, and is comparable with nothing else.
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
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from latent_ebm_text.data.images import ImageCollator
from latent_ebm_text.errors import UsageError
from latent_ebm_text.streams import stream_seed

if TYPE_CHECKING:
    from latent_ebm_text.data.images import ImageCorpus

#: Raised whenever this file trains other weights than before: what is cached is then left alone, and trained anew.
RECIPE_VERSION = 1
NUM_STEPS, BATCH_SIZE, LEARNING_RATE = 1000, 128, 2e-3


class ImageClassifier(nn.Module):
    """Three convolutions, each of which halves an image, and a linear map of their mean over places.

    Args:
        num_channels: Of an image.
        num_classes: How many classes.
        width: Maps of the first convolution; there are `4 * width` features.
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
    """The classifier of a data set, trained on its training split; from the cache where it was trained before.

    Args:
        corpus: Images with labels.
        cache_dir: Where classifiers are kept, as safetensors.
        seed: Of weights and batches.
        progress: Wraps the range of training steps, to show progress.

    Returns:
        The classifier in evaluation mode, and its name: equal names mean equal data, labels and training.

    Raises:
        UsageError: If the images have no labels, all the same, or are smaller than 8 pixels; or the cache cannot be
            written to.
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
        torch.manual_seed(stream_seed(seed, "classifier weights"))
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
    rng = np.random.default_rng(stream_seed(seed, "classifier batches"))
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
    """Part of the test images whose class is told."""
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
