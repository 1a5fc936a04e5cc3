"""Distances to the nearest ordinary images, against a search by hand and where the spacing of images is known."""

import numpy as np
import pytest
from safetensors.numpy import load, save

from latent_ebm_text.anomaly.conformal import conformal_p_values
from latent_ebm_text.anomaly.image_neighbours import ImageNeighbours
from latent_ebm_text.errors import UsageError


def pixels(number: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(number, 12)).astype(np.float32)


def distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.sort(np.linalg.norm(first[:, None] - second[None], axis=2), axis=1)


def test_the_distance_is_that_to_the_fifth_nearest() -> None:
    """With as many components as pixels nothing is lost by the projection."""
    ordinary, new = pixels(40), pixels(9, seed=1)
    neighbours = ImageNeighbours().fit(ordinary)
    np.testing.assert_allclose(neighbours.scores(new)[:, 0], distances(new, ordinary)[:, 4], rtol=1e-4)
    np.testing.assert_allclose(
        neighbours.scores(ordinary, known=True)[:, 0], distances(ordinary, ordinary)[:, 5], rtol=1e-4
    )


def test_isolation_is_relative_to_the_neighbours() -> None:
    """A dense and a sparse cluster: at the same distance from either, an image is stranger beside the dense one."""
    dense, sparse = 0.1 * pixels(60), 10 + pixels(60, seed=1)
    neighbours = ImageNeighbours().fit(np.concatenate([dense, sparse]))
    far = np.zeros((1, 12), np.float32)
    far[0, 0] = 3.0
    near_dense, near_sparse = (neighbours.scores(centre + far)[0] for centre in (np.float32(0), np.float32(10)))
    assert near_dense[1] > 3 * near_sparse[1]
    ordinary = neighbours.scores(np.concatenate([dense, sparse]), known=True)
    assert np.median(ordinary[:60, 0]) < 0.2 * np.median(ordinary[60:, 0])
    assert np.median(ordinary[:60, 1]) == pytest.approx(np.median(ordinary[60:, 1]), rel=0.1)


def test_equal_images_have_finite_scores() -> None:
    neighbours = ImageNeighbours().fit(np.zeros((20, 12), np.float32))
    assert np.isfinite(neighbours.scores(pixels(3))).all()


def test_they_are_saved_without_loss() -> None:
    neighbours = ImageNeighbours().fit(pixels(40))
    arrays = {name: np.ascontiguousarray(array) for name, array in neighbours.arrays().items()}
    again = ImageNeighbours.from_arrays(load(save(arrays)))
    np.testing.assert_array_equal(again.scores(pixels(5, seed=2)), neighbours.scores(pixels(5, seed=2)))


def test_too_few_images_are_refused() -> None:
    with pytest.raises(UsageError, match="6 images or more, got 5"):
        ImageNeighbours().fit(pixels(5))


def test_held_out_images_are_as_far_as_new_ones() -> None:
    """Components that are fitted on few images hold their noise, and put them farther apart than any new image."""
    shares = []
    for seed in range(20):
        images = np.random.default_rng(seed).normal(size=(300, 400)).astype(np.float32)
        held_out = np.arange(100) < 20
        neighbours = ImageNeighbours().fit(images[:100], held_out=held_out)
        known, new = neighbours.scores(images[:100], known=True)[held_out, 0], neighbours.scores(images[100:])[:, 0]
        shares.append(np.mean(conformal_p_values(known, new) <= 0.25))
    assert 0.15 < np.mean(shares) < 0.25
