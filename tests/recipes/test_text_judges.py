"""What judges sentences with attributes, by hand."""

from typing import Any

import numpy as np
import pytest
from text_judges import AttributeJudge, Judges, delete_words, distinct, exact_probs, word_overlap

from latent_ebm_text.errors import UsageError


def test_overlap_and_distinct_by_hand() -> None:
    assert word_overlap("a b c", "a b d d") == pytest.approx(2 * 2 / 7)
    assert word_overlap("a", "b") == 0
    assert distinct(["a b c", "a b d"], 2).value == pytest.approx(3 / 4)
    assert distinct(["a b", "c d"] * 10, 2).value == pytest.approx(2 / 20)


def test_a_judge_reads_what_its_embeddings_say() -> None:
    embeddings = np.array([[1.0, 0.0], [0.0, 1.0]] * 10)
    judge = AttributeJudge(embeddings, ["good", "bad"] * 10)
    assert judge.predict(embeddings[:2]) == ["good", "bad"]
    assert judge.probs(embeddings[:1], "good")[0] > 0.8
    accuracy = judge.accuracy(embeddings[:4], ["good", "bad", "bad", "bad"])
    assert (accuracy.value, accuracy.n) == (0.75, 4)
    with pytest.raises(UsageError, match="most must be positive"):
        delete_words("a dull film", judge.read_probs, "good", most=0)


def test_mauve_compares_sentences_with_real_ones_of_the_value_that_was_asked_for() -> None:
    rng = np.random.default_rng(0)
    places = {"good": np.eye(8)[0], "bad": np.eye(8)[1]}

    def near(values: list[str]) -> Any:
        points = np.array([places[value] for value in values]) + 0.2 * rng.normal(size=(len(values), 8))
        return points / np.linalg.norm(points, axis=1, keepdims=True)

    values = ["good"] * 60 + ["bad"] * 60
    wanted = [{"tone": value} for value in values]
    judges = Judges({}, None, None, near(values), wanted)  # type: ignore[arg-type]  # neither is needed
    right, wrong = judges.mauve(near(values), wanted), judges.mauve(near(values[::-1]), wanted)
    assert right.value > 0.7
    assert wrong.value < 0.2
    assert judges.mauve(near(["good"] * 200), [{"tone": "good"}] * 200).n == 60, "as many as there are real ones"


def test_what_is_read_without_error_is_nearly_certain() -> None:
    probs = exact_probs(lambda texts, _: ["long" if len(text) > 3 else "short" for text in texts])
    assert probs(["a", "a film"], np.zeros((2, 1)), "long").tolist() == [0.01, 0.99]
