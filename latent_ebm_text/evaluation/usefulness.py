"""Whether a latent can be used: what a sentence's reconstruction keeps, and what a label can be told from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator

from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.estimates import Estimate
from latent_ebm_text.evaluation.text import Collate, batch_inputs
from latent_ebm_text.latents.rng import derived_generator
from latent_ebm_text.models.sharing import share_out

if TYPE_CHECKING:
    from latent_ebm_text.models.modeling_text import LatentEBMForTextGeneration

#: Neighbours whose labels are compared.
NUM_NEIGHBOURS = 5
#: Labelled sentences of the small probe, and how many random choices of them are averaged.
FEW_LABELS, NUM_CHOICES = 200, 5


@torch.no_grad()
def reconstruction_accuracy(
    model: LatentEBMForTextGeneration,
    dataset: Any,
    collate: Collate,
    *,
    num_sentences: int,
    batch_size: int,
    seed: int,
    accelerator: Accelerator | None = None,
) -> dict[str, Estimate]:
    """What a reconstruction keeps of a sentence: tokens in their places, and whole sentences.

    It is that of `model.reconstruct`: by beam search from the encoder's mean, or without an encoder from a draw.

    Args:
        model: The model, in evaluation mode.
        dataset: The sentences.
        collate: Makes a batch of rows.
        num_sentences: Number of sentences, the first ones.
        batch_size: Sentences a batch.
        seed: Seed of the draws.
        accelerator: The processes that share the batches, all of which call this; this one alone by default.
    """
    num_sentences = min(num_sentences, len(dataset))

    def compare(number: int) -> list[tuple[float, bool]]:
        first = number * batch_size
        indices = np.arange(first, min(first + batch_size, num_sentences))
        inputs = batch_inputs(model, dataset, collate, indices)
        if model.encoder is not None:
            latents = model.check_latents(model.encoder.propose(inputs).mean)
        else:
            generator = derived_generator(seed, "reconstruction", first, device=model.device)
            latents = model.sample_posterior(inputs, generator=generator).latents
        decoded = model._decode(latents)
        compared = []
        for row, found in zip(dataset[indices]["input_ids"], decoded.tolist(), strict=True):
            hits = [token == other for token, other in zip(row[1:], found[1:], strict=False)]
            compared.append((sum(hits) / (len(row) - 1), all(hits) and len(hits) == len(row) - 1))
        return compared

    start = "a posterior draw" if model.encoder is None else "the encoder's mean"
    batches = share_out(compare, -(-num_sentences // batch_size), accelerator)
    shares, exact = zip(*(pair for batch in batches for pair in batch), strict=True)
    return {
        "tokens in place": Estimate.of_mean(
            torch.tensor(shares),
            f"share of the tokens of a sentence, its end included, that beam search from {start} has in the same "
            "place",
        ),
        "exact reconstructions": Estimate.of_proportion(
            sum(exact), len(shares), f"share of sentences that beam search from {start} gives back whole"
        ),
    }


@torch.no_grad()
def interpolation_metrics(
    model: LatentEBMForTextGeneration,
    dataset: Any,
    collate: Collate,
    *,
    num_pairs: int = 50,
    num_points: int = 8,
    seed: int,
    accelerator: Accelerator | None = None,
) -> dict[str, Estimate]:
    """Whether straight paths between the latents of two sentences pass through sentences between them.

    Args:
        model: The model, in evaluation mode.
        dataset: The sentences, of which each pair takes two; the first ones.
        collate: Makes a batch of rows.
        num_pairs: Number of paths.
        num_points: Points of a path, both ends included.
        seed: Seed of the posterior draws at the ends.
        accelerator: The processes that share the paths, all of which call this; this one alone by default.
    """
    num_pairs = min(num_pairs, len(dataset) // 2)
    inputs = batch_inputs(model, dataset, collate, np.arange(2 * num_pairs))
    generator = derived_generator(seed, "interpolation", device=model.device)
    (latents,) = share_out(lambda _: model.sample_posterior(inputs, generator=generator).latents, 1, accelerator)
    ends = latents.view(num_pairs, 2, -1)

    def walk(pair: int) -> tuple[float, float]:
        start, end = ends[pair]
        ids = model.interpolate(start, end, num_points).tolist()
        bags = [Counter(token for token in row[1:] if token != model.config.pad_token_id) for row in ids]
        nearness = np.array([_overlap(bag, bags[-1]) - _overlap(bag, bags[0]) for bag in bags])
        distinct = np.mean([a != b for a, b in zip(ids[:-1], ids[1:], strict=True)])
        return float(distinct), float(np.mean(np.diff(nearness) >= 0))

    distinct, onward = zip(*share_out(walk, num_pairs, accelerator), strict=True)
    path = f"of a straight path of {num_points} points between posterior draws of two sentences, by beam search"
    return {
        "distinct steps of a path": Estimate.of_mean(
            torch.tensor(distinct), f"share of the steps {path}, that lead to another sentence"
        ),
        "onward steps of a path": Estimate.of_mean(
            torch.tensor(onward),
            f"share of the steps {path}, after which the sentence has no less in common with the last one, less what "
            "it has in common with the first (F1 of their bags of tokens)",
        ),
    }


def _overlap(a: Counter[int], b: Counter[int]) -> float:
    """The F1 of two bags of tokens."""
    return 2 * (a & b).total() / max(a.total() + b.total(), 1)


def require_probes() -> None:
    """Raises a `UsageError` unless scikit-learn, which `label_metrics` needs, is installed."""
    if find_spec("sklearn") is None:
        raise UsageError(
            "the corpus has labels, and probes of them need scikit-learn: pip install 'latent-ebm-text[encoder]'"
        )


def label_metrics(
    name: str,
    train: npt.NDArray[Any] | Any,
    test: npt.NDArray[Any] | Any,
    train_labels: Sequence[Any],
    test_labels: Sequence[Any],
    *,
    seed: int,
) -> dict[str, Estimate]:
    """How well labels can be told from a representation: a linear probe with all labels and with few, and neighbours.

    The probe is logistic regression on the dense representation in units of its standard deviation, or on the sparse
    one as it is. Nothing is tuned.

    Args:
        name: What represents the sentences, such as "latent".
        train: `(n, dim)`, dense or sparse, training sentences.
        test: `(m, dim)`.
        train_labels: `(n,)`.
        test_labels: `(m,)`.
        seed: Seed of the choice of few labels.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import NearestNeighbors

    known, wanted = np.asarray(train_labels), np.asarray(test_labels)
    is_dense = isinstance(train, np.ndarray)
    scale = train.std(axis=0).clip(min=1e-6) if is_dense else 1.0
    scaled_train, scaled_test = (train / scale, test / scale) if is_dense else (train, test)

    def probe(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        fitted = LogisticRegression(max_iter=2000).fit(scaled_train[rows], known[rows])
        return np.asarray(fitted.predict(scaled_test) == wanted)

    orders = [np.random.default_rng([seed, choice]).permutation(len(known)) for choice in range(NUM_CHOICES)]
    few = np.mean([probe(order[:FEW_LABELS]) for order in orders], axis=0)
    metric = "euclidean" if is_dense else "cosine"
    nearest = NearestNeighbors(n_neighbors=NUM_NEIGHBOURS, metric=metric).fit(train).kneighbors(test)[1]
    agreement = (known[nearest] == wanted[:, None]).mean(axis=1)
    correct = int(probe(np.arange(len(known))).sum())
    what = f"test sentences whose label a logistic regression on the {name} tells, trained on"
    return {
        f"probe, {name}": Estimate.of_proportion(correct, len(wanted), f"share of {what} {len(known):,} labels"),
        f"probe with {FEW_LABELS} labels, {name}": Estimate.of_mean(
            torch.tensor(few), f"share of {what} {FEW_LABELS} labels, averaged over {NUM_CHOICES} random choices"
        ),
        f"neighbours of the same label, {name}": Estimate.of_mean(
            torch.tensor(agreement),
            f"share of the {NUM_NEIGHBOURS} nearest training sentences ({metric} distance of the {name}) with the "
            "label of a test sentence",
        ),
    }


def tf_idf(train: Sequence[str], test: Sequence[str]) -> tuple[Any, Any]:
    """Sparse TF-IDF vectors of words, `(n, words)` and `(m, words)`, with the settings of scikit-learn."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(token_pattern=r"(?u)\S+")
    return vectorizer.fit_transform(train), vectorizer.transform(test)
