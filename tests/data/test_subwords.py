"""Byte-level BPE and Unigram: lossless, without unknown tokens, and with the same ids in every run."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from latent_ebm_text.data.newswire import grammar_dataset
from latent_ebm_text.data.tokenizers import (
    check_tokenizer_fits,
    make_tokenizer,
    tokenizer_identity,
    train_bpe_tokenizer,
    train_unigram_tokenizer,
)
from latent_ebm_text.errors import DataError, UsageError

TRAINERS = {"bpe": train_bpe_tokenizer, "unigram": train_unigram_tokenizer}
HARD = [
    "the market fell",
    " two  spaces, and one at the end ",
    "tab\tline\nend\r\n",
    "<eos> <pad><bos> literally",
    "▁ is what SentencePiece writes for a space, Ġ what GPT-2 does",
    "Grüße, 漢字, العربية, 🙂👩‍👩‍👧, ﬁ, \u00a0, e\u0301",
    "\x00\x07\x7f",
    "",
]


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    return list(grammar_dataset(num_train=2_000)["train"]["text"])


@pytest.fixture(
    scope="module", params=[(name, way) for name in TRAINERS for way in ("trained", "reloaded")], ids="-".join
)
def tokenizer(
    request: pytest.FixtureRequest, corpus: list[str], tmp_path_factory: pytest.TempPathFactory
) -> PreTrainedTokenizerBase:
    name, way = request.param
    made = TRAINERS[name](iter(corpus), vocab_size=500, max_length=40)
    if way == "trained":
        return made
    folder = tmp_path_factory.mktemp("tokenizer")
    made.save_pretrained(folder)
    assert {path.name for path in folder.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


@pytest.mark.parametrize("text", HARD)
def test_decode_inverts_encode(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert not {0, 1, 2} & set(ids[1:-1]), "text cannot end a sentence"
    assert tokenizer.decode([*ids, 0, 0], skip_special_tokens=True) == text


def test_decode_inverts_encode_on_the_corpus(tokenizer: PreTrainedTokenizerBase, corpus: list[str]) -> None:
    assert tokenizer.batch_decode(tokenizer(corpus)["input_ids"], skip_special_tokens=True) == corpus


def test_ids_have_no_holes_and_fall_in_frequency(tokenizer: PreTrainedTokenizerBase, corpus: list[str]) -> None:
    assert tokenizer.is_fast
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert len(tokenizer) <= 500
    check_tokenizer_fits(tokenizer, len(tokenizer))
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.model_max_length == 40
    counts = Counter(id for ids in tokenizer(corpus)["input_ids"] for id in ids[1:-1])
    total = sum(counts.values())
    assert sum(counts[id] for id in range(3, 103)) > 0.9 * sum(count for _, count in counts.most_common(100))
    assert total < 2.5 * sum(len(text.split()) for text in corpus), "pieces are longer than bytes"


def test_bpe_ids_are_ranked_exactly_and_its_merges_are_those_that_were_learned(corpus: list[str]) -> None:
    ranked = train_bpe_tokenizer(corpus, vocab_size=400)
    counts = Counter(id for ids in ranked(corpus, add_special_tokens=False)["input_ids"] for id in ids)
    used = [counts[id] for id in range(3, 400)]
    assert used == sorted(used, reverse=True)
    assert "Ġmarket" in train_bpe_tokenizer(["the market"] * 3 + ["a market"], vocab_size=280).get_vocab()


@pytest.mark.parametrize("name", TRAINERS)
def test_another_process_learns_the_same(name: str, corpus: list[str]) -> None:
    code = (
        "from latent_ebm_text.data.newswire import grammar_dataset;"
        "from latent_ebm_text.data.tokenizers import make_tokenizer, tokenizer_identity;"
        f"texts = grammar_dataset(num_train=2_000)['train']['text'];"
        f"print(tokenizer_identity(make_tokenizer('{name}', texts, vocab_size=450)[0]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == tokenizer_identity(make_tokenizer(name, corpus, vocab_size=450)[0])


@pytest.mark.parametrize("train", TRAINERS.values(), ids=TRAINERS)
def test_refusals(train, corpus: list[str]) -> None:
    with pytest.raises(UsageError, match="vocab_size is 258, but 3 special ids and the 256 bytes need 259; make it"):
        train(corpus, vocab_size=258)
    for texts in ([], ["word", "  word "]):
        with pytest.raises(DataError, match="fewer than 2 words to train a tokenizer on"):
            train(texts)


@pytest.mark.parametrize("train", TRAINERS.values(), ids=TRAINERS)
def test_a_small_corpus_gives_what_it_has(train, tmp_path: Path) -> None:
    tokenizer = train(["a b", "a c"])
    assert 259 <= len(tokenizer) < 300
    assert tokenizer.decode(tokenizer("z é")["input_ids"], skip_special_tokens=True) == "z é"
