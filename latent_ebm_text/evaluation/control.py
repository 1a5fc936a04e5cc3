"""Whether generated sentences of the embedded corpus have the attributes asked for, and are still sentences."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latent_ebm_text.data.grammar import GrammarSentence, ProbabilisticGrammar
from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.estimates import Estimate
from latent_ebm_text.evaluation.measurements import Measurement
from latent_ebm_text.latents.training import wilson_interval


class AttributeReader:
    """Reads an attribute from a sentence: exactly where the grammar has it, else from its words.

    A sentence of the language has one derivation, and so one value of every attribute. For other sentences the words
    and their number decide, by naive Bayes with add-one smoothing over sentences of the corpus.

    Args:
        grammar: The grammar.
        sentences: Sentences of its language, to count words in.
    """

    def __init__(self, grammar: ProbabilisticGrammar, sentences: Sequence[GrammarSentence]) -> None:
        if not sentences:
            raise UsageError("an attribute reader needs sentences to count words in")
        self._grammar = grammar
        self._vocabulary = frozenset(grammar.vocabulary())
        self._values: dict[str, Counter[str]] = {}
        self._words: dict[tuple[str, str], Counter[str]] = {}
        for sentence in sentences:
            for name, value in sentence.attributes.items():
                self._values.setdefault(name, Counter())[value] += 1
                self._words.setdefault((name, value), Counter()).update(self._features(sentence.text))

    def _features(self, text: str) -> set[str]:
        """The known words of a sentence, and their number."""
        words = text.split()
        return (set(words) & self._vocabulary) | {f"{len(words)} words"}

    def by_words(self, text: str, attribute: str) -> str:
        """The value that the words speak for."""
        counts, features = self._values[attribute], self._features(text)

        def log_prob(value: str) -> float:
            seen, total = self._words[attribute, value], counts[value]
            return math.log(total) + sum(math.log((seen[feature] + 1) / (total + 2)) for feature in features)

        return max(counts, key=log_prob)

    def read(self, text: str, attribute: str, parsed: GrammarSentence | None) -> str:
        """The value of an attribute, given what the grammar's parser says of the sentence."""
        return self.by_words(text, attribute) if parsed is None else parsed.attributes[attribute]


@dataclass(frozen=True)
class Wish:
    """What a set of sentences was asked for: `attribute` to be `value`, or not to be."""

    attribute: str
    value: str
    negated: bool = False

    def holds(self, found: str) -> bool:
        """Whether a value that was read grants it."""
        return (found == self.value) != self.negated

    def __str__(self) -> str:
        return f"{'not ' if self.negated else ''}{self.attribute}={self.value}"


def control_figures(
    texts: Sequence[str], wishes: Sequence[Sequence[Wish]], grammar: ProbabilisticGrammar, reader: AttributeReader
) -> dict[str, Measurement]:
    """Accuracy of control beside fluency.

    Args:
        texts: Generated sentences.
        wishes: For each of them what it was asked for; all of a sentence's wishes must hold.
        grammar: Judges fluency.
        reader: Reads the attributes.

    Returns:
        `accuracy`, `grammatical rate` (both with Wilson's interval), and `perplexity` per word, the exact one under
        the grammar of the sentences of its language (left out where there are fewer than two).
    """
    if len(texts) != len(wishes) or not texts:
        raise UsageError(
            f"every sentence needs its wishes, got {len(texts)} sentences and {len(wishes)} sets of wishes"
        )
    parsed = [grammar.parse(text) for text in texts]
    granted = sum(
        all(wish.holds(reader.read(text, wish.attribute, sentence)) for wish in wanted)
        for text, sentence, wanted in zip(texts, parsed, wishes, strict=True)
    )
    sentences = [sentence for sentence in parsed if sentence is not None]
    n, words = len(texts), "attributes by the grammar's parser, by the words where a sentence has no derivation"
    figures = {
        "accuracy": Measurement(granted / n, wilson_interval(granted, n), n, f"sentences as asked for; {words}"),
        "grammatical rate": Measurement(
            len(sentences) / n, wilson_interval(len(sentences), n), n, "sentences of the grammar's language"
        ),
    }
    if len(sentences) > 1:
        figures["perplexity"] = _perplexity(sentences)
    return figures


def _perplexity(sentences: Sequence[GrammarSentence]) -> Measurement:
    import torch

    tokens = [len(sentence.text.split()) + 1 for sentence in sentences]
    rate = -sum(sentence.log_prob for sentence in sentences) / sum(tokens)
    # A ratio of means: its delta-method error is that of the mean of the residuals over the mean length.
    residuals = torch.tensor(
        [-s.log_prob - rate * count for s, count in zip(sentences, tokens, strict=True)], dtype=torch.double
    )
    margin = 1.96 * Estimate.of_mean(residuals).standard_error * len(tokens) / sum(tokens)
    definition = "exact perplexity per token under the grammar, the end counted, of the sentences of its language"
    interval = (math.exp(rate - margin), math.exp(rate + margin))
    return Measurement(math.exp(rate), interval, len(sentences), definition)


def control_table(rows: Mapping[str, Mapping[str, Measurement]]) -> str:
    """A Markdown table, one row per setting, 95 % intervals in brackets."""
    lines = ["| setting | n | accuracy | grammatical rate | perplexity |", "|---|---|---|---|---|"]
    for name, figures in rows.items():
        cells: list[Any] = [name, f"{figures['accuracy'].n:,}"]
        for figure, scale, unit in (("accuracy", 100, " %"), ("grammatical rate", 100, " %"), ("perplexity", 1, "")):
            found = figures.get(figure)
            if found is None:
                cells.append("-")
                continue
            value, low, high = (scale * x for x in (found.value, *found.interval_95))
            digits = 1 if unit else 2
            cells.append(f"{value:.{digits}f}{unit} [{low:.{digits}f}, {high:.{digits}f}]")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
