"""Vectors of texts without a sentence encoder: latent semantic analysis of their words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class LexicalEmbedder:
    """TF-IDF of hashed words, reduced to their leading directions (Deerwester et al., 1990).

    Args:
        idf: `(num_features,)`, inverse document frequencies.
        directions: `(num_features, width)`, the leading directions.
    """

    _NUM_FEATURES, _WIDTH = 2**14, 100

    def __init__(self, idf: Floats, directions: Floats) -> None:
        self.idf, self.directions = idf, directions

    @classmethod
    def fit(cls, texts: Sequence[str], *, seed: int = 0) -> LexicalEmbedder:
        """Learns frequencies and directions from texts, at least three.

        Args:
            texts: The texts.
            seed: Seed of the randomised decomposition.
        """
        from sklearn.utils.extmath import randomized_svd

        counts = cls._counts(texts)
        occurrences = np.bincount(counts.indices, minlength=cls._NUM_FEATURES)
        idf = (np.log((1 + len(texts)) / (1 + occurrences)) + 1).astype(np.float32)
        width = max(2, min(cls._WIDTH, len(texts) - 1))
        _, _, directions = randomized_svd(_normalised(counts.multiply(idf).tocsr()), width, random_state=seed)
        return cls(idf, np.ascontiguousarray(directions.T, dtype=np.float32))

    def __call__(self, texts: Sequence[str]) -> Floats:
        """The vectors `(n, width)`, of length 1 at most."""
        weighted = _normalised(self._counts(texts).multiply(self.idf).tocsr())
        return np.asarray(weighted @ self.directions, dtype=np.float32)

    @classmethod
    def _counts(cls, texts: Sequence[str]) -> Any:
        """Word counts, dampened, as a sparse matrix `(n, num_features)`."""
        from sklearn.feature_extraction.text import HashingVectorizer

        hashing = HashingVectorizer(n_features=cls._NUM_FEATURES, norm=None, alternate_sign=False)
        counts = hashing.transform(texts)
        counts.data = 1 + np.log(counts.data)
        return counts

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Frequencies and directions."""
        return {"idf": self.idf, "directions": self.directions}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> LexicalEmbedder:
        """The vectors with these frequencies and directions."""
        return cls(arrays["idf"], arrays["directions"])


def _normalised(matrix: Any) -> Any:
    from sklearn.preprocessing import normalize

    return normalize(matrix)
