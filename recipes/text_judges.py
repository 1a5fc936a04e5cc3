"""What judges sentences with attributes: an independent classifier, a language model, and how varied they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from latent_ebm_text.data.batching import count_words
from latent_ebm_text.data.embeddings import embed_sentences
from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.diversity import self_bleu
from latent_ebm_text.evaluation.estimates import Estimate
from latent_ebm_text.evaluation.evaluator import LanguageModel, sentence_nll

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: References of self-BLEU, so that a hundred sentences are enough for two groups.
_NUM_REFERENCES = 24


class AttributeJudge:
    """Reads an attribute from a sentence by logistic regression on its embedding by a sentence encoder.

    Args:
        embeddings: `(n, width)`, those of labelled sentences that no other classifier has seen.
        labels: Their labels.
    """

    def __init__(self, embeddings: npt.NDArray[Any], labels: Sequence[str]) -> None:
        from sklearn.linear_model import LogisticRegression

        self._probe = LogisticRegression(max_iter=2000, C=10.0).fit(embeddings, np.asarray(labels))

    def probs(self, embeddings: npt.NDArray[Any], value: str) -> npt.NDArray[Any]:
        """The probability of a value, `(n,)`, given the embeddings of sentences, `(n, width)`."""
        column = self._probe.classes_.tolist().index(value)
        return np.asarray(self._probe.predict_proba(embeddings)[:, column])

    def predict(self, embeddings: npt.NDArray[Any]) -> list[str]:
        """The most probable value of each sentence."""
        return [str(value) for value in self._probe.predict(embeddings)]

    def accuracy(self, embeddings: npt.NDArray[Any], wanted: Sequence[str]) -> Estimate:
        """The share of sentences that have the value that is wanted of each."""
        correct = sum(a == b for a, b in zip(self.predict(embeddings), wanted, strict=True))
        definition = "share of the sentences in which logistic regression on embeddings reads the value asked for"
        return Estimate.of_proportion(correct, len(wanted), definition)


class Judges:
    """All metrics of sentences with attributes.

    Args:
        attributes: The judge of every attribute.
        lm: The language model that judges fluency.
        tokenizer: Its tokenizer.
    """

    def __init__(
        self, attributes: Mapping[str, AttributeJudge], lm: LanguageModel, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self.attributes, self._lm, self._tokenizer = attributes, lm, tokenizer

    def perplexity(self, texts: Sequence[str]) -> Estimate:
        """The perplexity per word under the language model, the end counted as a word."""
        rows = self._tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)["input_ids"]
        ids = [[self._tokenizer.bos_token_id, *row, self._tokenizer.eos_token_id] for row in rows]
        nll, _ = sentence_nll(self._lm, ids)
        words = [count_words(text) for text in texts]
        return Estimate.of_bootstrap(nll, f"perplexity per word under {self._lm.recipe.name}", tokens=words)

    def sample_metrics(self, texts: Sequence[str], wanted: Sequence[Mapping[str, str]]) -> dict[str, Estimate]:
        """Accuracy, perplexity and diversity of generated sentences.

        Args:
            texts: The sentences.
            wanted: The values that each of them was asked to have.
        """
        return {
            "accuracy": self._granted(embed_sentences(texts), wanted),
            "perplexity": self.perplexity(texts),
            "distinct-2": distinct(texts, 2),
            "self-BLEU": self_bleu(texts, num_references=_NUM_REFERENCES),
        }

    def edit_metrics(
        self, sources: Sequence[str], texts: Sequence[str], wanted: Sequence[Mapping[str, str]]
    ) -> dict[str, Estimate]:
        """Accuracy and perplexity of edits, and how much of the sources they keep.

        Args:
            sources: The sentences that were edited.
            texts: The edits.
            wanted: The values that each of them was asked to have.
        """
        embeddings, origin = embed_sentences(texts), embed_sentences(sources)
        similarity = torch.from_numpy((embeddings * origin).sum(axis=1))
        overlap = torch.tensor([word_overlap(a, b) for a, b in zip(sources, texts, strict=True)])
        return {
            "accuracy": self._granted(embeddings, wanted),
            "perplexity": self.perplexity(texts),
            "similarity": Estimate.of_mean(similarity, "cosine of the embeddings of edit and source"),
            "word overlap": Estimate.of_mean(overlap, "F1 of the bags of words of edit and source"),
        }

    def _granted(self, embeddings: npt.NDArray[Any], wanted: Sequence[Mapping[str, str]]) -> Estimate:
        granted = np.ones(len(wanted), dtype=bool)
        for name, judge in self.attributes.items():
            found = judge.predict(embeddings)
            granted &= [own.get(name, value) == value for own, value in zip(wanted, found, strict=True)]
        return Estimate.of_proportion(
            int(granted.sum()), len(wanted), "share of the sentences with all values asked for, by independent judges"
        )


def distinct(texts: Sequence[str], order: int) -> Estimate:
    """distinct-n (Li et al., 2016): different n-grams over all n-grams, with a bootstrap interval over sentences.

    It falls with the number of sentences: compare only sets of the same size. Resampling repeats sentences, so that
    the interval lies below the value.
    """
    grams = [_ngrams(text.split(), order) for text in texts]

    def share(rows: Sequence[int]) -> float:
        counted = Counter(gram for row in rows for gram in grams[row])
        return len(counted) / max(1, counted.total())

    value, rng = share(range(len(texts))), np.random.default_rng(0)
    resampled = [share(rng.integers(len(texts), size=len(texts)).tolist()) for _ in range(200)]
    error = float(np.std(resampled))
    return Estimate.of_normal(value, error, len(texts), f"different {order}-grams over all {order}-grams")


def _ngrams(words: Sequence[str], order: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + order]) for start in range(len(words) - order + 1)]


def word_overlap(a: str, b: str) -> float:
    """The F1 of the bags of words of two sentences."""
    first, second = Counter(a.split()), Counter(b.split())
    return 2 * (first & second).total() / max(1, first.total() + second.total())


def metrics_table(rows: Mapping[str, Mapping[str, Estimate]], seconds: Mapping[str, float]) -> str:
    """A Markdown table, one row per setting, with errors or 95 % intervals, and seconds a sentence."""
    names = list(next(iter(rows.values())))
    lines = ["| setting | n | " + " | ".join(names) + " | s a sentence |", "|---" * (len(names) + 3) + "|"]
    specs = {"accuracy": ".1%", "perplexity": ".0f", "self-BLEU": ".1f"}
    for name, metrics in rows.items():
        cells = [f"{metrics[key]:{specs.get(key, '.3f')}}" for key in names]
        time = f"{seconds[name]:.3f}" if name in seconds else "-"
        lines.append(f"| {name} | {metrics['accuracy'].n:,} | " + " | ".join(cells) + f" | {time} |")
    return "\n".join(lines)


def delete_words(text: str, judge: AttributeJudge, value: str, most: int = 3) -> str:
    """Deletes the words, one after the other and at most some, without which the value is most probable.

    Args:
        text: The sentence.
        judge: A classifier of the attribute, not the one that judges the result.
        value: The value that is wanted.
        most: Most words that are deleted.
    """
    if most < 1:
        raise UsageError(f"most must be positive, got {most}")
    for _ in range(most):
        words = text.split()
        if len(words) < 2 or judge.probs(embed_sentences([text]), value)[0] > 0.5:
            break
        shorter = [" ".join(words[:place] + words[place + 1 :]) for place in range(len(words))]
        text = shorter[int(judge.probs(embed_sentences(shorter), value).argmax())]
    return text
