"""How far an image lies from its nearest ordinary ones, in pixels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from latent_ebm_text.errors import UsageError

Floats = NDArray[np.float64]
_NUM_COMPONENTS, _K = 64, 5


class ImageNeighbours:
    """Two scores of an image: the distance to its fifth nearest ordinary image, and that distance beside theirs.

    *Distance*: the euclidean distance to the fifth nearest of the ordinary images on their first 64 principal
    components (Ramaswamy et al., 2000). *Isolation*: this distance over the mean of the same distance of the five
    neighbours, as in the local outlier factor (Breunig et al., 2000). Simple images lie close together, so that a
    strange one among them may be closer to its neighbours than an ordinary image with much ink is to its own.

    Attributes:
        mean: `(pixels,)`, the mean image.
        components: `(components, pixels)`.
        known: `(m, components)`, the ordinary images.
        spacing: `(m,)`, the distance of each of them to its fifth nearest.
    """

    mean: NDArray[np.float32]
    components: NDArray[np.float32]
    known: NDArray[np.float32]
    spacing: NDArray[np.float32]

    def fit(
        self, pixels: NDArray[np.float32], *, held_out: NDArray[np.bool_] | None = None, seed: int = 0
    ) -> ImageNeighbours:
        """Keeps the images; returns itself.

        Args:
            pixels: `(m, pixels)`, ordinary images.
            held_out: `(m,)`, which of them are neighbours only, as new images will be: the principal components, which
                hold the noise of the images that they come from too, are not theirs. None by default.
            seed: Seed of the principal components, of which there is a random algorithm for many pixels.

        Raises:
            UsageError: If there are no more than five.
        """
        from sklearn.decomposition import PCA

        if len(pixels) <= _K:
            raise UsageError(f"neighbours need {_K + 1} images or more, got {len(pixels)}")
        source = pixels if held_out is None else pixels[~held_out]
        with np.errstate(invalid="ignore"):  # of images that are all the same, no share of the variance is explained
            pca = PCA(min(_NUM_COMPONENTS, *source.shape), random_state=seed).fit(source)
        self.mean = np.asarray(pca.mean_, np.float32)
        self.components = np.asarray(pca.components_, np.float32)
        self.known = self._project(pixels)
        self.spacing = np.asarray(self._nearest(self.known, skip_first=True)[0][:, -1], np.float32)
        return self

    def scores(self, pixels: NDArray[np.float32], *, known: bool = False) -> Floats:
        """Distance and isolation, `(n, 2)`, higher for the more anomalous.

        Args:
            pixels: `(n, pixels)`.
            known: Whether these are images that `fit` has seen, which are not their own neighbours.
        """
        distances, rows = self._nearest(self._project(pixels), skip_first=known)
        usual = np.maximum(self.spacing[rows].mean(axis=1), 1e-6 + 1e-3 * self.spacing.mean())
        return np.stack([distances[:, -1], distances[:, -1] / usual], axis=1)

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """All that was learned, as named arrays."""
        return {name: getattr(self, name) for name in self.__class__.__annotations__}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.float32]]) -> ImageNeighbours:
        """The neighbours whose `arrays` these are.

        Raises:
            KeyError: If an array is missing.
        """
        found = cls()
        for name in cls.__annotations__:
            setattr(found, name, np.asarray(arrays[name], np.float32))
        return found

    def _project(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray((pixels - self.mean) @ self.components.T, np.float32)

    def _nearest(self, vectors: NDArray[np.float32], *, skip_first: bool) -> tuple[Floats, NDArray[np.int64]]:
        """Distances to the five nearest known images and their rows, `(n, 5)`, from near to far."""
        from sklearn.neighbors import NearestNeighbors

        first = int(skip_first)
        search = NearestNeighbors(n_neighbors=_K + first, algorithm="brute").fit(self.known)
        distances, rows = search.kneighbors(vectors)
        return distances[:, first:].astype(np.float64), rows[:, first:]
