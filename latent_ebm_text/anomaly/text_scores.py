"""The scores that a text detector fuses. Each is fitted on ordinary texts, and higher for the more anomalous."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from latent_ebm_text.anomaly.ngrams import NGramModel
from latent_ebm_text.anomaly.text_views import TextView, word_spans
from latent_ebm_text.models.vectors import LatentEBMOfVectors

Floats = NDArray[np.float64]
Arrays = dict[str, NDArray[Any]]


class TextScore(Protocol):
    """One score of texts, or several that come from one model.

    Attributes:
        names: The names of the scores.
    """

    names: ClassVar[tuple[str, ...]]

    def fit(self, view: TextView, *, seconds: float, seed: int) -> TextScore:
        """Fits the score on ordinary texts; returns itself.

        Args:
            view: The texts.
            seconds: The time that may be taken, for what learns by steps.
            seed: Seed of all draws.
        """
        ...

    def score(self, view: TextView) -> Floats:
        """The scores of texts, `(n, len(names))`."""
        ...

    def arrays(self) -> Arrays:
        """All that was learned, as named arrays."""
        ...

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> TextScore:
        """The score whose `arrays` these are."""
        ...


class Neighbours:
    """The distance to the fifth nearest embedding (Ramaswamy et al., 2000)."""

    names: ClassVar = ("neighbours",)
    _K, _CHUNK = 5, 1024

    def __init__(self, vectors: NDArray[np.float32] | None = None) -> None:
        self.vectors = np.zeros((0, 0), np.float32) if vectors is None else vectors

    def fit(self, view: TextView, *, seconds: float, seed: int) -> Neighbours:
        """Keeps the embeddings."""
        self.vectors = view.vectors
        return self

    def score(self, view: TextView) -> Floats:
        """The distances, `(n, 1)`."""
        k = min(self._K, len(self.vectors)) - 1
        squares = np.square(self.vectors).sum(axis=1)
        found = []
        for start in range(0, len(view), self._CHUNK):
            part = view.vectors[start : start + self._CHUNK]
            distances = squares - 2 * part @ self.vectors.T + np.square(part).sum(axis=1, keepdims=True)
            found.append(np.partition(distances, k, axis=1)[:, k])
        return np.sqrt(np.maximum(np.concatenate(found).astype(np.float64), 0.0))[:, None]

    def arrays(self) -> Arrays:
        """The embeddings."""
        return {"vectors": self.vectors}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Neighbours:
        """The score over these embeddings."""
        return cls(arrays["vectors"])


class _ShrunkGaussian:
    """The Mahalanobis distance under the mean and the shrunk covariance of Ledoit and Wolf (2004)."""

    names: ClassVar[tuple[str, ...]]

    def __init__(self, mean: Floats | None = None, precision: Floats | None = None) -> None:
        self.mean = np.zeros(0) if mean is None else mean
        self.precision = np.zeros((0, 0)) if precision is None else precision

    @staticmethod
    def _vectors(view: TextView) -> Floats:
        raise NotImplementedError

    def fit(self, view: TextView, *, seconds: float, seed: int) -> _ShrunkGaussian:
        """Estimates mean and covariance, in standardised coordinates."""
        from sklearn.covariance import ledoit_wolf

        vectors = self._vectors(view)
        self.mean, scale = vectors.mean(axis=0), np.maximum(vectors.std(axis=0), 1e-6)
        covariance, _ = ledoit_wolf((vectors - self.mean) / scale, assume_centered=True)
        covariance += 1e-6 * np.eye(len(covariance))
        self.precision = np.linalg.inv(covariance) / np.outer(scale, scale)
        return self

    def score(self, view: TextView) -> Floats:
        """The distances, `(n, 1)`."""
        centred = self._vectors(view) - self.mean
        squares: Floats = ((centred @ self.precision) * centred).sum(axis=1)
        return np.sqrt(np.maximum(squares, 0.0))[:, None]

    def arrays(self) -> Arrays:
        """Mean and precision."""
        return {"mean": self.mean, "precision": self.precision}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> _ShrunkGaussian:
        """The score with this mean and precision."""
        return cls(arrays["mean"], arrays["precision"])


class Mahalanobis(_ShrunkGaussian):
    """The distance of embeddings from those of ordinary texts, in their spread."""

    names = ("mahalanobis",)

    @staticmethod
    def _vectors(view: TextView) -> Floats:
        return view.vectors.astype(np.float64)


class Surface(_ShrunkGaussian):
    """The same distance of what can be counted in a text: its length, digits, marks and capitals."""

    names = ("surface",)

    @staticmethod
    def _vectors(view: TextView) -> Floats:
        return view.surface


class EmbeddingDensity:
    """`-log p(e)` of embeddings under a latent energy-based model of vectors, and the energy of their latents."""

    names: ClassVar = ("embedding density", "latent energy")
    _MAX_LATENT_DIM, _ROWS_PER_DIMENSION = 32, 4

    def __init__(self, model: LatentEBMOfVectors | None = None) -> None:
        self.model = model

    def fit(self, view: TextView, *, seconds: float, seed: int) -> EmbeddingDensity:
        """Trains the model for at most this many seconds."""
        width = view.vectors.shape[1]
        latent_dim = max(1, min(self._MAX_LATENT_DIM, len(view) // self._ROWS_PER_DIMENSION, width - 1))
        model = LatentEBMOfVectors(width, latent_dim)
        self.model = model.fit(torch.from_numpy(view.vectors), max_seconds=seconds, seed=seed)
        return self

    def score(self, view: TextView) -> Floats:
        """Both scores in nats, `(n, 2)`."""
        assert self.model is not None
        vectors = torch.from_numpy(view.vectors)
        return torch.stack([-self.model.log_prob(vectors), self.model.latent_energy(vectors)], dim=1).numpy()

    def arrays(self) -> Arrays:
        """The weights."""
        assert self.model is not None
        return {name: value.numpy() for name, value in self.model.state_dict().items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> EmbeddingDensity:
        """The score with these weights."""
        model = LatentEBMOfVectors(*arrays["decoder.weight"].shape)
        model.load_state_dict({name: torch.from_numpy(value) for name, value in arrays.items()})
        return cls(model.eval().requires_grad_(False))


class Characters:
    """The surprise of characters under 5-grams in nats, of the whole text and of its worst 20 characters in a row."""

    names: ClassVar = ("characters", "worst window")
    _ORDER, _WINDOW = 5, 20

    def __init__(self, model: NGramModel | None = None) -> None:
        self.model = NGramModel(self._ORDER) if model is None else model

    def fit(self, view: TextView, *, seconds: float, seed: int) -> Characters:
        """Counts."""
        self.model.fit(view.characters)
        return self

    def score(self, view: TextView) -> Floats:
        """Means over the characters of the text and of its worst window, `(n, 2)`."""
        surprise = self.model.surprise(view.characters)
        return np.array([[each.mean(), _worst_window(each, self._WINDOW)] for each in surprise]).reshape(-1, 2)

    def spelling(self, view: TextView) -> list[Floats]:
        """`-log p` of the characters of every word given those before them, in nats: an array for each text.

        The last entry of a text is the surprise of its end.
        """
        found = []
        for text, surprise in zip(view.texts, self.model.surprise(view.characters), strict=True):
            sums = np.concatenate([[0.0], np.cumsum(surprise)])
            found.append(np.array([*(sums[b] - sums[a] for a, b in word_spans(text)), surprise[-1]]))
        return found

    def arrays(self) -> Arrays:
        """The counts."""
        return self.model.arrays()

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Characters:
        """The score with these counts."""
        return cls(NGramModel.from_arrays(arrays))


class WordOrder:
    """The surprise of words under trigrams less that under their frequencies, in nats a word.

    The difference takes off what rare words and long texts cost, and leaves what their order costs.
    """

    names: ClassVar = ("word order",)
    _ORDER = 3

    def __init__(self, model: NGramModel | None = None) -> None:
        self.model = NGramModel(self._ORDER) if model is None else model

    def fit(self, view: TextView, *, seconds: float, seed: int) -> WordOrder:
        """Counts."""
        self.model.fit(view.words)
        return self

    def score(self, view: TextView) -> Floats:
        """Means over the words of a text, `(n, 1)`."""
        order = self.model.surprise(view.words)
        frequency = self.model.surprise(view.words, order=1)
        return np.array([(a - b).mean() for a, b in zip(order, frequency, strict=True)]).reshape(-1, 1)

    def surprise(self, view: TextView, spelling: list[Floats]) -> list[Floats]:
        """`-log p` of every word given the two before it, in nats; unknown words cost what their spelling costs.

        Args:
            view: The texts.
            spelling: What `Characters.spelling` gives for them.
        """
        return [each[:-1] for each in self.model.surprise(view.words, base=spelling)]

    def arrays(self) -> Arrays:
        """The counts."""
        return self.model.arrays()

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> WordOrder:
        """The score with these counts."""
        return cls(NGramModel.from_arrays(arrays))


def _worst_window(surprise: Floats, width: int) -> float:
    """The largest mean over `width` entries in a row; over all of them if there are fewer."""
    if len(surprise) <= width:
        return float(surprise.mean())
    sums = np.concatenate([[0.0], np.cumsum(surprise)])
    return float((sums[width:] - sums[:-width]).max() / width)


#: All scores, in the order of their columns.
TEXT_SCORES: tuple[type[Any], ...] = (Neighbours, Mahalanobis, EmbeddingDensity, Characters, WordOrder, Surface)
SCORE_COLUMNS: tuple[str, ...] = tuple(name for score in TEXT_SCORES for name in score.names)
#: Those that are fused by default. The energy of the latent is part of the density, and would count twice.
FUSED_SCORES: tuple[str, ...] = tuple(name for name in SCORE_COLUMNS if name != "latent energy")
