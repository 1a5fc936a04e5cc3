"""Variety and novelty of sentences, by hand."""

import json
import math
import sys
from typing import Any

import numpy as np
import pytest

from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.diversity import sample_entropy, self_bleu, training_overlap, unique_rate

# --- self-BLEU ---


def test_sentences_that_are_all_the_same_have_a_self_bleu_of_100() -> None:
    found = self_bleu(["the dog barks at night"] * 6, num_references=2)
    assert found.value == pytest.approx(100)
    assert found.interval_95 == pytest.approx((100, 100))


def test_sentences_without_a_common_word_have_a_self_bleu_of_0() -> None:
    found = self_bleu([f"a{i} b{i} c{i} d{i} e{i}" for i in range(6)], num_references=2)
    assert (found.value, found.interval_95) == (0.0, (0.0, 0.0))


def test_self_bleu_by_hand() -> None:
    """Any two share three of four words in a row: precisions 3/4, 2/3, 1/2 and, smoothed, 1/2."""
    found = self_bleu([f"a b c d{i}" for i in range(6)], num_references=1)
    assert found.value == pytest.approx(100 * (3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25)


def test_self_bleu_grows_with_the_number_of_references_until_each_finds_its_twin() -> None:
    """Three kinds of sentence, in equal parts."""
    texts = [f"{kind}1 {kind}2 {kind}3 {kind}4" for kind in "abc"] * 4
    assert self_bleu(texts, num_references=5, seed=1).value < self_bleu(texts * 2, num_references=11, seed=1).value
    assert self_bleu(texts * 20, num_references=59).value == pytest.approx(100)


def test_words_are_taken_as_they_are() -> None:
    """A tokenizer that splits punctuation would find common tokens here."""
    assert self_bleu(["a1. b1.", "a2. b2.", "a3. b3.", "a4. b4."], num_references=1).value == 0


def test_self_bleu_counts_whole_groups_and_gives_their_spread() -> None:
    texts = [f"a b c d{i % 7}" for i in range(11)]
    found = self_bleu(texts, num_references=2, seed=3)
    assert found.n == 9
    assert found.details["num_groups"] == 3
    assert "tok:none" in found.details["signature"]
    low, high = found.interval_95
    assert low <= found.value <= high
    assert self_bleu(texts, num_references=2, seed=3) == found


def test_the_interval_of_self_bleu_covers_what_more_sentences_show() -> None:
    rng = np.random.default_rng(0)

    def draw(n: int) -> list[str]:
        return [" ".join(rng.choice(list("abcdef"), size=5)) for _ in range(n)]

    truth = self_bleu(draw(3000), num_references=4).value
    covered = 0
    for _ in range(20):
        low, high = self_bleu(draw(150), num_references=4).interval_95
        covered += low <= truth <= high
    assert covered >= 16


@pytest.mark.parametrize("num_references", [0, 3, 99])
def test_self_bleu_needs_two_groups(num_references: int) -> None:
    with pytest.raises(UsageError, match=f"against {num_references} references needs two groups of .* got 7"):
        self_bleu(["a b", "c d"] * 3 + ["e"], num_references=num_references)


def test_without_sacrebleu_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
    with pytest.raises(UsageError, match=r"pip install 'latent-ebm-text\[metrics\]'"):
        self_bleu(["a b"] * 4, num_references=1)


# --- entropy ---


def test_entropy_by_hand() -> None:
    """Four words, half of them a: ln 2 / 2 + ln 4 / 2, and (3 - 1) / 8 for the correction."""
    found = sample_entropy(["a b", "a c"])
    assert found.details["plug_in"] == pytest.approx(1.5 * math.log(2))
    assert found.value == pytest.approx(1.5 * math.log(2) + 0.25)
    assert (found.n, found.details["num_ngrams"], found.details["num_distinct"]) == (2, 4, 3)
    # Both sentences have one word of surprise ln 2 and one of ln 4: nothing varies between them.
    assert found.interval_95 == pytest.approx((found.value, found.value))


def test_bigrams_stay_within_their_sentence() -> None:
    found = sample_entropy(["a b a b", "a b"], order=2)  # a b three times, b a once
    assert found.details["plug_in"] == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert found.details["num_ngrams"] == 4


def test_one_word_over_and_over_has_no_entropy() -> None:
    assert sample_entropy(["a a", "a"]).value == 0


def test_the_correction_removes_most_of_the_bias() -> None:
    """Sentences of one word, of 20 equally likely: the plug-in is too low by 19 / 600."""
    rng = np.random.default_rng(0)
    estimates = []
    for _ in range(200):
        words = rng.integers(20, size=300)
        estimates.append(sample_entropy([f"w{word}" for word in words]))
    truth = math.log(20)
    assert abs(np.mean([found.details["plug_in"] for found in estimates]) - truth) > 0.025
    assert abs(np.mean([found.value for found in estimates]) - truth) < 0.005


def test_the_interval_of_the_entropy_treats_sentences_as_independent() -> None:
    """Words come ten at a time from a skewed law; that of single words would cover in half of the cases only."""
    rng = np.random.default_rng(0)
    probabilities = np.array([0.5, 0.25, 0.125, 0.0625, 0.0625])
    truth = -float((probabilities * np.log(probabilities)).sum())
    covered = 0
    for _ in range(100):
        words = rng.choice(5, size=400, p=probabilities)
        low, high = sample_entropy([" ".join([f"w{word}"] * 10) for word in words]).interval_95
        covered += low <= truth <= high
    assert covered >= 89


def test_no_sentence_as_long_as_an_ngram() -> None:
    with pytest.raises(UsageError, match="no sentence has 3 words: lower order"):
        sample_entropy(["a b", "c"], order=3)


def test_the_order_must_be_positive() -> None:
    with pytest.raises(UsageError, match="order of the n-grams must be at least 1, got 0"):
        sample_entropy(["a b", "c"], order=0)


# --- unique rate ---


def test_unique_rate_with_the_interval_of_wilson() -> None:
    found = unique_rate(["a b", "c", "a  b", "d"])
    assert (found.value, found.n) == (0.75, 4)
    assert found.interval_95 == pytest.approx((0.3006, 0.9544), abs=1e-4)


def test_a_rate_of_one_has_an_interval_below_one() -> None:
    low, high = unique_rate([f"w{i}" for i in range(100)]).interval_95
    assert (low, high) == (pytest.approx(0.9630, abs=1e-4), 1.0)


# --- overlap with the training text ---

TRAINING = ["the dog barks", "the cat sleeps", "a bird sings"]


def test_overlap_by_hand() -> None:
    """Bigrams with the boundaries: 'the dog sleeps' shares 2 of 6 with each of the first two."""
    found = training_overlap(["the dog sleeps", "a bird sings", "no word known"], TRAINING, ["the dog barks", "x y"])
    assert found.samples["mean_overlap"].value == pytest.approx((2 / 6 + 1 + 0) / 3)
    assert found.samples["mean_overlap"].n == 3
    assert found.samples["overlap_q50"].value == pytest.approx(2 / 6)
    assert found.samples["copy_rate"].value == pytest.approx(1 / 3)
    assert found.held_out["copy_rate"].value == 0.5
    assert found.held_out["mean_overlap"].value == pytest.approx(0.5)
    assert found.closest == (
        ("a bird sings", "a bird sings", 1.0),
        ("the dog sleeps", "the dog barks", pytest.approx(2 / 6)),
        ("no word known", "the dog barks", 0.0),
    )


def test_single_words_can_be_compared() -> None:
    found = training_overlap(["sleeps cat the", "cat"], TRAINING, ["x", "y"], order=1, num_closest=1)
    assert found.closest == (("sleeps cat the", "the cat sleeps", 1.0),)
    assert found.samples["mean_overlap"].value == pytest.approx((1 + 1 / 3) / 2)
    assert found.samples["copy_rate"].value == 0  # the same words are not the same sentence


def test_the_index_finds_what_a_comparison_of_all_pairs_finds() -> None:
    rng = np.random.default_rng(0)

    def draw(n: int) -> list[str]:
        return [" ".join(f"w{word}" for word in rng.zipf(1.5, size=size) % 50) for size in rng.integers(0, 9, size=n)]

    def bigrams(text: str) -> set[tuple[str, str]]:
        words = ["<s>", *text.split(), "</s>"]
        return {(words[i], words[i + 1]) for i in range(len(words) - 1)}

    def jaccard(one: str, other: str) -> float:
        return len(bigrams(one) & bigrams(other)) / len(bigrams(one) | bigrams(other))

    texts, training, held_out = draw(60), draw(200), draw(30)
    found = training_overlap(texts, training, held_out, num_closest=60)
    for name, kind in (("samples", texts), ("held_out", held_out)):
        best = [max(jaccard(text, other) for other in training) for text in kind]
        metrics = getattr(found, name)
        assert metrics["mean_overlap"].value == pytest.approx(np.mean(best))
        assert metrics["overlap_q90"].value == pytest.approx(np.quantile(best, 0.9))
        assert metrics["copy_rate"].value == pytest.approx(np.mean([text in training for text in kind]))
    for text, nearest, overlap in found.closest:
        assert jaccard(text, nearest) == pytest.approx(overlap)


def test_quantiles_have_intervals_of_order_statistics() -> None:
    """100 sentences with overlaps 1 / 100 to 100 / 100 of one long training sentence."""
    training = [" ".join(f"w{i}" for i in range(1, 101)), "other"]
    texts = [" ".join(f"w{i}" for i in range(1, size + 1)) for size in range(1, 101)]
    found = training_overlap(texts, training, texts, order=1).samples["overlap_q50"]
    assert found.value == pytest.approx(0.505)
    assert found.interval_95 == pytest.approx((0.41, 0.61))  # ranks 50 ± 1.96 * 5, outwards


def test_metrics_are_json() -> None:
    found = training_overlap(["the dog sleeps", "a bird sings"], TRAINING, ["the dog barks", "x y"])
    written = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert written["samples"]["copy_rate"]["value"] == 0.5
    assert written["closest"][0] == ["a bird sings", "a bird sings", 1.0]
    entropy = json.loads(json.dumps(sample_entropy(["a b", "a c"]).to_dict(), allow_nan=False))
    assert {"value", "interval_95", "n", "definition", "plug_in"} <= set(entropy)


# --- broken generations ---


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "texts must hold at least 2 sentences, got 0"),
        (["a b"], "texts must hold at least 2 sentences, got 1"),
        (["", "  ", ""], "all 3 sentences of texts are blank"),
        ("a b", "texts must be a list, not one string"),
    ],
)
@pytest.mark.parametrize("metric", [self_bleu, sample_entropy, unique_rate, training_overlap])
def test_broken_generations_are_refused(metric: Any, texts: Any, message: str) -> None:
    arguments = (TRAINING, TRAINING) if metric is training_overlap else ()
    with pytest.raises(UsageError, match=message):
        metric(texts, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], TRAINING), "training_texts must hold at least 2 sentences, got 0"),
        ((TRAINING, ["", ""]), "all 2 sentences of held_out_texts are blank"),
    ],
)
def test_references_that_are_no_text_are_refused(arguments: tuple[list[str], list[str]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        training_overlap(TRAINING, *arguments)
