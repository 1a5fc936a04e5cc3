"""From text to batches: token ids, batches of sentences of similar length, padded tensors.

Lengths always count *predicted* tokens: the tokens of a sentence with its eos and without its bos.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from latent_ebm_text.data.cache import cached_path
from latent_ebm_text.data.cleaning import column_array, processes
from latent_ebm_text.data.tokenizers import UNK_TOKEN, tokenizer_identity
from latent_ebm_text.errors import UsageError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from transformers import PreTrainedTokenizerBase

IGNORED_LABEL = -100  # ignored by the losses of Hugging Face
_FORMAT = 1  # version of tokenized data on disk, raised whenever the same text would be stored differently
_MANY_UNKNOWN = 0.2  # from this share of unknown tokens on, a run warns
_CHUNK_BATCHES = 50  # sentences are sorted by length within this many batches: little padding, but well mixed


def tokenize_corpus(
    splits: DatasetDict, tokenizer: PreTrainedTokenizerBase, max_length: int, num_proc: int = 1
) -> tuple[DatasetDict, dict[str, int]]:
    """Tokenizes the column `text` of every split.

    A truncated text keeps its first tokens and ends in eos. Results are cached on disk under a hash of texts and
    tokenizer; a file gets its final name only when it is complete.

    Args:
        splits: Splits with a column `text`.
        tokenizer: A fast tokenizer.
        max_length: Maximum number of predicted tokens per text.
        num_proc: Number of processes that share the work on a large split.

    Returns:
        Splits with the columns `input_ids` (bos, tokens, eos), `length` (predicted tokens) and `words` (see
        [`count_words`], of the text that was kept) instead of all others, and the number of truncated texts per split.

    Raises:
        UsageError: If `max_length` is below 2, or the tokenizer is not fast or has no bos or eos token.
    """
    if max_length < 2:
        raise UsageError(f"max_length is {max_length}, but a token and its eos need 2; make it larger.")
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is None or eos is None:
        raise UsageError("the tokenizer needs a bos_token and an eos_token; set them before you tokenize a corpus.")
    from datasets import DatasetDict, Features, List, Value

    integer, identity = Value("int32"), tokenizer_identity(tokenizer)
    tokenized, truncated = {}, {}
    for split, dataset in splits.items():
        texts = dataset.select_columns("text")
        path = cached_path("tokenized", [_FORMAT, texts._fingerprint, identity, max_length])
        workers = processes(texts, num_proc)
        with _one_thread_each(workers is not None):
            encoded = texts.map(
                _encode,
                batched=True,
                input_columns=["text"],
                remove_columns=["text"],
                fn_kwargs={"tokenizer": tokenizer, "bos": bos, "eos": eos, "max_length": max_length},
                features=Features(
                    {"input_ids": List(integer), "length": integer, "words": integer, "truncated": Value("bool")}
                ),
                num_proc=workers,
                cache_file_name=f"{path}.arrow",
                load_from_cache_file=True,
                new_fingerprint=path.name,
                desc=f"Tokenizing {split}",
            )
        truncated[split] = int(column_array(encoded, "truncated").sum())
        tokenized[split] = encoded.remove_columns("truncated")
    return DatasetDict(tokenized), truncated


def describe_unknown(splits: DatasetDict, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What a run prints about tokens that stand for whatever the tokenizer does not know, one sentence each.

    Args:
        splits: Splits that [`tokenize_corpus`] returned.
        tokenizer: Their tokenizer.

    Returns:
        The share of unknown tokens in every split, bos and eos left out, and a warning if one is large; nothing if the
        tokenizer has no unknown token.
    """
    backend = tokenizer.backend_tokenizer
    token = getattr(backend.model, "unk_token", None) or UNK_TOKEN
    unknown = backend.token_to_id(token)
    if unknown in (None, tokenizer.bos_token_id, tokenizer.eos_token_id):
        return []
    shares = {split: _share(dataset, unknown) for split, dataset in splits.items()}
    lines = [f"unknown tokens ({token}): {', '.join(f'{share:.1%} {split}' for split, share in shares.items())}"]
    worst = max(shares, key=lambda split: shares[split])
    if shares[worst] > _MANY_UNKNOWN:
        lines.append(
            f"WARNING: {shares[worst]:.0%} of the {worst} tokens are unknown, and a model has a good likelihood for "
            f"predicting {token} without knowing the text; with --tokenizer bpe nothing is unknown, also where no "
            "spaces separate words"
        )
    return lines


def _share(dataset: Dataset, token: int) -> float:
    """The share of a token among all tokens but bos and eos."""
    import pyarrow.compute as pc

    count = 0
    for table in dataset.select_columns("input_ids").with_format("arrow").iter(10_000):
        count += pc.sum(pc.equal(pc.list_flatten(table["input_ids"]), token)).as_py() or 0
    return count / max(int((column_array(dataset, "length") - 1).sum()), 1)


@contextmanager
def _one_thread_each(enabled: bool) -> Iterator[None]:
    """Keeps `tokenizers` from starting threads in every process, or warning that it cannot."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    if enabled:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if enabled:
            os.environ.pop("TOKENIZERS_PARALLELISM")
            if before is not None:
                os.environ["TOKENIZERS_PARALLELISM"] = before


def _encode(
    texts: list[str], *, tokenizer: PreTrainedTokenizerBase, bos: int, eos: int, max_length: int
) -> dict[str, list[Any]]:
    # bos and eos are added here, because only some tokenizers add them.
    tokens = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    input_ids = [[bos, *ids[: max_length - 1], eos] for ids in tokens]
    truncated = [len(ids) >= max_length for ids in tokens]
    kept = [
        tokenizer.decode(ids, skip_special_tokens=True) if is_cut else text
        for text, ids, is_cut in zip(texts, input_ids, truncated, strict=True)
    ]
    return {
        "input_ids": input_ids,
        "length": [len(ids) - 1 for ids in input_ids],
        "words": [count_words(text) for text in kept],
        "truncated": truncated,
    }


def count_words(text: str) -> int:
    """Counts whitespace-separated words and the end of the text, as a perplexity per word does."""
    return len(text.split()) + 1


class BucketedBatches:
    """Training batches of sentences of similar length, in an order that is a pure function of (seed, epoch).

    Args:
        lengths: Predicted tokens of every example, `(examples,)`.
        batch_size: Examples per batch; one batch per epoch may be shorter.
        seed: Seed of the order.

    Raises:
        UsageError: If the batch size is not positive or there is no example.
    """

    def __init__(self, lengths: npt.ArrayLike, batch_size: int, seed: int) -> None:
        self.lengths = _as_lengths(lengths, batch_size)
        self.batch_size = batch_size
        self.seed = seed
        self._current: tuple[int, list[npt.NDArray[np.int64]]] | None = None  # (epoch, its batches)

    def at(self, step: int) -> npt.NDArray[np.int64]:
        """Returns the batch of a step, counted over all epochs, as example indices."""
        epoch, position = divmod(step, len(self))
        if self._current is None or self._current[0] != epoch:
            self._current = epoch, self.epoch(epoch)
        return self._current[1][position]

    def __len__(self) -> int:
        """The number of batches per epoch."""
        return -(-len(self.lengths) // self.batch_size)

    def epoch(self, epoch: int) -> list[npt.NDArray[np.int64]]:
        """Returns the batches of one epoch as example indices; every example occurs exactly once."""
        generator = np.random.default_rng([self.seed, epoch])
        order = generator.permutation(len(self.lengths))
        size = _CHUNK_BATCHES * self.batch_size
        chunks = (order[start : start + size] for start in range(0, len(order), size))
        by_length = np.concatenate([chunk[np.argsort(self.lengths[chunk], kind="stable")] for chunk in chunks])
        # Chunks hold whole batches, so only the last batch of the last chunk can be short.
        batches = _cut(by_length, self.batch_size)
        return [batches[index] for index in generator.permutation(len(batches))]


def ordered_batches(lengths: npt.ArrayLike, batch_size: int) -> list[npt.NDArray[np.int64]]:
    """Returns evaluation batches: example indices sorted by length, every example once, a shorter batch last."""
    return _cut(np.argsort(_as_lengths(lengths, batch_size), kind="stable"), batch_size)


def _cut(order: npt.NDArray[np.int64], batch_size: int) -> list[npt.NDArray[np.int64]]:
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _as_lengths(lengths: npt.ArrayLike, batch_size: int) -> npt.NDArray[np.int64]:
    if batch_size < 1:
        raise UsageError(f"batch_size is {batch_size}; it must be at least 1.")
    array = np.asarray(lengths, dtype=np.int64)
    if array.ndim != 1 or not array.size:
        raise UsageError(f"lengths must be a non-empty list of numbers, not of shape {array.shape}.")
    return array


class TextCollator:
    """Pads a list of examples with `input_ids` to one batch.

    A batch has the LongTensors `input_ids`, `attention_mask` (1 at tokens, 0 at padding) and `labels` (`input_ids`
    with -100 at padding; models of Hugging Face shift them themselves), each of shape `(batch, length)`. Examples that
    have `sentence_embeddings` give these, `(batch, width)`, in float32.

    Args:
        pad_token_id: The id of padding.
        pad_to_multiple_of: The length of the longest example is rounded up to a multiple of this.
    """

    def __init__(self, pad_token_id: int, pad_to_multiple_of: int = 1) -> None:
        self.pad_token_id = pad_token_id
        self.pad_to_multiple_of = pad_to_multiple_of

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        rows = [torch.as_tensor(example["input_ids"], dtype=torch.long) for example in examples]
        multiple = self.pad_to_multiple_of
        length = -(-max(len(row) for row in rows) // multiple) * multiple
        input_ids = torch.full((len(rows), length), self.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        for index, row in enumerate(rows):
            input_ids[index, : len(row)] = row
            attention_mask[index, : len(row)] = 1
        # By the mask and not by the id: where pad and eos share an id, eos is still to be predicted.
        labels = input_ids.masked_fill(attention_mask == 0, IGNORED_LABEL)
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        if "sentence_embeddings" in examples[0]:
            embeddings = np.array([example["sentence_embeddings"] for example in examples], dtype=np.float32)
            batch["sentence_embeddings"] = torch.from_numpy(embeddings)
        return batch
