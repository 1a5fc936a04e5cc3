"""Distances in features against closed forms, and their names."""

import pytest
import torch

from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.image_features import frechet_distance, image_distances, kernel_distance
from tests.helpers import seeded


def features(n=4000, shift=0.0, scale=1.0, seed=0):
    return shift + scale * torch.randn(n, 3, dtype=torch.float64, generator=seeded(seed))


def test_frechet_distance_of_gaussians():
    # |m1 - m2|^2 + (s1 - s2)^2 in every dimension.
    assert frechet_distance(features(), features(shift=0.5, scale=2.0, seed=1)) == pytest.approx(
        3 * (0.25 + 1.0), rel=0.05
    )
    same = features()
    assert frechet_distance(same, same) == pytest.approx(0.0, abs=1e-8)


def test_frechet_distance_of_correlated_features():
    mixing = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, -1.0], [0.5, 0.0, 1.0]], dtype=torch.float64)
    first, second = features() @ mixing, features(seed=1) @ mixing.t()
    covariances = [torch.cov(part.t()) for part in (first, second)]
    product = torch.linalg.eigvals(covariances[0] @ covariances[1]).real.sqrt().sum()
    expected = sum(c.trace() for c in covariances) - 2 * product
    expected += (first.mean(0) - second.mean(0)).square().sum()
    assert frechet_distance(first, second) == pytest.approx(float(expected), rel=1e-6)


def test_kernel_distance_is_unbiased_and_sees_a_shift():
    values = [kernel_distance(features(300, seed=s), features(300, seed=s + 50), num_subsets=1)[0] for s in range(40)]
    mean, error = torch.tensor(values).mean(), torch.tensor(values).std() / 40**0.5
    assert abs(float(mean / error)) < 3
    assert kernel_distance(features(), features(shift=1.0, seed=1), num_subsets=10)[0] > 1.0


def test_only_inception_makes_fid():
    first, second = features(50), features(50, seed=1)
    assert image_distances(first, second, "inception").keys() == {"FID", "KID"}
    other = image_distances(first, second, "efficientnet-lite0")
    assert other.keys() == {"Fréchet distance on efficientnet-lite0", "kernel distance on efficientnet-lite0"}
    with pytest.raises(UsageError, match=r"got \(50, 3\) and \(50, 2\)"):
        frechet_distance(first, second[:, :2])
