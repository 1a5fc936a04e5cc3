"""Word-level tokenisers: ids, round trips, what text cannot do, and refusals."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from latent_ebm_text.errors import DataError, UsageError
from latent_ebm_text.tokenization import check_tokenizer_fits, train_word_tokenizer

CORPUS = ["the cat 's <unk> did n't sit .", "the dog sat , N times .", "the end ."]


@pytest.fixture(scope="module", params=["trained", "reloaded"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """Every promise must hold after save and reload as well."""
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
    with pytest.raises(UsageError, match="ids up to 16, .* 16 entries; .* vocab_size=17"):
        check_tokenizer_fits(tokenizer, len(tokenizer) - 1)
    tokenizer.pad_token = tokenizer.eos_token = None
    with pytest.raises(UsageError, match="has no pad_token, no eos_token"):
        check_tokenizer_fits(tokenizer, 100)
