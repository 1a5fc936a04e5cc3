"""The metrics of controlled sentences of the embedded corpus."""

import math

import pytest
from attribute_metrics import AttributeReader, Wish, control_metrics, control_table

from latent_ebm_text.data.newswire import newswire_grammar
from latent_ebm_text.errors import UsageError

GRAMMAR = newswire_grammar()
SENTENCES = GRAMMAR.sample(600, 1)
READER = AttributeReader(GRAMMAR, SENTENCES)


@pytest.mark.parametrize(
    ("attribute", "least"), [("topic", 0.98), ("tense", 0.85), ("number", 0.95), ("sentiment", 0.8), ("length", 0.8)]
)
def test_reading_by_words_agrees_with_the_parser(attribute: str, least: float) -> None:
    held_out = GRAMMAR.sample(200, 2)
    right = sum(READER.by_words(s.text, attribute) == s.attributes[attribute] for s in held_out)
    assert right / 200 > least


def test_the_parser_wins_where_there_is_a_derivation() -> None:
    sentence = next(s for s in SENTENCES if s.attributes["topic"] == "sports")
    assert READER.read(sentence.text, "topic", sentence) == "sports"
    assert READER.read("the the storm near wind", "topic", None) == "weather"


def test_accuracy_and_fluency() -> None:
    texts = [s.text for s in SENTENCES[:50]]
    wishes = [[Wish(name, value) for name, value in s.attributes.items()] for s in SENTENCES[:50]]
    broken = [f"{text} the" for text in texts]
    metrics = control_metrics([*texts, *broken], [*wishes, *([[Wish("topic", "none")]] * 50)], GRAMMAR, READER)
    assert metrics["accuracy"].value == 0.5
    assert metrics["grammatical rate"].value == 0.5
    tokens = sum(len(text.split()) + 1 for text in texts)
    expected = math.exp(-sum(s.log_prob for s in SENTENCES[:50]) / tokens)
    assert metrics["perplexity"].value == pytest.approx(expected)
    assert metrics["perplexity"].n == 50
    low, high = metrics["perplexity"].interval_95
    assert low < math.exp(GRAMMAR.entropy_rate()) < high
    assert "| all, w=1 | 100 | 50.0% [40.4%, 59.6%] | 50.0%" in control_table({"all, w=1": metrics})


def test_negation_and_what_cannot_be_judged() -> None:
    assert Wish("topic", "sports", negated=True).holds("weather")
    assert str(Wish("topic", "sports", negated=True)) == "not topic=sports"
    metrics = control_metrics(["no sentence"], [[Wish("topic", "sports")]], GRAMMAR, READER)
    assert "perplexity" not in metrics
    assert control_table({"row": metrics}).endswith("| - |")
    with pytest.raises(UsageError, match="every sentence needs its wishes, got 1 sentences and 0 sets"):
        control_metrics(["no sentence"], [], GRAMMAR, READER)
    with pytest.raises(UsageError, match="needs sentences to count words in"):
        AttributeReader(GRAMMAR, [])
