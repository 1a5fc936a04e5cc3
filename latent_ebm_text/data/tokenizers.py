"""Tokenizers for a corpus: word-level, byte-level BPE or byte-level Unigram, trained on it, or a pretrained one.

All are fast Hugging Face tokenizers that put bos before and eos after a text. They are saved to `tokenizer.json` and
`tokenizer_config.json` and load through `AutoTokenizer` without code of this library. Three decisions need a reason:

- To `transformers`, `<unk>` is an ordinary word of the word-level tokenizer (`tokenizer.unk_token` is None, its id is
  3, its text `UNK_TOKEN`); only the model inside knows it as the unknown word. In PTB `<unk>` is a word of the
  sentences: as a special token it would be dropped by `decode(ids, skip_special_tokens=True)`, and
  `decode(encode(line))` would not be the line.
- A literal `<pad>`, `<bos>` or `<eos>` in a text becomes `<unk>`, or is split into pieces by subword tokenizers, so
  text can never end a sentence or look like padding. Special ids come from the post-processor or from the caller,
  never from text.
- A pretrained tokenizer keeps its vocabulary and rules but is wrapped again, because tokenizer classes differ in how
  they treat bos, eos and special tokens in a text.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from latent_ebm_text.data.inputs import each_sentence
from latent_ebm_text.errors import DataError, UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD_TOKEN, BOS_TOKEN, EOS_TOKEN, UNK_TOKEN = SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
#: Tokenizers that are trained on the corpus; any other name is that of a pretrained one.
TRAINED_TOKENIZERS = ("word", "bpe", "unigram")

#: Default vocabulary size of subword tokenizers.
SUBWORD_VOCAB_SIZE = 16_000
#: How often two pieces must stand side by side to become one. Without a limit, a small corpus has every word merged
#: whole, also those that occur once: the pieces that new words consist of then never occur in training.
SUBWORD_MIN_FREQUENCY = 3
#: Words that occur once in a corpus become `<unk>` where their share of its tokens lies between these. That share
#: estimates how much of new text consists of new words (Good, 1953), so that `<unk>` becomes as frequent in training
#: as it will be. Below, new words hardly matter; above, the corpus is too small to do without.
WORDS_THAT_OCCUR_ONCE = (0.01, 0.1)
_SUBWORD_SPECIAL_TOKENS = (PAD_TOKEN, BOS_TOKEN, EOS_TOKEN)
_SMALLEST_SUBWORD_VOCAB = len(_SUBWORD_SPECIAL_TOKENS) + 256


def make_tokenizer(
    name_or_path: str, texts: Iterable[str], *, vocab_size: int | None = None, max_length: int | None = None
) -> tuple[PreTrainedTokenizerFast, list[str]]:
    """Trains or loads the tokenizer of a corpus, and returns it with notes for the user, one sentence each.

    Args:
        name_or_path: `"word"`, `"bpe"`, `"unigram"`, or the name or path of a pretrained tokenizer. Where they matter,
            words that occur once become `<unk>` (`WORDS_THAT_OCCUR_ONCE`).
        texts: The training texts, read once, one at a time; not read for a pretrained tokenizer.
        vocab_size: Maximum number of ids; by default all words for `"word"`, and `SUBWORD_VOCAB_SIZE` for `"bpe"` and
            `"unigram"`. Refused for a pretrained tokenizer.
        max_length: The tokenizer's `model_max_length` in tokens, with bos and eos; `None` sets no limit.

    Raises:
        UsageError: If there is no such tokenizer, or `vocab_size` is invalid for it.
        DataError: If the corpus has fewer than two different words.
    """
    if name_or_path == "word":
        counts = _count_words(texts)
        once = sum(count == 1 for count in counts.values())
        least, most = WORDS_THAT_OCCUR_ONCE
        if UNK_TOKEN in counts or not least <= once / counts.total() <= most:
            return _word_tokenizer(counts, vocab_size, 1, max_length), []
        note = f"{once:,} words that occur once become {UNK_TOKEN}, so that the model learns what new words cost"
        return _word_tokenizer(counts, vocab_size, 2, max_length), [note]
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
    """Creates a tokenizer whose tokens are the whitespace-separated words of `texts`.

    Ids: `<pad>` 0, `<bos>` 1, `<eos>` 2, `<unk>` 3, then the words by falling frequency, ties in alphabetical order.

    Args:
        texts: Sentences, read once.
        vocab_size: Maximum number of ids, with the four special ones; `None` keeps every word.
        min_frequency: Rarer words become `<unk>`.
        max_length: The tokenizer's `model_max_length` in tokens, with bos and eos; `None` sets no limit.

    Raises:
        UsageError: If a limit leaves no word.
        DataError: If the corpus has fewer than two different words.
    """
    return _word_tokenizer(_count_words(texts), vocab_size, min_frequency, max_length)


def load_pretrained_tokenizer(
    name_or_path: str, *, max_length: int | None = None
) -> tuple[PreTrainedTokenizerFast, list[str]]:
    """Loads a pretrained tokenizer, adds missing pad, bos and eos tokens, and returns a note on each of those.

    `cls` and `sep` serve as missing bos and eos if they exist; other missing tokens are added. Existing ids keep their
    meaning.

    Args:
        name_or_path: Name or path for `AutoTokenizer.from_pretrained`; code of a Hub repository is not run.
        max_length: The tokenizer's `model_max_length` in tokens, with bos and eos; `None` sets no limit.

    Raises:
        UsageError: If there is no such tokenizer, or it has no fast implementation.
    """
    from tokenizers import AddedToken, Tokenizer
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    except Exception as error:  # tokenizers raise errors of whatever library they need
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


def check_tokenizer_fits(tokenizer: PreTrainedTokenizerBase, vocab_size: int, *, is_padded: bool = False) -> None:
    """Checks that a tokenizer fits a model.

    Args:
        tokenizer: The tokenizer.
        vocab_size: Rows of the model's embedding.
        is_padded: Whether the embedding may have more rows than the tokenizer has tokens, up to a tenth, as those of
            many pretrained language models have.

    Raises:
        UsageError: If the ids of `tokenizer` are not those of the rows, or it lacks the pad, bos or eos token that
            training and generation need.
    """
    missing = [name for name in ("pad_token", "bos_token", "eos_token") if getattr(tokenizer, name) is None]
    if missing:
        raise UsageError(f"the tokenizer has no {', no '.join(missing)}; set them before you use it with this model.")
    num_ids = 1 + max(tokenizer.get_vocab().values())
    if not vocab_size * (0.9 if is_padded else 1.0) <= num_ids <= vocab_size:
        raise UsageError(
            f"the tokenizer has ids up to {num_ids - 1}, but the model's vocabulary has {vocab_size} entries; "
            "use the tokenizer saved with the model."
        )


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns a hash of everything that determines how a tokenizer encodes a text."""
    from tokenizers import Tokenizer

    if not tokenizer.is_fast:
        raise UsageError(f"{type(tokenizer).__name__} is no fast tokenizer; wrap it as a PreTrainedTokenizerFast.")
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    # The padding and truncation of its last call do not belong to it.
    backend.no_padding()
    backend.no_truncation()
    rest = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.split_special_tokens)
    return hashlib.sha256(f"{backend.to_str()} {rest}".encode()).hexdigest()


def _count_words(texts: Iterable[str]) -> Counter[str]:
    return Counter(word for text in each_sentence(texts, "texts") for word in text.split())


def _word_tokenizer(
    counts: Counter[str], vocab_size: int | None, min_frequency: int, max_length: int | None
) -> PreTrainedTokenizerFast:
    if vocab_size is not None and vocab_size <= len(SPECIAL_TOKENS):
        raise UsageError(f"vocab_size is {vocab_size}, but {len(SPECIAL_TOKENS)} ids are special; make it larger.")
    words = [word for word in counts if word not in SPECIAL_TOKENS]
    if len(words) < 2:
        raise DataError(
            f"the corpus has {len(words)} word types besides special tokens, and a text model needs at least 2; "
            "check the file and its text column."
        )
    ranked = sorted((word for word in words if counts[word] >= min_frequency), key=lambda word: (-counts[word], word))
    if not ranked:
        raise UsageError(f"no word of the corpus occurs min_frequency={min_frequency} times; make it smaller.")
    tokens = [*SPECIAL_TOKENS, *ranked][:vocab_size]
    return wrap_tokenizer(_word_backend({token: index for index, token in enumerate(tokens)}), max_length)


def _word_backend(vocabulary: dict[str, int]) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    # The vocabulary is explicit, because a WordLevelTrainer moves the id of "<unk>" if the text contains it.
    backend = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=UNK_TOKEN))
    backend.normalizer = normalizers.Replace(Regex(r"(?<!\S)<(?:pad|bos|eos)>(?!\S)"), UNK_TOKEN)
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return backend


def wrap_tokenizer(
    backend: Tokenizer, max_length: int | None, *, pad: str = PAD_TOKEN, bos: str = BOS_TOKEN, eos: str = EOS_TOKEN
) -> PreTrainedTokenizerFast:
    """Wraps a tokenizer of `tokenizers` for `transformers`, with bos before and eos after a text."""
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


def train_bpe_tokenizer(
    texts: Iterable[str],
    *,
    vocab_size: int = SUBWORD_VOCAB_SIZE,
    min_frequency: int = SUBWORD_MIN_FREQUENCY,
    max_length: int | None = None,
) -> PreTrainedTokenizerFast:
    """Trains byte pair encoding (Sennrich et al., 2016) on bytes.

    Args:
        texts: Sentences, read once.
        vocab_size: Maximum number of ids, at least 259: three special ones and the bytes.
        min_frequency: How often two pieces must stand side by side to become one.
        max_length: The tokenizer's `model_max_length` in tokens, with bos and eos; `None` sets no limit.

    Raises:
        UsageError: If the vocabulary is too small.
        DataError: If the corpus has fewer than two different words.
    """
    from tokenizers import Tokenizer, models, trainers

    _require_room(vocab_size)
    words: Counter[str] = Counter()
    backend = _on_bytes(Tokenizer(models.BPE()))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_SUBWORD_SPECIAL_TOKENS),
        min_frequency=min_frequency,
        initial_alphabet=_alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_counting(texts, words), trainer=trainer)
    _require_words(words)
    return wrap_tokenizer(_by_frequency(backend, words), max_length)


def train_unigram_tokenizer(
    texts: Iterable[str], *, vocab_size: int = SUBWORD_VOCAB_SIZE, max_length: int | None = None
) -> PreTrainedTokenizerFast:
    """Trains a unigram language model over pieces (Kudo, 2018) with SentencePiece.

    SentencePiece learns the pieces and their probabilities from the counts of the words, in one thread, because the
    trainer of `tokenizers` gives different pieces at every run; `tokenizers` applies them.

    Arguments are those of [`train_bpe_tokenizer`] but for `min_frequency`, and errors are the same. A small corpus may
    give fewer ids.
    """
    import sentencepiece
    from tokenizers import Tokenizer, models

    _require_room(vocab_size)
    words: Counter[str] = Counter()
    for _ in _counting(texts, words):
        pass
    _require_words(words)
    # Words are split as the tokenizer will split them, and pieces that different words share are counted together.
    pre_tokenizer, counts = _on_bytes(Tokenizer(models.BPE())).pre_tokenizer, Counter[str]()
    for word, count in words.items():
        for piece, _ in pre_tokenizer.pre_tokenize_str(word):
            counts[piece] += count
    unseen = sorted(set(_alphabet()).difference(*counts))
    trained = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "words.tsv"
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        file.write_text("".join(f"{word}\t{count}\n" for word, count in ranked), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            input=str(file),
            input_format="tsv",
            model_writer=trained,
            model_type="unigram",
            vocab_size=vocab_size - len(unseen) + 1,  # its <unk> is removed below
            hard_vocab_limit=False,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            pad_piece=PAD_TOKEN,
            bos_piece=BOS_TOKEN,
            eos_piece=EOS_TOKEN,
            # The words are already split and written in bytes, so SentencePiece must not change them.
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_by_whitespace=False,
            split_by_unicode_script=False,
            split_by_number=False,
            character_coverage=1.0,
            num_threads=1,
            minloglevel=2,
        )
    model = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    pieces = [(model.id_to_piece(index), model.get_score(index)) for index in range(model.get_piece_size())]
    del pieces[3]
    # Bytes that do not occur in the corpus are less probable than all pieces that do.
    pieces += [(byte, min(score for _, score in pieces) - 1.0) for byte in unseen]
    backend = _on_bytes(Tokenizer(models.Unigram(pieces)))
    backend.add_special_tokens(list(_SUBWORD_SPECIAL_TOKENS))
    return wrap_tokenizer(backend, max_length)


def _on_bytes(backend: Tokenizer) -> Tokenizer:
    from tokenizers import decoders, pre_tokenizers

    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _alphabet() -> list[str]:
    """Returns the characters that stand for the 256 bytes."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _counting(texts: Iterable[str], words: Counter[str]) -> Iterator[str]:
    """Yields the texts and counts their words, each but the first of a text with the space before it."""
    for text in each_sentence(texts, "texts"):
        first, *rest = text.split() or [""]
        words[first] += 1
        words.update([" " + word for word in rest])
        yield text


def _by_frequency(backend: Tokenizer, words: Counter[str]) -> Tokenizer:
    """Renumbers the ids of a BPE by falling frequency in the corpus, ties in the order of merging."""
    from tokenizers import Tokenizer

    counts: Counter[int] = Counter()
    known = list(words)
    for word, encoding in zip(known, backend.encode_batch(known, add_special_tokens=False), strict=True):
        for index in encoding.ids:
            counts[index] += words[word]
    vocabulary = backend.get_vocab()
    specials = [vocabulary[token] for token in _SUBWORD_SPECIAL_TOKENS]
    others = sorted(set(vocabulary.values()).difference(specials), key=lambda index: (-counts[index], index))
    rank = {index: place for place, index in enumerate([*specials, *others])}
    state = json.loads(backend.to_str())
    state["model"]["vocab"] = {token: rank[index] for token, index in vocabulary.items()}
    for token in state["added_tokens"]:
        token["id"] = rank[token["id"]]
    return Tokenizer.from_str(json.dumps(state))


def _require_room(vocab_size: int) -> None:
    if vocab_size < _SMALLEST_SUBWORD_VOCAB:
        raise UsageError(
            f"vocab_size is {vocab_size}, but {len(_SUBWORD_SPECIAL_TOKENS)} special ids and the 256 bytes need "
            f"{_SMALLEST_SUBWORD_VOCAB}; make it larger, or choose a word tokenizer."
        )


def _require_words(words: Counter[str]) -> None:
    if len({word.strip() for word in words} - {""}) < 2:
        raise DataError(
            "the corpus has fewer than 2 words to train a tokenizer on; check the file and its text column."
        )
