"""SNLI and Yahoo answers rebuilt from data sets with the Hub's schema."""

from collections import Counter

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from latent_ebm_text.data.snli_yahoo import YAHOO_MAX_WORDS, rebuild_snli, rebuild_yahoo, split_words
from latent_ebm_text.errors import DataError

SIZES = {"train": 40, "validation": 10, "test": 10}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A man isn't sleeping.", "A man is n't sleeping ."),
        ("Can't you see God's throne?!", "Ca n't you see God 's throne ? !"),
        ('He says "why (not)", they\'ll go', "He says `` why ( not ) '' , they 'll go"),
        ("1,000.50 at 9:30 in the U.S. today... well-known", "1,000.50 at 9:30 in the U.S. today ... well-known"),
        ("one,two  \n three/four o'clock", "one , two three/four o'clock"),
        ("schöne Grüße", "schöne Grüße"),
        ("   ", ""),
    ],
)  # fmt: skip
def test_words_and_marks_are_separated(text: str, words: str) -> None:
    assert split_words(text) == words
    assert split_words(words.replace("n't", "not")) == words.replace("n't", "not"), "done once is done"


def snli(size: int = 60) -> dict[str, Dataset]:
    """Premises that occur three times each, as in SNLI, distinct hypotheses, and sentences that are in every split."""
    features = Features(
        premise=Value("string"),
        hypothesis=Value("string"),
        label=ClassLabel(names=["entailment", "neutral", "contradiction"]),
    )
    return {
        split: Dataset.from_dict(
            {
                "premise": [f"Premise {row // 3} of {split}." for row in range(size)],
                "hypothesis": [
                    "A man is sleeping." if row % 5 == 0 else f"It's {split} {row}!" for row in range(size)
                ],
                "label": [-1] * size,
            },
            features=features,
        )
        for split in ("test", "train", "validation")
    }


def test_snli_is_unique_sentences_none_in_two_splits() -> None:
    drawn = rebuild_snli(snli(), SIZES)
    assert {split: len(dataset) for split, dataset in drawn.items()} == SIZES
    texts = [text for dataset in drawn.values() for text in dataset["text"]]
    assert len(set(texts)) == len(texts)
    whole = rebuild_snli(snli(), {"train": 68, "validation": 68, "test": 69})
    assert [sum(text == "A man is sleeping ." for text in whole[split]["text"]) for split in SIZES] == [0, 0, 1]
    assert all(text.endswith((" .", " !")) for text in texts)


def test_the_draw_is_always_the_same_and_mixes_premises_with_hypotheses() -> None:
    first, second = rebuild_snli(snli(), SIZES), rebuild_snli(snli(), SIZES)
    assert first["train"]["text"][:] == second["train"]["text"][:]
    kinds = Counter(text.startswith("Premise") for text in first["train"]["text"])
    assert min(kinds.values()) >= 5


def test_a_copy_of_snli_with_too_few_sentences_is_refused() -> None:
    with pytest.raises(DataError, match=r"stanfordnlp/snli, train has 68 texts .* 100 are drawn from it; is the copy"):
        rebuild_snli(snli(), {**SIZES, "train": 100})


def yahoo(size: int = 100, topics: int = 10) -> dict[str, Dataset]:
    features = Features(
        id=Value("int32"),
        topic=ClassLabel(num_classes=topics),
        question_title=Value("string"),
        question_content=Value("string"),
        best_answer=Value("string"),
    )
    return {
        split: Dataset.from_dict(
            {
                "id": range(size),
                "topic": [row % topics for row in range(size)],
                "question_title": [f"Why {row} in {split}?" for row in range(size)],
                "question_content": [None if row % 3 else r"I don't know\nwhy.<br />" for row in range(size)],
                # Every seventh is one word too long.
                "best_answer": ["So. " * 100 if row % 7 == 0 else 'Because "it" IS.' for row in range(size)],
            },
            features=features,
        )
        for split in ("train", "test")
    }


def test_yahoo_is_question_and_answer_in_lower_case_and_not_too_long() -> None:
    drawn = rebuild_yahoo(yahoo(), SIZES)
    assert {split: len(dataset) for split, dataset in drawn.items()} == SIZES
    texts = {split: dataset["text"][:] for split, dataset in drawn.items()}
    for text in sum(texts.values(), []):
        assert "so ." not in text, "a document without its end is none"
        assert text.endswith("? i do n't know why . because `` it '' is .") or text.endswith("? because `` it '' is .")
        assert len(text.split()) <= YAHOO_MAX_WORDS
    assert all("in train ?" in text for split in ("train", "validation") for text in texts[split])
    assert all("in test ?" in text for text in texts["test"])
    assert not set(texts["train"]) & set(texts["validation"])


def test_every_topic_of_yahoo_has_the_same_share() -> None:
    for split, dataset in rebuild_yahoo(yahoo(200), SIZES).items():
        assert set(Counter(dataset["topic"]).values()) == {SIZES[split] // 10}, split


def test_yahoo_draws_the_same_documents_again_and_refuses_too_few() -> None:
    assert rebuild_yahoo(yahoo(), SIZES)["test"]["text"][:] == rebuild_yahoo(yahoo(), SIZES)["test"]["text"][:]
    with pytest.raises(DataError, match=r"yahoo_answers_topics, train has 100 texts that can be used, and 200 are"):
        rebuild_yahoo(yahoo(), {**SIZES, "train": 190})
    with pytest.raises(DataError, match=r"train, topic \d has [89] texts that can be used, and 10 are drawn"):
        rebuild_yahoo(yahoo(), {**SIZES, "train": 90})
