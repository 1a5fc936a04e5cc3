"""What judges sentences with attributes, by hand."""

import numpy as np
import pytest
from text_judges import AttributeJudge, delete_words, distinct, word_overlap

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
        delete_words("a dull film", judge, "good", most=0)
