"""Distances between sets of images in the features of a network: FID and KID, or the same on another extractor.

Only distances on the Inception network of torch-fidelity (the weights of the original FID) are called FID and KID. On
any other network they are a Fréchet and a kernel distance on that network, comparable only with themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latent_ebm_text.errors import UsageError

#: Turns images `(batch, channels, height, width)` in [-1, 1] into features `(batch, size)`.
FeatureExtractor = Callable[[Tensor], Tensor]


def inception_features() -> FeatureExtractor:
    """The 2048 features of the Inception network of FID, by torch-fidelity; downloads its weights at first use.

    Raises:
        UsageError: If its package is missing, or its weights cannot be had.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import (  # type: ignore[import-not-found]
            FeatureExtractorInceptionV3,
        )
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that was built for another torch
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
        (result,) = network(_coloured(images).add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8))
        return result

    return features


def _coloured(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1)


@torch.no_grad()
def collect_features(extractor: FeatureExtractor, batches: Iterable[Tensor]) -> Tensor:
    """Features of all images, `(n, size)` in double precision, on the CPU."""
    return torch.cat([extractor(batch).double().cpu() for batch in batches])


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """`|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))` of Gaussians with the moments of two sets of features `(n, size)`.

    Heusel et al. (2017). Biased upward in finite samples: compare only figures of equal n.
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

    Bińkowski et al. (2018): the unbiased estimate, averaged over random subsets.

    Returns:
        The mean, and the standard deviation over subsets (which overlap: it is no standard error).
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
    """Both distances between features of real and of generated images, named by their extractor.

    Args:
        real: `(n, size)`.
        generated: `(n, size)`.
        name: Of the extractor. Only those of `"inception"` are called FID and KID.
    """
    inception = name == "inception"
    mean, deviation = kernel_distance(real, generated)
    counts = {"n_real": len(real), "n_generated": len(generated), "features": name}
    return {
        "FID" if inception else f"Fréchet distance on {name}": {"value": frechet_distance(real, generated), **counts},
        "KID" if inception else f"kernel distance on {name}": {
            "value": mean, "standard_deviation_over_subsets": deviation, **counts
        },
    }  # fmt: skip
