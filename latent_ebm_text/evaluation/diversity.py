"""Whether generated sentences are varied, and whether they are new rather than copied from the training text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from latent_ebm_text.data.inputs import each_sentence
from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.estimates import Z_95, Estimate

NGram = tuple[str, ...]


def self_bleu(texts: Iterable[str], *, num_references: int = 99, seed: int = 0) -> Estimate:
    """Self-BLEU (Zhu et al., 2018): how much each sentence resembles others of the same model; high is monotonous.

    The sentences are shuffled into groups of `num_references + 1`, and within its group each is scored against all
    others. Groups share no sentence, so the spread of their means gives an honest standard error, which scores against
    common references would not. Sentences that fill no group are left out. Self-BLEU grows with the number of
    references: compare only values with the same number.

    Args:
        texts: Generated sentences, words separated by spaces.
        num_references: Other sentences that each is scored against.
        seed: Seed of the shuffling.

    Returns:
        Mean sentence-level BLEU-4, from 0 to 100, by sacrebleu without tokenization, with effective n-gram order and
        exponential smoothing.

    Raises:
        UsageError: If sacrebleu is not installed (names the extra), all sentences are blank, or there are too few for
            two groups.
    """
    texts = _checked(texts)
    size = num_references + 1
    if num_references < 1 or len(texts) < 2 * size:
        raise UsageError(
            f"self-BLEU against {num_references} references needs two groups of {max(size, 2)} sentences at least, "
            f"got {len(texts)}: generate more, or lower num_references (to 1 or more)"
        )
    bleu = bleu_scorer()
    order = np.random.default_rng(seed).permutation(len(texts))
    means = []
    for start in range(0, len(texts) - size + 1, size):
        group = [texts[index] for index in order[start : start + size]]
        scores = [bleu.sentence_score(text, group[:i] + group[i + 1 :]).score for i, text in enumerate(group)]
        means.append(sum(scores) / size)
    estimate = Estimate.of_mean(
        torch.tensor(means),
        f"mean sentence BLEU-4 (0 to 100) of each sentence against {num_references} others, in {len(means)} disjoint "
        "groups",
        num_references=num_references,
        num_groups=len(means),
        signature=str(bleu.get_signature()),
    )
    low, high = estimate.interval_95
    return replace(estimate, interval_95=(max(0.0, low), min(100.0, high)), n=len(means) * size)


def bleu_scorer() -> Any:
    """sacrebleu's scorer of sentences whose words are separated by spaces.

    Raises:
        UsageError: If sacrebleu is not installed (names the extra).
    """
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError as error:
        raise UsageError("self-BLEU needs sacrebleu: pip install 'latent-ebm-text[metrics]'") from error

    return BLEU(tokenize="none", effective_order=True)


def sample_entropy(texts: Iterable[str], *, order: int = 1) -> Estimate:
    """Entropy in nats of the distribution of words (`order=1`) or of n-grams of words; low is monotonous.

    The plug-in entropy of the observed frequencies is too low, by about `(K - 1) / 2N` with `K` distinct n-grams among
    `N`; that is added (Miller and Madow). Where most n-grams were seen once the result is still too low: compare it
    only between equal numbers of sentences, and with the entropy of as many real ones.

    Args:
        texts: Generated sentences, words separated by spaces. An n-gram lies within a sentence.
        order: Length of the n-grams.

    Returns:
        The corrected entropy, with `plug_in`, `num_ngrams` and `num_distinct` among its details. The standard error,
        by the delta method, takes sentences as independent, but not the words within them.

    Raises:
        UsageError: If there are fewer than two sentences, all are blank, or none has as many words as an n-gram.
    """
    texts = _checked(texts)
    _require_order(order)
    ngrams = [_ngrams(text.split(), order) for text in texts]
    counts = Counter(ngram for sentence in ngrams for ngram in sentence)
    total = counts.total()
    if not total:
        raise UsageError(f"no sentence has {order} words: lower order")
    surprise = {ngram: -math.log(count / total) for ngram, count in counts.items()}
    plug_in = math.fsum(count * surprise[ngram] for ngram, count in counts.items()) / total
    # The linear part of each sentence's influence on the plug-in entropy.
    influence = [math.fsum(surprise[ngram] - plug_in for ngram in sentence) for sentence in ngrams]
    return Estimate.of_normal(
        plug_in + (len(counts) - 1) / (2 * total),
        math.sqrt(math.fsum(part**2 for part in influence)) / total,
        len(texts),
        f"entropy in nats of the distribution of {order}-grams of words, plug-in with Miller-Madow correction, still "
        "too low where most of them are rare; standard error by the delta method over sentences",
        plug_in=plug_in,
        num_ngrams=total,
        num_distinct=len(counts),
    )


def unique_rate(texts: Iterable[str]) -> Estimate:
    """The proportion of distinct sentences, which falls as more sentences are drawn.

    Args:
        texts: Generated sentences; two are the same if their words are.

    Raises:
        UsageError: If there are fewer than two sentences, or all are blank.
    """
    texts = _checked(texts)
    distinct = len({tuple(text.split()) for text in texts})
    return Estimate.of_proportion(distinct, len(texts), "distinct sentences over all sentences")


@dataclass(frozen=True)
class TrainingOverlap:
    """How close generated sentences come to the training text, beside how close held-out real sentences do.

    Each of the two dictionaries holds `mean_overlap`, the quantiles `overlap_q50`, `overlap_q90` and `overlap_q99`,
    and `copy_rate`.

    Attributes:
        samples: The metrics of the generated sentences.
        held_out: The metrics of real sentences that were not trained on.
        closest: The generated sentences with the highest overlap: sentence, nearest training sentence, overlap.
    """

    samples: dict[str, Estimate]
    held_out: dict[str, Estimate]
    closest: tuple[tuple[str, str, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """The overlap as JSON-able values."""
        return {
            "samples": {name: metric.to_dict() for name, metric in self.samples.items()},
            "held_out": {name: metric.to_dict() for name, metric in self.held_out.items()},
            "closest": [list(triple) for triple in self.closest],
        }


def training_overlap(
    texts: Iterable[str],
    training_texts: Iterable[str],
    held_out_texts: Iterable[str],
    *,
    order: int = 2,
    num_closest: int = 3,
) -> TrainingOverlap:
    """How much of a generated sentence stands in the nearest training sentence, and how many are exact copies.

    The overlap of two sentences is the Jaccard index of their sets of n-grams (common ones over all), the boundaries
    of the sentence counted as words. Memorisation shows as an overlap or a copy rate above that of held-out real
    sentences; short sentences recur in real text too.

    Args:
        texts: Generated sentences, words separated by spaces.
        training_texts: The sentences that the model was trained on, with the same words as the model sees
            (rare ones as `<unk>` where the model has it so).
        held_out_texts: Real sentences of the same kind that it was not trained on, the reference.
        order: Length of the n-grams.
        num_closest: How many of the closest pairs to keep.

    Raises:
        UsageError: If there are fewer than two sentences of a kind, or all of a kind are blank.
    """
    texts, training_texts = _checked(texts), _checked(training_texts, "training_texts")
    held_out_texts = _checked(held_out_texts, "held_out_texts")
    _require_order(order)
    index = _NGramIndex(training_texts, order)
    overlaps, nearest = index.nearest(texts)
    closest = np.argsort(-overlaps, kind="stable")[:num_closest]
    return TrainingOverlap(
        samples=_overlap_metrics(overlaps, index.count_copies(texts), order),
        held_out=_overlap_metrics(index.nearest(held_out_texts)[0], index.count_copies(held_out_texts), order),
        closest=tuple((texts[i], training_texts[nearest[i]], float(overlaps[i])) for i in closest),
    )


class _NGramIndex:
    """Training sentences by the n-grams they contain, so that a look-up touches only those that share one."""

    def __init__(self, texts: Sequence[str], order: int) -> None:
        self._order = order
        self._sentences = {tuple(text.split()) for text in texts}
        self._ids: dict[NGram, int] = {}
        ngram_ids: list[int] = []
        sizes = []
        for text in texts:
            ngrams = _boundary_ngrams(text, order)
            ngram_ids += [self._ids.setdefault(ngram, len(self._ids)) for ngram in ngrams]
            sizes.append(len(ngrams))
        self._sizes = np.array(sizes)
        # The sentences that hold n-gram i are _postings[_starts[i] : _starts[i + 1]].
        by_ngram = np.argsort(ngram_ids, kind="stable")
        self._postings = np.repeat(np.arange(len(texts)), self._sizes)[by_ngram]
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(ngram_ids))])

    def nearest(self, texts: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """The highest Jaccard index of each text with a training sentence, and which sentence that is, both `(n,)`."""
        overlaps, nearest = np.zeros(len(texts)), np.zeros(len(texts), dtype=np.int64)
        for row, text in enumerate(texts):
            ngrams = _boundary_ngrams(text, self._order)
            known = [self._ids[ngram] for ngram in ngrams if ngram in self._ids]
            if known:
                holders = np.concatenate([self._postings[self._starts[i] : self._starts[i + 1]] for i in known])
                common = np.bincount(holders, minlength=len(self._sizes))
                jaccard = common / (len(ngrams) + self._sizes - common)
                nearest[row] = jaccard.argmax()
                overlaps[row] = jaccard[nearest[row]]
        return overlaps, nearest

    def count_copies(self, texts: Sequence[str]) -> int:
        """How many texts are a training sentence, word for word."""
        return sum(tuple(text.split()) in self._sentences for text in texts)


def _overlap_metrics(overlaps: NDArray[np.float64], copies: int, order: int) -> dict[str, Estimate]:
    overlap = f"Jaccard index of {order}-gram sets with the nearest training sentence"
    quantiles = {
        f"overlap_q{percent}": _quantile(np.sort(overlaps), percent / 100, overlap) for percent in (50, 90, 99)
    }
    return {
        "mean_overlap": Estimate.of_mean(torch.from_numpy(overlaps), f"mean over sentences of the {overlap}"),
        **quantiles,
        "copy_rate": Estimate.of_proportion(
            copies, len(overlaps), "sentences that are a training sentence word for word"
        ),
    }


def _quantile(ordered: NDArray[np.float64], level: float, definition: str) -> Estimate:
    """A quantile of sorted values, with the interval between the order statistics around it."""
    n = len(ordered)
    margin = Z_95 * math.sqrt(n * level * (1 - level))
    low, high = math.floor(n * level - margin), math.ceil(n * level + margin)
    return Estimate(
        value=float(np.quantile(ordered, level)),
        interval_95=(float(ordered[max(low, 0)]), float(ordered[min(high, n - 1)])),
        n=n,
        definition=f"{level:.0%} quantile over sentences of the {definition}; interval between order statistics",
    )


def _ngrams(words: Sequence[str], order: int) -> list[NGram]:
    return [tuple(words[i : i + order]) for i in range(len(words) - order + 1)]


def _boundary_ngrams(text: str, order: int) -> set[NGram]:
    """The n-grams of a sentence with its boundaries, which are empty words and so equal to no real one."""
    boundary = [""] * (order - 1)
    return set(_ngrams([*boundary, *text.split(), *boundary], order))


def _require_order(order: int) -> None:
    if order < 1:
        raise UsageError(f"order of the n-grams must be at least 1, got {order}")


def _checked(texts: Iterable[str], name: str = "texts") -> list[str]:
    """Refuses what a broken generation or a wrong path gives, which would otherwise be measured all the same."""
    texts = list(each_sentence(texts, name))
    if len(texts) < 2:
        raise UsageError(f"{name} must hold at least 2 sentences, got {len(texts)}")
    if not any(text.split() for text in texts):
        raise UsageError(f"all {len(texts)} sentences of {name} are blank; look at how they were made")
    return texts
