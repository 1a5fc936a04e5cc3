"""Subword tokenisers trained on a corpus: byte-level BPE and byte-level Unigram.

Both work on the bytes of the UTF-8 text, as GPT-2 does: every byte is in the vocabulary, so that nothing is unknown
and `decode(encode(text))` is the text, whatever it holds. Both are deterministic. Ids: `<pad>` 0, `<bos>` 1, `<eos>`
2, then the pieces by falling frequency, on which a softmax over frequent words (`frequent_words`) relies.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from latent_ebm_text.errors import DataError, UsageError
from latent_ebm_text.tokenization import BOS_TOKEN, EOS_TOKEN, PAD_TOKEN, wrap_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

SUBWORD_VOCAB_SIZE = 8_000
_SPECIAL = (PAD_TOKEN, BOS_TOKEN, EOS_TOKEN)
_SMALLEST = len(_SPECIAL) + 256


def train_bpe_tokenizer(
    texts: Iterable[str], *, vocab_size: int = SUBWORD_VOCAB_SIZE, max_length: int | None = None
) -> PreTrainedTokenizerFast:
    """Byte pair encoding (Sennrich et al., 2016) on bytes.

    texts: read once.
    vocab_size: the most ids, at least 259: three special ones and the bytes.
    max_length: the tokeniser's `model_max_length` in tokens, bos and eos included; None sets no limit.

    Raises `UsageError` for too small a vocabulary, `DataError` for a corpus with fewer than two words.
    """
    from tokenizers import Tokenizer, models, trainers

    _require_room(vocab_size)
    words: Counter[str] = Counter()
    backend = _on_bytes(Tokenizer(models.BPE()))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(_SPECIAL), initial_alphabet=_alphabet(), show_progress=False
    )
    backend.train_from_iterator(_counting(texts, words), trainer=trainer)
    _require_words(words)
    return wrap_tokenizer(_by_frequency(backend, words), max_length)


def train_unigram_tokenizer(
    texts: Iterable[str], *, vocab_size: int = SUBWORD_VOCAB_SIZE, max_length: int | None = None
) -> PreTrainedTokenizerFast:
    """A unigram language model over pieces (Kudo, 2018), trained by SentencePiece.

    SentencePiece learns the pieces and their probabilities from the words and their counts, in one thread, because the
    trainer of `tokenizers` gives other pieces at every run; `tokenizers` applies them.

    Arguments and errors are those of `train_bpe_tokenizer`; a small corpus may give fewer ids.
    """
    import sentencepiece
    from tokenizers import Tokenizer, models

    _require_room(vocab_size)
    words: Counter[str] = Counter()
    for _ in _counting(texts, words):
        pass
    _require_words(words)
    # Words that occur once or twice, as misspellings do, are cut into the same pieces for the same total.
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
            vocab_size=vocab_size - len(unseen) + 1,  # its <unk> is left out below
            hard_vocab_limit=False,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            pad_piece=PAD_TOKEN,
            bos_piece=BOS_TOKEN,
            eos_piece=EOS_TOKEN,
            # The words are cut and spelled in bytes already: nothing is to be done to them.
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
    # Bytes that the corpus has not are less probable than all that it has.
    pieces += [(byte, min(score for _, score in pieces) - 1.0) for byte in unseen]
    backend = _on_bytes(Tokenizer(models.Unigram(pieces)))
    backend.add_special_tokens(list(_SPECIAL))
    return wrap_tokenizer(backend, max_length)


def _on_bytes(backend: Tokenizer) -> Tokenizer:
    from tokenizers import decoders, pre_tokenizers

    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _alphabet() -> list[str]:
    """A character for each of the 256 bytes."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _counting(texts: Iterable[str], words: Counter[str]) -> Iterator[str]:
    """The texts, while their words are counted: with the space before them, but the first."""
    for text in texts:
        first, *rest = text.split() or [""]
        words[first] += 1
        words.update([" " + word for word in rest])
        yield text


def _by_frequency(backend: Tokenizer, words: Counter[str]) -> Tokenizer:
    """The same BPE with ids by falling frequency in the corpus, ties in the order in which they were merged."""
    from tokenizers import Tokenizer

    counts: Counter[int] = Counter()
    known = list(words)
    for word, encoding in zip(known, backend.encode_batch(known, add_special_tokens=False), strict=True):
        for index in encoding.ids:
            counts[index] += words[word]
    vocabulary = backend.get_vocab()
    specials = [vocabulary[token] for token in _SPECIAL]
    others = sorted(set(vocabulary.values()).difference(specials), key=lambda index: (-counts[index], index))
    rank = {index: place for place, index in enumerate([*specials, *others])}
    state = json.loads(backend.to_str())
    state["model"]["vocab"] = {token: rank[index] for token, index in vocabulary.items()}
    for token in state["added_tokens"]:
        token["id"] = rank[token["id"]]
    return Tokenizer.from_str(json.dumps(state))


def _require_room(vocab_size: int) -> None:
    if vocab_size < _SMALLEST:
        raise UsageError(
            f"vocab_size is {vocab_size}, but {len(_SPECIAL)} special ids and the 256 bytes need {_SMALLEST}; make it "
            "larger, or choose a word tokenizer."
        )


def _require_words(words: Counter[str]) -> None:
    if len({word.strip() for word in words} - {""}) < 2:
        raise DataError(
            "the corpus has fewer than 2 words to train a tokenizer on; check the file and its text column."
        )
