"""Tokenisers for a corpus: words, byte-level BPE, byte-level Unigram, or a pretrained one; ordinary fast Hugging Face
tokenisers all.

They save to `tokenizer.json` and `tokenizer_config.json` and come back the same through `AutoTokenizer`, without any
code of this library, and all put bos before and eos after a text. Three decisions need a reason:

- To the word-level tokeniser `<unk>` is an ordinary word as far as `transformers` knows (`tokenizer.unk_token` is
  None; its id is 3, `UNK_TOKEN` its text) and the unknown word only to the model inside. In PTB `<unk>` is a word of
  the sentences; as a special token it would be dropped by `decode(ids, skip_special_tokens=True)`, and
  `decode(encode(line))` would not be the line.
- A literal `<pad>`, `<bos>` or `<eos>` in a text becomes `<unk>`, or is spelled in pieces where there are some: text
  can never end a sentence or look like padding. Special ids come from the post-processor or from the caller, never
  from text.
- A pretrained tokeniser is taken over with its vocabulary and rules, but wrapped anew: what its own class would do
  with bos, eos and special tokens in the text differs from class to class.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from latent_ebm_text.errors import DataError, UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD_TOKEN, BOS_TOKEN, EOS_TOKEN, UNK_TOKEN = SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")


#: Tokenisers that are trained on the corpus; any other name is that of a pretrained one.
TRAINED_TOKENIZERS = ("word", "bpe", "unigram")


def make_tokenizer(
    name_or_path: str, texts: Iterable[str], *, vocab_size: int | None = None, max_length: int | None = None
) -> tuple[PreTrainedTokenizerFast, list[str]]:
    """The tokeniser of a corpus, trained on it or pretrained, and what is to be said of it, one sentence each.

    name_or_path: `"word"`, `"bpe"`, `"unigram"`, or the name or path of a pretrained tokeniser.
    texts: the training texts, read once and a text at a time; not at all for a pretrained tokeniser.
    vocab_size: the most ids; by default every word for `"word"`, `SUBWORD_VOCAB_SIZE` pieces for the next two. Refused
        for a pretrained tokeniser.
    max_length: the tokeniser's `model_max_length` in tokens, bos and eos included; None sets no limit.

    Raises `UsageError` and `DataError` as the functions that it calls.
    """
    from latent_ebm_text.subwords import train_bpe_tokenizer, train_unigram_tokenizer

    if name_or_path == "word":
        return train_word_tokenizer(texts, vocab_size=vocab_size, max_length=max_length), []
    if name_or_path in ("bpe", "unigram"):
        train = train_bpe_tokenizer if name_or_path == "bpe" else train_unigram_tokenizer
        size = {} if vocab_size is None else {"vocab_size": vocab_size}
        return train(texts, max_length=max_length, **size), []
    if vocab_size is not None:
        raise UsageError(
            f"vocab_size is {vocab_size}, but the pretrained tokenizer {name_or_path!r} has a vocabulary already; "
            "leave it out."
        )
    return load_pretrained_tokenizer(name_or_path, max_length=max_length)


def train_word_tokenizer(
    texts: Iterable[str],
    *,
    vocab_size: int | None = 10_000,
    min_frequency: int = 1,
    max_length: int | None = None,
) -> PreTrainedTokenizerFast:
    """Make a tokeniser whose tokens are the words of `texts`, split at white space.

    Ids: `<pad>` 0, `<bos>` 1, `<eos>` 2, `<unk>` 3, then the words by falling frequency, ties in alphabetical order.

    texts: sentences, read once.
    vocab_size: the most ids there may be, the four special ones included; None keeps every word.
    min_frequency: rarer words become `<unk>`.
    max_length: the tokeniser's `model_max_length` in tokens, bos and eos included; None sets no limit.

    Raises `UsageError` for a limit that leaves no word, `DataError` for a corpus with fewer than two word types.
    """
    if vocab_size is not None and vocab_size <= len(SPECIAL_TOKENS):
        raise UsageError(f"vocab_size is {vocab_size}, but {len(SPECIAL_TOKENS)} ids are special; make it larger.")
    counts = Counter(word for text in texts for word in text.split())
    for token in SPECIAL_TOKENS:
        del counts[token]
    if len(counts) < 2:
        raise DataError(
            f"the corpus has {len(counts)} word types besides special tokens, and a text model needs at least 2; "
            "check the file and its text column."
        )
    ranked = sorted((word for word in counts if counts[word] >= min_frequency), key=lambda word: (-counts[word], word))
    if not ranked:
        raise UsageError(f"no word of the corpus occurs min_frequency={min_frequency} times; make it smaller.")
    tokens = [*SPECIAL_TOKENS, *ranked][:vocab_size]
    return wrap_tokenizer(_word_backend({token: index for index, token in enumerate(tokens)}), max_length)


def load_pretrained_tokenizer(
    name_or_path: str, *, max_length: int | None = None
) -> tuple[PreTrainedTokenizerFast, list[str]]:
    """A pretrained tokeniser with pad, bos and eos, and a sentence on each of them that it had not.

    A missing bos or eos is taken from `cls` or `sep`, where there is one, or else added, as a missing pad is: the ids
    that are there keep their meaning.

    name_or_path: as of `AutoTokenizer.from_pretrained`; code of a Hub repository is not run.
    max_length: the tokeniser's `model_max_length` in tokens.

    Raises `UsageError` if there is none, or none with a fast implementation.
    """
    from tokenizers import AddedToken, Tokenizer
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    except Exception as error:  # of whatever library a tokeniser needs
        lines = str(error).strip().splitlines()
        raise UsageError(
            f"there is no tokenizer {name_or_path!r}: it must be {', '.join(TRAINED_TOKENIZERS)}, or the name or path "
            f"of a pretrained one ({lines[0] if lines else type(error).__name__})"
        ) from error
    if not loaded.is_fast:
        raise UsageError(
            f"the tokenizer {name_or_path!r} has no fast implementation; choose one with a tokenizer.json."
        )
    backend = Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    tokens, notes = {}, []
    for name, default, stand_in in (
        ("pad", PAD_TOKEN, None),
        ("bos", BOS_TOKEN, loaded.cls_token),
        ("eos", EOS_TOKEN, loaded.sep_token),
    ):
        token = getattr(loaded, f"{name}_token")
        if token is None:
            token = stand_in or default
            backend.add_special_tokens([AddedToken(token, special=True, normalized=False)])
            notes.append(f"the tokenizer has no {name} token: {token} {'serves' if stand_in else 'was added'}")
        tokens[name] = str(token)
    return wrap_tokenizer(backend, max_length, **tokens), notes


def check_tokenizer_fits(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Raise `UsageError` unless every id of `tokenizer` is below `vocab_size` (the rows of the model's embedding) and
    it has the pad, bos and eos tokens that training and generation need."""
    missing = [name for name in ("pad_token", "bos_token", "eos_token") if getattr(tokenizer, name) is None]
    if missing:
        raise UsageError(f"the tokenizer has no {', no '.join(missing)}; set them before you use it with this model.")
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocab_size:
        raise UsageError(
            f"the tokenizer has ids up to {largest}, but the model's vocabulary has {vocab_size} entries; "
            f"use the tokenizer saved with the model, or a model with vocab_size={largest + 1}."
        )


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of all that decides what a tokeniser makes of a text."""
    from tokenizers import Tokenizer

    if not tokenizer.is_fast:
        raise UsageError(f"{type(tokenizer).__name__} is no fast tokenizer; wrap it as a PreTrainedTokenizerFast.")
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    # How it was called last is no part of it.
    backend.no_padding()
    backend.no_truncation()
    rest = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.split_special_tokens)
    return hashlib.sha256(f"{backend.to_str()} {rest}".encode()).hexdigest()


def _word_backend(vocabulary: dict[str, int]) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    # An explicit vocabulary: a WordLevelTrainer that meets "<unk>" in the text as well moves its id and leaves a hole.
    backend = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=UNK_TOKEN))
    backend.normalizer = normalizers.Replace(Regex(r"(?<!\S)<(?:pad|bos|eos)>(?!\S)"), UNK_TOKEN)
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return backend


def wrap_tokenizer(
    backend: Tokenizer, max_length: int | None, *, pad: str = PAD_TOKEN, bos: str = BOS_TOKEN, eos: str = EOS_TOKEN
) -> PreTrainedTokenizerFast:
    """A tokeniser of `tokenizers` for `transformers`, with bos before and eos after a text."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    backend.no_padding()
    backend.no_truncation()
    backend.post_processor = processors.TemplateProcessing(
        single=[bos, "$A", eos],
        special_tokens=[(token, backend.token_to_id(token)) for token in dict.fromkeys((bos, eos))],
    )
    limit = {} if max_length is None else {"model_max_length": max_length}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,  # do not look for special tokens in the text
        model_input_names=["input_ids", "attention_mask"],
        **limit,
    )
