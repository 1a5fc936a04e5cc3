"""Whether generated sentences of the embedded corpus have the attributes asked for, and are still sentences."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from latent_ebm_text.data.batching import count_words
from latent_ebm_text.data.grammar import GrammarSentence, ProbabilisticGrammar
from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.estimates import Estimate


class AttributeReader:
    """Reads an attribute from a sentence: exactly where the grammar can parse it, otherwise from its words.

    A sentence of the language has one derivation, and so one value of every attribute. For other sentences the words
    and their number decide, by naive Bayes with add-one smoothing over sentences of the corpus.

    Args:
        grammar: The grammar.
        sentences: Sentences of its language, whose words are counted.
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
        """The most probable value given the words."""
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
    """What sentences were asked for: that `attribute` is `value`, or with `negated` that it is not."""

    attribute: str
    value: str
    negated: bool = False

    def holds(self, found: str) -> bool:
        """Whether a value that was read fulfils the wish."""
        return (found == self.value) != self.negated

    def __str__(self) -> str:
        return f"{'not ' if self.negated else ''}{self.attribute}={self.value}"


def control_metrics(
    texts: Sequence[str], wishes: Sequence[Sequence[Wish]], grammar: ProbabilisticGrammar, reader: AttributeReader
) -> dict[str, Estimate]:
    """The accuracy of control, and the fluency of the sentences.

    Args:
        texts: Generated sentences.
        wishes: What each of them was asked for; all wishes of a sentence must hold.
        grammar: The grammar, which judges fluency.
        reader: Reads the attributes.

    Returns:
        `accuracy`, `grammatical rate`, and `perplexity` per word: the exact one under the grammar of those sentences
        that belong to its language, left out where there are fewer than two.
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
    metrics = {
        "accuracy": Estimate.of_proportion(
            granted,
            len(texts),
            "sentences as asked for; attributes by the grammar's parser, or by the words where a sentence has no "
            "derivation",
        ),
        "grammatical rate": Estimate.of_proportion(len(sentences), len(texts), "sentences of the grammar's language"),
    }
    if len(sentences) > 1:
        metrics["perplexity"] = Estimate.of_bootstrap(
            [-sentence.log_prob for sentence in sentences],
            "exact perplexity per word under the grammar, the end counted, of the sentences of its language",
            tokens=[count_words(sentence.text) for sentence in sentences],
        )
    return metrics


def control_table(rows: Mapping[str, Mapping[str, Estimate]]) -> str:
    """A Markdown table, one row per setting, 95 % intervals in brackets."""
    lines = ["| setting | n | accuracy | grammatical rate | perplexity |", "|---|---|---|---|---|"]
    for name, metrics in rows.items():
        cells = [name, f"{metrics['accuracy'].n:,}"]
        for key, spec in (("accuracy", ".1%"), ("grammatical rate", ".1%"), ("perplexity", ".2f")):
            cells.append(f"{metrics[key]:{spec}}" if key in metrics else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
