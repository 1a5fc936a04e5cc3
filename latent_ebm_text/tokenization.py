"""Word-level tokenisers trained on a corpus, as ordinary fast Hugging Face tokenisers.

They save to `tokenizer.json` and `tokenizer_config.json` and come back the same through `AutoTokenizer`, without any
code of this library. Two decisions need a reason:

- `<unk>` is an ordinary word to `transformers` (`tokenizer.unk_token` is None; its id is 3, `UNK_TOKEN` its text) and
  the unknown word only to the word-level model inside. In PTB `<unk>` is a word of the sentences; as a special token
  it would be dropped by `decode(ids, skip_special_tokens=True)`, and `decode(encode(line))` would not be the line.
- A literal `<pad>`, `<bos>` or `<eos>` in a text becomes `<unk>`: text can never end a sentence or look like padding.
  Special ids come from the post-processor or from the caller, never from text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from latent_ebm_text.errors import DataError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD_TOKEN, BOS_TOKEN, EOS_TOKEN, UNK_TOKEN = SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")


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
    return _wrap({token: index for index, token in enumerate(tokens)}, max_length)


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


def _wrap(vocabulary: dict[str, int], max_length: int | None) -> PreTrainedTokenizerFast:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    # An explicit vocabulary: a WordLevelTrainer that meets "<unk>" in the text as well moves its id and leaves a hole.
    backend = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=UNK_TOKEN))
    backend.normalizer = normalizers.Replace(Regex(r"(?<!\S)<(?:pad|bos|eos)>(?!\S)"), UNK_TOKEN)
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS_TOKEN} $A {EOS_TOKEN}",
        special_tokens=[(token, vocabulary[token]) for token in (BOS_TOKEN, EOS_TOKEN)],
    )
    limit = {} if max_length is None else {"model_max_length": max_length}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD_TOKEN,
        bos_token=BOS_TOKEN,
        eos_token=EOS_TOKEN,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,  # do not look for special tokens in the text: leave them to the normaliser above
        model_input_names=["input_ids", "attention_mask"],
        **limit,
    )
