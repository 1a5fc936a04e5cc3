"""Streams stored on disk: the same rows as without streaming, resumed readings, and no partial files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, IterableDataset

from latent_ebm_text.data import streaming
from latent_ebm_text.data.streaming import store_stream
from latent_ebm_text.data.text import load_text_dataset
from latent_ebm_text.errors import DataError, UsageError
from tests.data.corpora import LINES


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "ROWS_PER_PART", 8)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All texts that were read from a stream."""
    seen: list[str] = []
    write = streaming._write

    def recorded(path: Path, texts: list[str]) -> None:
        seen.extend(texts)
        write(path, texts)

    monkeypatch.setattr(streaming, "_write", recorded)
    return seen


def derived_generator(shards: int = 3) -> IterableDataset:
    return Dataset.from_dict({"text": LINES, "label": list(range(100))}).to_iterable_dataset(num_shards=shards)


def store(folder: Path, source: IterableDataset | None = None, **settings: Any) -> list[str]:
    settings = {"text_column": None, "limit": None, "origin": "the set", **settings}
    return store_stream(source or derived_generator(), folder, **settings)["text"][:]


@pytest.mark.parametrize("limit", [None, 1, 7, 8, 9, 64, 100, 1_000])
def test_rows_come_in_order_and_no_more_than_asked_for(tmp_path: Path, reads: list[str], limit: int | None) -> None:
    assert store(tmp_path, limit=limit) == LINES[:limit]
    assert reads == LINES[:limit]
    assert store(tmp_path, limit=limit) == LINES[:limit]
    assert reads == LINES[:limit], "what is finished is not read again"


@pytest.mark.parametrize("stop", [1, 3, 12])
@pytest.mark.parametrize("half_written", ["nothing", "rows without a position", "a temporary file"])
def test_a_reading_that_was_stopped_goes_on_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str], stop: int, half_written: str
) -> None:
    publish, calls = streaming._publish, iter(range(100))

    def stopped(path: Path, content: bytes) -> None:
        if next(calls) == stop:
            raise KeyboardInterrupt
        publish(path, content)

    monkeypatch.setattr(streaming, "_publish", stopped)
    with pytest.raises(KeyboardInterrupt):
        store(tmp_path)
    assert len(list(tmp_path.glob("part-*.json"))) == stop
    if half_written == "nothing":
        (tmp_path / f"part-{stop:05d}.arrow").unlink()
    elif half_written == "a temporary file":
        (tmp_path / f"part-{stop:05d}.arrow").rename(tmp_path / f".part-{stop:05d}.arrow.1")
    reads.clear()
    monkeypatch.setattr(streaming, "_publish", publish)
    assert store(tmp_path) == LINES
    assert reads == LINES[8 * stop :], "no row twice, none left out"


def test_the_position_is_that_of_datasets(tmp_path: Path) -> None:
    """A part's position is where another reader of the same stream continues."""
    store(tmp_path, limit=20)
    again = derived_generator().select_columns("text")
    again.load_state_dict(json.loads((tmp_path / "part-00000.json").read_text())["stream"])
    assert next(iter(again))["text"] == LINES[8]


def test_a_corpus_read_as_a_stream_is_the_corpus(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("".join(f"{line}\n\n" for line in LINES))
    (tmp_path / "test.txt").write_text("t1\nt2\n")
    whole, streamed = (load_text_dataset(str(tmp_path), streaming=way) for way in (False, True))
    assert streamed.fingerprint == whole.fingerprint
    assert streamed.rows == whole.rows
    assert streamed.blank_lines_skipped == whole.blank_lines_skipped
    assert "read as a stream: 200 train, 2 test rows" in streamed.describe()


@pytest.mark.parametrize("wanted", [1, 10, 57, 81])
def test_a_stream_is_read_as_far_as_the_sentences_go(tmp_path: Path, reads: list[str], wanted: int) -> None:
    (tmp_path / "corpus.txt").write_text("".join(f"{line}\n" for line in LINES))
    corpus = load_text_dataset(str(tmp_path / "corpus.txt"), streaming=True, num_sentences=wanted)
    assert corpus.rows["train"] == wanted
    assert corpus.rows["validation"] == corpus.rows["test"] >= 2
    assert len(reads) <= max(40, 1.12 * wanted + 20)
    used = sum((list(dataset["text"]) for dataset in corpus.splits.values()), [])
    assert len(set(used)) == len(used)


def test_however_much_is_read_no_run_trains_on_what_another_is_tested_on(tmp_path: Path) -> None:
    file = tmp_path / "corpus.txt"
    file.write_text("".join(f"a sentence with number {n}\n" for n in range(1500)))
    ways: list[dict[str, Any]] = [
        {"streaming": True, "num_sentences": 10},
        {"streaming": True, "num_sentences": 400},
        {"streaming": True},
        {"num_sentences": 900},
    ]
    corpora = [load_text_dataset(str(file), **way) for way in ways]
    trained = set().union(*(corpus.splits["train"]["text"] for corpus in corpora))
    for held_out in ("validation", "test"):
        tested = [list(corpus.splits[held_out]["text"]) for corpus in corpora]
        assert not trained.intersection(sum(tested, []))
        assert all(len(part) >= 2 and part == tested[2][: len(part)] for part in tested)


def test_blank_rows_do_not_count_as_read(tmp_path: Path) -> None:
    file = tmp_path / "corpus.txt"
    file.write_text("".join(f"a sentence with number {n}\n \n" for n in range(500)))
    assert load_text_dataset(str(file), streaming=True, num_sentences=300).rows["train"] == 300


def test_files_that_changed_are_read_again(tmp_path: Path) -> None:
    file = tmp_path / "corpus.txt"
    file.write_text("".join(f"{line}\n" for line in LINES))
    first = load_text_dataset(str(file), streaming=True)
    file.write_text("".join(f"{line} !\n" for line in LINES))
    assert load_text_dataset(str(file), streaming=True).fingerprint != first.fingerprint


def test_a_stream_of_json_without_a_schema(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"id": n, "content": line}) + "\n" for n, line in enumerate(LINES)))
    assert load_text_dataset(str(path), streaming=True).rows["train"] == 90


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield {"text": "one"}
        yield {"text": 2}

    with pytest.raises(DataError, match="row 2 of the set holds 2 in column 'text', which is no text; clean the data"):
        store(tmp_path / "mixed", IterableDataset.from_generator(rows))
    with pytest.raises(UsageError, match="the set has no text column: its columns are label"):
        store(tmp_path / "none", derived_generator().select_columns("label"))
    with pytest.raises(DataError, match="the set has no rows"):
        store(tmp_path / "empty", IterableDataset.from_generator(lambda: iter(())))
    with pytest.raises(UsageError, match="'grammar' is built here: leave it out"):
        load_text_dataset("grammar", streaming=True)
