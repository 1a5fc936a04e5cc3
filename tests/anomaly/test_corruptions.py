"""Tasks of anomaly detection: what tells the two kinds apart, and what must not."""

from collections import Counter

import pytest

from latent_ebm_text.anomaly.corruptions import other_source_task, plain_words, shuffled_words_task
from latent_ebm_text.errors import DataError, UsageError

SENTENCES = [f"w{i} and w{i + 1} are words of sentence N" for i in range(20)] + ["too short", "a a a a a"]


def test_shuffled_sentences_hold_the_same_words_in_another_order() -> None:
    task = shuffled_words_task(SENTENCES, 20, seed=3)
    assert sorted(task.normal) == sorted(SENTENCES[:20])
    assert task.labels == [0] * 20 + [1] * 20
    for normal, anomalous in zip(task.normal, task.anomalous, strict=True):
        assert normal != anomalous
        assert Counter(normal.split()) == Counter(anomalous.split())
    assert task == shuffled_words_task(SENTENCES, 20, seed=3)
    assert task != shuffled_words_task(SENTENCES, 20, seed=4)


def test_documents_are_cut_to_the_lengths_of_the_sentences() -> None:
    documents = [" ".join(f"d{i}x{k}" for k in range(4 + i)) for i in range(40)]
    task = other_source_task([" ".join(["w"] * n) for n in range(1, 21)], documents, 20)
    assert [len(t.split()) for t in task.normal] == [len(t.split()) for t in task.anomalous]
    assert all(any(d.startswith(t) for d in documents) for t in task.anomalous)
    assert len({t.split()[0] for t in task.anomalous}) == 20  # no document twice


def test_documents_are_spelt_like_the_sentences() -> None:
    assert plain_words("What ? 30,000 _UNK , i 'm 1.5 `` OK ''") == "what N <unk> i 'm N ok"


def test_too_little_data() -> None:
    with pytest.raises(DataError, match="21 pairs need as many sentences of four or more words, but there are 20"):
        shuffled_words_task(SENTENCES, 21)
    with pytest.raises(DataError, match="too few documents of 8 words or more"):
        other_source_task(SENTENCES[:20], ["one two three"], 2)
    with pytest.raises(UsageError, match="num_pairs must be a positive integer, got 0"):
        shuffled_words_task(SENTENCES, 0)
