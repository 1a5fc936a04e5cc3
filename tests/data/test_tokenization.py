"""Word-level and pretrained tokenizers: ids, round trips, special tokens in text, and errors."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from latent_ebm_text.data.tokenizers import (
    check_tokenizer_fits,
    make_tokenizer,
    tokenizer_identity,
    train_bpe_tokenizer,
    train_word_tokenizer,
)
from latent_ebm_text.errors import DataError, UsageError

CORPUS = ["the cat 's <unk> did n't sit .", "the dog sat , N times .", "the end ."]


@pytest.fixture(scope="module", params=["trained", "reloaded"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """Every property must also hold after saving and reloading."""
    tokenizer = train_word_tokenizer(CORPUS, max_length=40)
    if request.param == "reloaded":
        folder = tmp_path_factory.mktemp("tokenizer")
        tokenizer.save_pretrained(folder)
        assert {path.name for path in folder.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
        return AutoTokenizer.from_pretrained(folder)
    return tokenizer


def test_ids_are_specials_then_words_by_frequency_then_alphabet(tokenizer: PreTrainedTokenizerBase) -> None:
    by_id = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    assert by_id[:6] == ["<pad>", "<bos>", "<eos>", "<unk>", ".", "the"]
    assert by_id[6:] == sorted(["cat", "'s", "did", "n't", "sit", "dog", "sat", ",", "N", "times", "end"])
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))


def test_settings_survive(tokenizer: PreTrainedTokenizerBase) -> None:
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert (tokenizer.padding_side, tokenizer.model_max_length) == ("right", 40)
    batch = tokenizer(["the", "the end ."], padding=True)
    assert batch["input_ids"][0] == [1, 5, 2, 0, 0]
    assert set(batch) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("line", CORPUS)
def test_decode_inverts_encode_and_keeps_unk(tokenizer: PreTrainedTokenizerBase, line: str) -> None:
    padded = tokenizer(line, padding="max_length", max_length=12)["input_ids"]
    assert padded[0] == 1
    assert padded[-1] == 0
    assert tokenizer.decode(padded, skip_special_tokens=True) == line
    assert tokenizer.batch_decode([padded], skip_special_tokens=True) == [line]


def test_unknown_and_literal_unk_share_id_3(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer("<unk> zebra")["input_ids"] == [1, 3, 3, 2]


def test_text_cannot_inject_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer("<bos> the <eos> <pad> end<eos>")["input_ids"] == [1, 3, 5, 3, 3, 3, 2]


def test_special_words_of_the_corpus_get_no_second_entry() -> None:
    tokenizer = train_word_tokenizer(["a <eos> <eos> <unk> <pad> b <bos>"])
    assert tokenizer.get_vocab() == {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3, "a": 4, "b": 5}


def test_vocab_size_counts_specials_and_min_frequency_drops_rare_words() -> None:
    assert set(train_word_tokenizer(CORPUS, vocab_size=6).get_vocab()) == {
        "<pad>",
        "<bos>",
        "<eos>",
        "<unk>",
        ".",
        "the",
    }
    assert len(train_word_tokenizer(CORPUS, min_frequency=3)) == 6
    assert len(train_word_tokenizer(CORPUS, vocab_size=None)) == 4 + 13


@pytest.mark.parametrize(
    ("texts", "options", "error", "message"),
    [
        (["a a a", "a <unk>"], {}, DataError, "1 word types .* at least 2"),
        ([], {}, DataError, "0 word types"),
        (["a b"], {"vocab_size": 4}, UsageError, "vocab_size is 4, .* make it larger"),
        (["a b"], {"min_frequency": 2}, UsageError, "min_frequency=2"),
    ],
)
def test_refusals(texts: list[str], options: dict[str, int], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        train_word_tokenizer(texts, **options)


def test_check_tokenizer_fits(tmp_path: Path) -> None:
    tokenizer = train_word_tokenizer(CORPUS)
    check_tokenizer_fits(tokenizer, len(tokenizer))
    for vocab_size in (len(tokenizer) - 1, len(tokenizer) + 1):
        with pytest.raises(UsageError, match=f"ids up to 16, .* {vocab_size} entries; use the tokenizer saved with"):
            check_tokenizer_fits(tokenizer, vocab_size)
    check_tokenizer_fits(tokenizer, len(tokenizer) + 1, is_padded=True)
    with pytest.raises(UsageError, match="20 entries"):
        check_tokenizer_fits(tokenizer, 20, is_padded=True)
    tokenizer.pad_token = tokenizer.eos_token = None
    with pytest.raises(UsageError, match="has no pad_token, no eos_token"):
        check_tokenizer_fits(tokenizer, 100)


# ---- any kind, by name ----


def test_rare_words_stay_in_pieces_that_new_words_are_made_of() -> None:
    """Merged whole, as without a limit, the two rare words would leave no piece that occurs in training."""
    rare = ["walkable", "talked"]
    corpus = ["we walk and talk, walk and talk"] * 3 + [f"it was {word}" for word in rare]
    tokenizer, whole = train_bpe_tokenizer(corpus), train_bpe_tokenizer(corpus, min_frequency=1)
    for word in rare:
        assert len(tokenizer.tokenize(f" {word}")) > len(whole.tokenize(f" {word}")) == 1
    assert len(tokenizer.tokenize(" walk")) == 1
    seen = {token for text in corpus for token in tokenizer.tokenize(text)}
    assert {*tokenizer.tokenize(" walked")} <= seen
    assert not {*whole.tokenize(" walked")} <= {token for text in corpus for token in whole.tokenize(text)}


def test_tokenisers_by_name() -> None:
    word, notes = make_tokenizer("word", CORPUS, max_length=40)
    assert tokenizer_identity(word) == tokenizer_identity(train_word_tokenizer(CORPUS, vocab_size=None, max_length=40))
    assert notes == []
    assert len(make_tokenizer("bpe", CORPUS * 3, vocab_size=270)[0]) == 270
    assert "Ġ" in "".join(make_tokenizer("unigram", CORPUS, vocab_size=270)[0].get_vocab())


def test_words_that_occur_once_become_unknown_where_new_words_matter() -> None:
    common = ["the cat sat on the mat"] * 20
    words = make_tokenizer("word", [*common, "the quick cat ran"])[0].get_vocab()  # 2 of 124 tokens
    assert {"the", "cat"} <= set(words)
    assert not {"quick", "ran"} & set(words)
    tokenizer, (note,) = make_tokenizer("word", [*common, "the quick cat ran"])
    assert "2 words that occur once become <unk>" in note
    assert tokenizer("a quick cat")["input_ids"] == [1, 3, 3, tokenizer.get_vocab()["cat"], 2]
    # Hardly any new word, a corpus that is too small, and one whose unknown words have a token already.
    for texts in ([*common * 10, "the quick cat ran"], [*common[:1], "the quick cat ran"], [*common, "quick <unk>"]):
        tokenizer, notes = make_tokenizer("word", texts)
        assert "quick" in tokenizer.get_vocab()
        assert notes == []


def test_the_ids_of_words_are_what_trained_evaluators_were_trained_on() -> None:
    tokenizer = train_word_tokenizer(["b a a <unk>", "c a b"], vocab_size=6)
    assert tokenizer.get_vocab() == {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3, "a": 4, "b": 5}
    assert tokenizer("c a <eos> b")["input_ids"] == [1, 3, 4, 3, 5, 2]


def test_the_identity_is_of_rules_and_not_of_calls(tokenizer: PreTrainedTokenizerBase) -> None:
    before = tokenizer_identity(tokenizer)
    tokenizer(["the", "the end ."], padding=True, truncation=True, max_length=3)
    assert tokenizer_identity(tokenizer) == before
    assert tokenizer_identity(train_word_tokenizer([*CORPUS, "more"], max_length=40)) != before


def save_foreign(folder: Path, **tokens: str) -> str:
    """A byte-level tokenizer as other libraries save it: no template, special tokens found in the text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=sorted(set(tokens.values())),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer=trainer)
    PreTrainedTokenizerFast(tokenizer_object=backend, **tokens).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("tokens", "added", "notes"),
    [
        ({}, 3, ["no pad token: <pad> was added", "no bos token: <bos> was added", "no eos token: <eos> was added"]),
        ({"eos_token": "<|end|>", "bos_token": "<|end|>"}, 1, ["no pad token: <pad> was added"]),
        (
            {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"},
            0,
            ["no bos token: [CLS] serves", "no eos token: [SEP] serves"],
        ),
        ({"pad_token": "</s>", "eos_token": "</s>", "bos_token": "<s>"}, 0, []),
    ],
    ids=["none", "like GPT-2", "like BERT", "complete"],
)
def test_a_pretrained_tokenizer_gets_what_it_lacks(
    tmp_path: Path, tokens: dict[str, str], added: int, notes: list[str]
) -> None:
    path = save_foreign(tmp_path / "foreign", **tokens)
    tokenizer, said = make_tokenizer(path, [], max_length=40)
    assert said == [f"the tokenizer has {note}" for note in notes]
    original = AutoTokenizer.from_pretrained(path)
    assert len(tokenizer) == len(original) + added
    text = f"the cat {tokens.get('eos_token', '[SEP]')} sat"
    plain = tokenizer("the cat sat")["input_ids"]
    assert plain[1:-1] == original("the cat sat", add_special_tokens=False)["input_ids"], "ids keep their meaning"
    tokenizer.save_pretrained(tmp_path / "saved")
    for same in (tokenizer, AutoTokenizer.from_pretrained(tmp_path / "saved")):
        check_tokenizer_fits(same, len(same))
        ids = same(text)["input_ids"]
        assert (ids[0], ids[-1]) == (same.bos_token_id, same.eos_token_id)
        assert not {same.bos_token_id, same.eos_token_id, same.pad_token_id} & set(ids[1:-1])
        assert same.decode(ids, skip_special_tokens=True) == text


def test_a_pretrained_tokenizer_is_refused_where_it_cannot_be_right(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="there is no tokenizer './nowhere': it must be word, bpe, unigram, or the name"
    ):
        make_tokenizer("./nowhere", CORPUS)
    path = save_foreign(tmp_path)
    with pytest.raises(
        UsageError, match="vocab_size is 100, but the pretrained tokenizer .* has a vocabulary already"
    ):
        make_tokenizer(path, CORPUS, vocab_size=100)
