"""Token ids, batches of similar length, and the collator."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict

from latent_ebm_text.data import batching, cleaning
from latent_ebm_text.data.batching import (
    BucketedBatches,
    TextCollator,
    describe_unknown,
    ordered_batches,
    tokenize_corpus,
)
from latent_ebm_text.data.tokenizers import train_bpe_tokenizer, train_word_tokenizer
from latent_ebm_text.errors import UsageError

LENGTHS = np.random.default_rng(0).integers(1, 40, size=1_003)


def test_tokenize_corpus_adds_bos_and_eos_counts_lengths_and_drops_columns() -> None:
    tokenizer = train_word_tokenizer(["a b c d"])
    splits = DatasetDict(
        train=Dataset.from_dict({"text": ["a b c d", "a b c", "a"], "topic": [1, 2, 3]}),
        test=Dataset.from_dict({"text": ["zebra"], "topic": [1]}),
    )
    tokenized, truncated = tokenize_corpus(splits, tokenizer, max_length=4)
    assert tokenized["train"].to_dict() == {
        "input_ids": [[1, 4, 5, 6, 2], [1, 4, 5, 6, 2], [1, 4, 2]],
        "length": [4, 4, 2],
        "words": [4, 4, 2],
    }
    assert tokenized["test"].to_dict() == {"input_ids": [[1, 3, 2]], "length": [2], "words": [2]}
    assert truncated == {"train": 1, "test": 0}, "a sentence of exactly max_length is whole"


def test_words_are_counted_whatever_the_tokens_and_only_those_that_are_kept() -> None:
    tokenizer = train_bpe_tokenizer(["ab cd"], vocab_size=259)  # bytes, and no merges
    splits = DatasetDict(train=Dataset.from_dict({"text": ["ab  cd", "ab cd ef gh"]}))
    tokenized, truncated = tokenize_corpus(splits, tokenizer, max_length=8)
    assert tokenized["train"]["length"][:] == [7, 8]
    assert tokenized["train"]["words"][:] == [3, 4], "two words; 'ab', 'cd' and a part of 'ef'; an end each"
    assert truncated == {"train": 1}
    assert tokenizer.decode(tokenized["train"][1]["input_ids"], skip_special_tokens=True) == "ab cd e"


def test_the_share_of_unknown_tokens_is_said() -> None:
    splits = DatasetDict(
        train=Dataset.from_dict({"text": ["a b c <unk>", "a b c d"]}), test=Dataset.from_dict({"text": ["a x y c"]})
    )
    for tokenizer, expected in (
        (train_word_tokenizer(splits["train"]["text"]), "unknown tokens (<unk>): 12.5% train, 50.0% test"),
        (train_bpe_tokenizer(splits["train"]["text"]), None),
    ):
        tokenized, _ = tokenize_corpus(splits, tokenizer, max_length=30)
        lines = describe_unknown(tokenized, tokenizer)
        assert lines[:1] == ([expected] if expected else [])
        assert ["WARNING: 50% of the test tokens are unknown" in line for line in lines[1:]] == [True] * bool(expected)
        del tokenized["test"]
        assert len(describe_unknown(tokenized, tokenizer)) == bool(expected), "no warning where few are unknown"


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Records the sizes of the batches that are tokenized."""
    calls: list[int] = []
    encode = batching._encode

    def counted(texts: list[str], **settings: Any) -> dict[str, list[Any]]:
        calls.append(len(texts))
        return encode(texts, **settings)

    monkeypatch.setattr(batching, "_encode", counted)
    return calls


@pytest.mark.parametrize("num_proc", [1, 2])
def test_tokenising_is_done_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encodings: list[int], num_proc: int
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(cleaning, "_ROWS_PER_PROCESS", 10)
    tokenizer = train_word_tokenizer(["a b"])
    splits = DatasetDict(train=Dataset.from_dict({"text": ["a", "b b", "a zebra"] * 40, "topic": [1, 2, 3] * 40}))
    first, _ = tokenize_corpus(splits, tokenizer, 9, num_proc)
    assert (len(encodings) > 0) == (num_proc == 1), "other processes count for themselves"
    encodings.clear()
    tokenizer(["a", "b b"], padding=True)  # a call leaves its settings behind, and changes no id
    monkeypatch.setattr(batching, "_encode", lambda *args, **settings: pytest.fail("tokenised again"))
    again, _ = tokenize_corpus(splits, tokenizer, 9, num_proc)
    assert again["train"].to_dict() == first["train"].to_dict()
    monkeypatch.undo()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    for changed in ((splits, train_word_tokenizer(["b b a"]), 9), (splits, tokenizer, 2)):
        other, _ = tokenize_corpus(*changed)
        assert other["train"].to_dict() != first["train"].to_dict()


def test_an_interrupted_tokenising_leaves_nothing_that_is_taken_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    tokenizer = train_word_tokenizer(["a b"])
    splits = DatasetDict(train=Dataset.from_dict({"text": ["a", "b b"] * 2_000}))
    encode, calls = batching._encode, iter(range(10))

    def interrupted(texts: list[str], **settings: Any) -> dict[str, list[Any]]:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return encode(texts, **settings)

    monkeypatch.setattr(batching, "_encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tokenize_corpus(splits, tokenizer, 9)
    monkeypatch.setattr(batching, "_encode", encode)
    tokenized, _ = tokenize_corpus(splits, tokenizer, 9)
    assert tokenized["train"]["length"][:] == [2, 3] * 2_000


def test_tokenize_corpus_refuses() -> None:
    tokenizer = train_word_tokenizer(["a b"])
    splits = DatasetDict(train=Dataset.from_dict({"text": ["a b"]}))
    with pytest.raises(UsageError, match="max_length is 1"):
        tokenize_corpus(splits, tokenizer, max_length=1)
    tokenizer.bos_token = None
    with pytest.raises(UsageError, match="needs a bos_token and an eos_token"):
        tokenize_corpus(splits, tokenizer, max_length=9)


@pytest.mark.parametrize("batch_size", [1, 16, 1_003, 5_000])
def test_every_example_exactly_once_and_at_most_one_short_batch(batch_size: int) -> None:
    bucketed = BucketedBatches(LENGTHS, batch_size, seed=1)
    for batches in (bucketed.epoch(0), ordered_batches(LENGTHS, batch_size)):
        assert sorted(np.concatenate(batches)) == list(range(len(LENGTHS)))
        assert sum(len(batch) != batch_size for batch in batches) <= 1
        assert len(batches) == len(bucketed)


def test_order_is_a_pure_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(BucketedBatches(LENGTHS, 16, seed).epoch(epoch)).tolist()

    warmed = BucketedBatches(LENGTHS, 16, 3)
    warmed.epoch(0)
    np.random.seed(5)
    assert np.concatenate(warmed.epoch(7)).tolist() == order(3, 7)
    assert order(3, 7) != order(3, 8)
    assert order(3, 7) != order(4, 7)


def test_buckets_save_most_padding_but_do_not_sort_the_epoch() -> None:
    def padded(batches: list[np.ndarray]) -> int:
        return sum(LENGTHS[batch].max() * len(batch) for batch in batches)

    batches = BucketedBatches(LENGTHS, 16, seed=0).epoch(0)
    shuffled = np.array_split(np.random.default_rng(0).permutation(len(LENGTHS)), len(batches))
    assert padded(batches) - LENGTHS.sum() < 0.1 * (padded(shuffled) - LENGTHS.sum())
    means = np.array([LENGTHS[batch].mean() for batch in batches])
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.4


def test_ordered_batches_are_sorted_with_the_short_one_last() -> None:
    batches = ordered_batches(LENGTHS, 16)
    assert (np.diff(LENGTHS[np.concatenate(batches)]) >= 0).all()
    assert len(batches[-1]) == 1_003 % 16


@pytest.mark.parametrize(
    "make", [lambda lengths, size: BucketedBatches(lengths, size, 0), ordered_batches], ids=["bucketed", "ordered"]
)
def test_batches_refuse(make: Callable[[list[int], int], object]) -> None:
    with pytest.raises(UsageError, match="batch_size is 0"):
        make([1, 2], 0)
    with pytest.raises(UsageError, match="non-empty"):
        make([], 4)


def test_a_datasets_column_serves_as_lengths() -> None:
    column = Dataset.from_dict({"length": [3, 1, 2]})["length"]
    assert np.concatenate(ordered_batches(column, 2)).tolist() == [1, 2, 0]


def test_collator_pads_and_masks() -> None:
    batch = TextCollator(pad_token_id=0)([{"input_ids": [1, 5, 2], "length": 2}, {"input_ids": [1, 5, 6, 7, 2]}])
    assert batch["input_ids"].tolist() == [[1, 5, 2, 0, 0], [1, 5, 6, 7, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[1, 5, 2, -100, -100], [1, 5, 6, 7, 2]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_collator_rounds_up_and_keeps_eos_as_label_when_pad_is_eos() -> None:
    batch = TextCollator(pad_token_id=2, pad_to_multiple_of=8)([{"input_ids": torch.tensor([1, 5, 2])}])
    assert batch["input_ids"].shape == (1, 8)
    assert batch["labels"].tolist() == [[1, 5, 2, -100, -100, -100, -100, -100]]


def test_importing_the_data_layer_is_light() -> None:
    code = (
        "import sys, latent_ebm_text.data, latent_ebm_text.data.tokenizers;"
        "print({'datasets', 'transformers'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
