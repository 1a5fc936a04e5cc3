"""Corpora from the Hub, without a network: what is asked for, and what is said where nobody answers."""

import re
from typing import Any

import datasets
import huggingface_hub
import pytest
from datasets import Dataset, DatasetDict

from latent_ebm_text.data import snli_yahoo as rebuilt
from latent_ebm_text.data.text import load_text_dataset
from latent_ebm_text.errors import DataError, UsageError
from tests.data.corpora import LINES, rows, texts


@pytest.fixture
def reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hub that answers the reachability check; `datasets.load_dataset` is patched by the tests that use it."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: type("Session", (), {"head": lambda *a, **k: None}))


def hub_with(monkeypatch: pytest.MonkeyPatch, answer: DatasetDict | Exception) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []

    def load_dataset(*args: Any, **kwargs: Any) -> DatasetDict:
        calls.append((args, kwargs))
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


@pytest.mark.usefixtures("reachable")
def test_snli_and_yahoo_are_rebuilt_and_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rebuilt.SIZES, "train", 30)
    monkeypatch.setitem(rebuilt.SIZES, "validation", 4)
    monkeypatch.setitem(rebuilt.SIZES, "test", 4)
    pairs = {split: {"premise": [f"{split} {n}." for n in range(40)], "hypothesis": ["Same."] * 40, "label": [0] * 40}
             for split in ("train", "validation", "test")}  # fmt: skip
    calls = hub_with(monkeypatch, DatasetDict({split: Dataset.from_dict(rows) for split, rows in pairs.items()}))
    corpus = load_text_dataset("snli")
    assert calls == [(("stanfordnlp/snli",), {"revision": None})]
    assert corpus.name == "snli (rebuilt from stanfordnlp/snli @ main)"
    assert corpus.rows == {"train": 30, "validation": 4, "test": 4}
    assert "the published subset has other sentences" in corpus.describe()

    part = {"topic": [n % 2 for n in range(40)], "question_title": ["Why?"] * 40, "question_content": [""] * 40,
            "best_answer": [f"Answer {n}" for n in range(40)]}  # fmt: skip
    calls = hub_with(monkeypatch, DatasetDict(train=Dataset.from_dict(part), test=Dataset.from_dict(part)))
    corpus = load_text_dataset("yahoo", revision="v1")
    assert calls == [(("community-datasets/yahoo_answers_topics",), {"revision": "v1"})]
    assert corpus.rows == {"train": 30, "validation": 4, "test": 4}
    assert corpus.splits["test"]["text"][0].startswith("why ? answer ")
    assert "the published subset has other documents" in corpus.describe()


@pytest.mark.usefixtures("reachable")
def test_a_hub_set_is_read_as_a_stream_of_one_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    commits = ["c1"]
    monkeypatch.setattr(
        huggingface_hub.HfApi, "dataset_info", lambda self, repo, revision: type("Info", (), {"sha": commits[-1]})
    )
    part = rows(count=100).to_iterable_dataset()
    calls = hub_with(monkeypatch, DatasetDict(train=part, extra=part))
    corpus = load_text_dataset("someone/some-set", streaming=True, num_sentences=10)
    assert calls == [(("someone/some-set",), {"revision": None, "streaming": True})]
    assert corpus.rows == {"train": 10, "validation": 2, "test": 2}
    assert "read as a stream: 40 train rows" in corpus.describe()
    hub_with(monkeypatch, DatasetDict(train=rows("content", 100).to_iterable_dataset()))
    assert load_text_dataset("someone/some-set", streaming=True, num_sentences=10).fingerprint == corpus.fingerprint
    commits.append("c2")
    hub_with(monkeypatch, DatasetDict(train=rows(count=100).select(range(50, 100)).to_iterable_dataset()))
    assert load_text_dataset("someone/some-set", streaming=True, num_sentences=10).fingerprint != corpus.fingerprint


@pytest.mark.usefixtures("reachable")
def test_ptb_is_read_from_the_parquet_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = hub_with(monkeypatch, DatasetDict(dict.fromkeys(("train", "validation", "test"), rows("sentence"))))
    corpus = load_text_dataset("ptb")
    assert calls == [(("ptb-text-only/ptb_text_only",), {"revision": "refs/convert/parquet"})]
    assert corpus.name == "ptb (ptb-text-only/ptb_text_only @ refs/convert/parquet)"
    assert texts(corpus)["test"] == LINES[:4]


@pytest.mark.usefixtures("reachable")
def test_any_hub_set_and_its_unused_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = DatasetDict(train=rows("content", 40), test=rows("content"), unsupervised=rows("content"))
    calls = hub_with(monkeypatch, answer)
    corpus = load_text_dataset("someone/some-set", revision="v1")
    assert calls == [(("someone/some-set",), {"revision": "v1"})]
    assert corpus.name == "someone/some-set (Hugging Face Hub @ v1)"
    assert corpus.rows == {"train": 38, "validation": 2, "test": 4}
    assert "splits not used: unsupervised" in corpus.describe()


@pytest.mark.usefixtures("reachable")
@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (DatasetDict(test=rows()), UsageError, "has no train split (found: test)"),
        (
            datasets.exceptions.DatasetNotFoundError("no such set"),
            UsageError,
            "'me/x' is neither a local file or folder",
        ),
        (RuntimeError("Dataset scripts are no longer supported"), DataError, "try revision='refs/convert/parquet'"),
        (ConnectionError("gone"), DataError, "cannot be reached (gone): give the path"),
    ],
)
def test_hub_errors(
    monkeypatch: pytest.MonkeyPatch, answer: DatasetDict | Exception, error: type[Exception], message: str
) -> None:
    hub_with(monkeypatch, answer)
    with pytest.raises(error, match=re.escape(message)):
        load_text_dataset("me/x")


TWO_WAYS_OUT = "cannot be reached .*: give the path of a local file or folder, or use .* --dataset_name grammar"


def test_offline_mode_names_the_two_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="HF_HUB_OFFLINE"):
        load_text_dataset("ptb")
    with pytest.raises(DataError, match=TWO_WAYS_OUT):
        load_text_dataset("someone/some-set")


def test_an_unreachable_hub_is_noticed_without_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("retried"))
    with pytest.raises(DataError, match=TWO_WAYS_OUT):
        load_text_dataset("ptb")
    assert datasets.config.HF_HUB_OFFLINE is False


def test_an_unreachable_hub_still_gives_the_cached_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    hub_with(monkeypatch, DatasetDict(train=rows(count=40)))
    assert "this is the latest cached copy" in load_text_dataset("someone/some-set").describe()
