"""Sentences from whatever users of Python keep them in, the same for every function that takes sentences."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict

from latent_ebm_text.anomaly.corruptions import shuffled_words_task
from latent_ebm_text.anomaly.detectors import LatentEBMDetector
from latent_ebm_text.anomaly.metrics import auroc
from latent_ebm_text.anomaly.text_detector import LatentEBMTextDetector
from latent_ebm_text.data.inputs import each_entry, each_sentence
from latent_ebm_text.data.tokenizers import train_bpe_tokenizer, train_word_tokenizer
from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.diversity import unique_rate
from tests.helpers import seeded, tiny_model, tiny_tokenizer

SENTENCES = ["w01 w02 w03 w04", "w05 w06 w07 w08", "w09 w10 w11 w12"]
ROWS = pd.DataFrame({"text": ["left out", *SENTENCES], "stars": range(4)})[lambda rows: rows.stars > 0]
LABELLED = Dataset.from_dict({"text": SENTENCES, "label": [0, 1, 0]})

FORMS: dict[str, Callable[[], Any]] = {
    "tuple": lambda: tuple(SENTENCES),
    "generator": lambda: (sentence for sentence in SENTENCES),
    "filtered Series": lambda: ROWS["text"],
    "DataFrame with one column": lambda: ROWS[["text"]].rename(columns={"text": "review"}),
    "DataFrame with a column text": lambda: ROWS,
    "Index": lambda: pd.Index(SENTENCES),
    "Series of categories": lambda: ROWS["text"].astype("category"),
    "array (n,)": lambda: np.array(SENTENCES),
    "array (n, 1)": lambda: np.array(SENTENCES)[:, None],
    "array of objects (n, 1)": lambda: ROWS[["text"]].to_numpy(),
    "Dataset": lambda: LABELLED,
    "Column": lambda: LABELLED["text"],
    "IterableDataset": lambda: LABELLED.to_iterable_dataset(),
    "Arrow array": lambda: pa.array(SENTENCES),
    "Arrow table": lambda: pa.table({"text": SENTENCES}),
}


@pytest.mark.parametrize("form", FORMS)
def test_sentences_are_the_same_in_every_form(form: str) -> None:
    assert list(each_sentence(FORMS[form]())) == SENTENCES


@pytest.mark.parametrize(
    "form", ["generator", "filtered Series", "DataFrame with a column text", "array (n, 1)", "Dataset"]
)
def test_whoever_takes_sentences_takes_them_in_every_form(form: str) -> None:
    model, tokenizer = tiny_model().eval(), tiny_tokenizer()

    def results(sentences: Callable[[], Any]) -> list[Any]:
        detector = LatentEBMTextDetector(model, tokenizer, score="reconstruction")
        options = {"tokenizer": tokenizer, "num_draws": 2}
        return [
            model.score(sentences(), **options, marginal="none", generator=seeded()).joint_energy.tolist(),
            model.posterior_draws(sentences(), **options, generator=seeded()).tolist(),
            model.build_index(sentences(), **options, generator=seeded()).mean.tolist(),
            model.encode(sentences(), tokenizer=tokenizer, generator=seeded()).tolist(),
            model.combine(
                sentences(), pd.Series([1.0, 0.0, -1.0], index=[7, 8, 9]), **options, generator=seeded()
            ).tolist(),
            detector.fit(sentences()).decision_scores_.tolist(),
            detector.predict_proba(sentences()).tolist(),
            shuffled_words_task(sentences(), 2).texts,
            unique_rate(sentences()).value,
            train_word_tokenizer(sentences()).get_vocab(),
            train_bpe_tokenizer(sentences()).get_vocab(),
        ]

    assert results(FORMS[form]) == results(lambda: SENTENCES)


def test_token_ids_come_in_every_form_too() -> None:
    model, ids = tiny_model().eval(), [[1, 5, 6, 2], [1, 7, 8, 2]]
    expected = model.encode(ids, generator=seeded()).tolist()
    for form in (
        np.array(ids),
        iter(ids),
        pd.Series(ids, index=[7, 8]),
        pa.array(ids),
        Dataset.from_dict({"ids": ids}),
    ):
        assert model.encode(form, generator=seeded()).tolist() == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("w01 w02", "sentences must be a list, not one string"),
        (np.array("w01 w02"), "sentences must be a list, not one string"),
        (set(SENTENCES), "other data with an order, got set"),
        ({"w01": 1}, "other data with an order, got dict"),
        (b"w01", "other data with an order, got bytes"),
        (DatasetDict(train=LABELLED), "other data with an order, got DatasetDict"),
        (None, "other data with an order, got NoneType"),
        (3, "other data with an order, got int"),
        (pd.DataFrame({"a": SENTENCES, "b": SENTENCES}), "which of this DataFrame: a, b; give that column alone"),
        (LABELLED.rename_column("text", "a"), "unclear which of this Dataset: a, label"),
    ],
)  # fmt: skip
def test_what_has_no_order_or_no_clear_column_is_named(data: Any, message: str) -> None:
    for use in (each_entry, each_sentence):
        with pytest.raises(UsageError, match=message):
            list(use(data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pd.Series([SENTENCES[0], None]), "must all be strings, got also float, at place 2"),
        ([SENTENCES[0], b"w01"], "must all be strings, got also bytes, at place 2"),
        ([b"w01 w02"], "strings or lists of token ids; got also bytes"),
        ([["w01", "w02"]], r"token ids are integers, and a sentence is \['w01', 'w02'\]"),
        ([[1.5, 2.5, 2.0]], r"token ids are integers, and a sentence is \[1.5, 2.5, 2.0\]"),
        (np.array([SENTENCES, SENTENCES]), "token ids are integers, and a sentence is"),
        ([], "no sentences were given"),
        (iter(()), "no sentences were given"),
    ],
)
def test_entries_that_are_no_sentences_are_named(data: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tiny_model().score(data, tokenizer=tiny_tokenizer())


def test_scores_that_are_no_numbers_are_named() -> None:
    with pytest.raises(UsageError, match="a score function gives numbers, got generator"):
        LatentEBMDetector(lambda data: (1.0 for _ in data)).fit([1, 2])
    with pytest.raises(UsageError, match="scores must be numbers, got generator"):
        auroc([0, 1], (score for score in (1.0, 2.0)))
