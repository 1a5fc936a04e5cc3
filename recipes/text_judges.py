"""What judges sentences with attributes: an independent classifier, a language model, and how varied they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
from latent_ebm_text.evaluation.mauve import mauve

if TYPE_CHECKING:
    from labelled_text import Reader
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

    def read(self, texts: Sequence[str], embeddings: npt.NDArray[Any]) -> list[str]:
        """The same, as a [`~labelled_text.Reader`]."""
        return self.predict(embeddings)

    def read_probs(self, texts: Sequence[str], embeddings: npt.NDArray[Any], value: str) -> npt.NDArray[Any]:
        """The probability of a value, as [`exact_probs`] gives it where an attribute is read without error."""
        return self.probs(embeddings, value)

    def accuracy(self, embeddings: npt.NDArray[Any], wanted: Sequence[str]) -> Estimate:
        """The share of sentences that have the value that is wanted of each."""
        correct = sum(a == b for a, b in zip(self.predict(embeddings), wanted, strict=True))
        definition = "share of the sentences in which logistic regression on embeddings reads the value asked for"
        return Estimate.of_proportion(correct, len(wanted), definition)


class Judges:
    """All metrics of sentences with attributes.

    Args:
        readers: What reads every attribute.
        lm: The language model that judges fluency.
        tokenizer: Its tokenizer.
        embeddings: Embeddings of real sentences, which generated ones are compared with.
        values: The values of each of these.
    """

    def __init__(
        self,
        readers: Mapping[str, Reader],
        lm: LanguageModel,
        tokenizer: PreTrainedTokenizerBase,
        embeddings: npt.NDArray[Any],
        values: Sequence[Mapping[str, str]],
    ) -> None:
        self.readers, self._lm, self._tokenizer = readers, lm, tokenizer
        self._embeddings, self._values = embeddings, values

    def perplexity(self, texts: Sequence[str]) -> Estimate:
        """The perplexity per word under the language model, the end counted as a word."""
        rows = self._tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)["input_ids"]
        ids = [[self._tokenizer.bos_token_id, *row, self._tokenizer.eos_token_id] for row in rows]
        nll, _ = sentence_nll(self._lm, ids)
        words = [count_words(text) for text in texts]
        return Estimate.of_bootstrap(nll, f"perplexity per word under {self._lm.recipe.name}", tokens=words)

    def sample_metrics(self, texts: Sequence[str], wanted: Sequence[Mapping[str, str]]) -> dict[str, Estimate]:
        """Accuracy, perplexity, diversity and MAUVE of generated sentences.

        Args:
            texts: The sentences.
            wanted: The values that each of them was asked to have.
        """
        embeddings = embed_sentences(texts)
        metrics = {"accuracy": self._granted(texts, embeddings, wanted)}
        if len(wanted[0]) > 1:
            for name in wanted[0]:
                metrics[name] = self._granted(texts, embeddings, [{name: own[name]} for own in wanted])
        metrics["perplexity"] = self.perplexity(texts)
        metrics["MAUVE"] = self.mauve(embeddings, wanted)
        return metrics | {
            "distinct-2": distinct(texts, 2), "self-BLEU": self_bleu(texts, num_references=_NUM_REFERENCES)
        }  # fmt: skip

    def mauve(self, embeddings: npt.NDArray[Any], wanted: Sequence[Mapping[str, str]]) -> Estimate:
        """MAUVE of pairs of a sentence and its values against real such pairs, as many of every value as both have.

        What stands beside the embedding says which values were asked for, and is far from that of others, so that a
        sentence without them is compared with real sentences that have them.
        """
        kinds = list(dict.fromkeys(tuple(own.items()) for own in wanted))
        made: list[npt.NDArray[Any]] = []
        real: list[npt.NDArray[Any]] = []
        for place, kind in enumerate(kinds):
            own = embeddings[[row for row, values in enumerate(wanted) if tuple(values.items()) == kind]]
            others = self._embeddings[[row for row, values in enumerate(self._values) if set(kind) <= values.items()]]
            size = min(len(own), len(others))
            mark = np.tile(2.0 * np.eye(len(kinds))[place], (size, 1))
            made.append(np.concatenate([own[:size], mark], axis=1))
            real.append(np.concatenate([others[:size], mark], axis=1))
        return mauve(np.concatenate(made), np.concatenate(real), "embeddings beside the values asked for")

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
            "accuracy": self._granted(texts, embeddings, wanted),
            "perplexity": self.perplexity(texts),
            "similarity": Estimate.of_mean(similarity, "cosine of the embeddings of edit and source"),
            "word overlap": Estimate.of_mean(overlap, "F1 of the bags of words of edit and source"),
        }

    def _granted(
        self, texts: Sequence[str], embeddings: npt.NDArray[Any], wanted: Sequence[Mapping[str, str]]
    ) -> Estimate:
        granted = np.ones(len(wanted), dtype=bool)
        for name in wanted[0]:
            found = self.readers[name](texts, embeddings)
            granted &= [own[name] == value for own, value in zip(wanted, found, strict=True)]
        return Estimate.of_proportion(
            int(granted.sum()), len(wanted), "share of the sentences with all values asked for, by independent judges"
        )


def exact_probs(reader: Reader) -> Callable[[Sequence[str], npt.NDArray[Any], str], npt.NDArray[Any]]:
    """What `AttributeJudge.read_probs` is for an attribute that is read without error.

    The probability is never 0, so that of sentences that all lack one value the one with the other values is best.
    """
    return lambda texts, embeddings, value: np.array(
        [0.99 if found == value else 0.01 for found in reader(texts, embeddings)]
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
    is_small = max(metrics["perplexity"].value for metrics in rows.values()) < 100
    specs = {"perplexity": ".1f" if is_small else ".0f", "self-BLEU": ".1f", "MAUVE": ".2f", "distinct-2": ".3f"}
    specs |= dict.fromkeys(("similarity", "word overlap"), ".3f")
    for name, metrics in rows.items():
        cells = [f"{metrics[key]:{specs.get(key, '.1%')}}" for key in names]
        time = f"{seconds[name]:.3f}" if name in seconds else "-"
        lines.append(f"| {name} | {metrics['accuracy'].n:,} | " + " | ".join(cells) + f" | {time} |")
    return "\n".join(lines)


def delete_words(
    text: str, probs: Callable[[Sequence[str], npt.NDArray[Any], str], npt.NDArray[Any]], value: str, most: int = 3
) -> str:
    """Deletes the words, one after the other and at most some, without which the value is most probable.

    Args:
        text: The sentence.
        probs: A classifier of the attribute, not the one that judges the result: `AttributeJudge.read_probs`.
        value: The value that is wanted.
        most: Most words that are deleted.
    """
    if most < 1:
        raise UsageError(f"most must be positive, got {most}")
    for _ in range(most):
        words = text.split()
        if len(words) < 2 or probs([text], embed_sentences([text]), value)[0] > 0.5:
            break
        shorter = [" ".join(words[:place] + words[place + 1 :]) for place in range(len(words))]
        text = shorter[int(probs(shorter, embed_sentences(shorter), value).argmax())]
    return text
