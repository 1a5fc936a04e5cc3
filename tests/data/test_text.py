"""Corpora from every source, and one clear error for every bad input, without network or local data."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from latent_ebm_text.data import cleaning
from latent_ebm_text.data.cleaning import column_array, iterate_texts
from latent_ebm_text.data.text import load_text_dataset
from latent_ebm_text.errors import DataError, UsageError
from tests.data.corpora import LINES, rows, texts


def write(folder: Path, **files: str | list[str]) -> Path:
    """Writes `train_txt=...` to train.txt, lists as lines."""
    for name, content in files.items():
        text = content if isinstance(content, str) else "".join(f"{line}\n" for line in content)
        (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")
    return folder


# ---- what is read ----


def test_folder_of_text_files(tmp_path: Path) -> None:
    write(
        tmp_path,
        train_txt=" one \n\ntwo\r\n   \nthrée\x85x",
        valid_txt=["v"],
        test_txt=["\ufefft"],
        README_md="no data",
    )
    corpus = load_text_dataset(str(tmp_path))
    assert texts(corpus) == {"train": ["one", "two", "thrée\x85x"], "validation": ["v"], "test": ["t"]}
    assert corpus.rows == {"train": 3, "validation": 1, "test": 1}
    assert corpus.blank_lines_skipped == {"train": 2, "validation": 0, "test": 0}
    description = corpus.describe()
    assert f"local folder {tmp_path}: 3 train, 1 validation, 1 test" in description
    assert corpus.fingerprint in description
    assert "blank lines skipped: 2 train" in description
    assert "ptb" not in description.lower().replace(str(tmp_path).lower(), "")


def as_jsonl(folder: Path) -> None:
    for split in ("train", "dev", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES[:4]))


def as_hub_parquet(folder: Path) -> None:
    (folder / "data").mkdir()
    for split in ("train", "validation", "test"):
        half = rows().train_test_split(2, shuffle=False)
        half["train"].to_parquet(folder / "data" / f"{split}-00000-of-00002.parquet")
        half["test"].to_parquet(folder / "data" / f"{split}-00001-of-00002.parquet")


def as_split_folders(folder: Path) -> None:
    for split in ("train", "val", "test"):
        (folder / split).mkdir()
        rows().to_parquet(folder / split / "0000.parquet")


def as_saved_dict(folder: Path) -> None:
    DatasetDict(train=rows(), validation=rows(), test=rows()).save_to_disk(folder)


def as_prefixed_text(folder: Path) -> None:
    write(folder, ptb_train_txt=LINES[:4], ptb_valid_txt=LINES[:4], ptb_test_txt=LINES[:4])


@pytest.mark.parametrize("layout", [as_jsonl, as_hub_parquet, as_split_folders, as_saved_dict, as_prefixed_text])
def test_every_layout_gives_the_same_corpus_and_leaves_the_folder_alone(
    tmp_path: Path, layout: Callable[[Path], None]
) -> None:
    folder = tmp_path / "odd [name]*"
    folder.mkdir()
    layout(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    corpus = load_text_dataset(str(folder))
    assert texts(corpus) == dict.fromkeys(("train", "validation", "test"), LINES[:4])
    same = load_text_dataset(str(write(tmp_path, train_txt=LINES[:4], dev_txt=LINES[:4], test_txt=LINES[:4])))
    assert corpus.fingerprint == same.fingerprint
    corpus.splits["train"].map(lambda row: {"text": row["text"] + "!"})
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("streaming", [False, True])
def test_a_file_that_was_rewritten_is_read_again_whatever_its_time_says(tmp_path: Path, streaming: bool) -> None:
    file = tmp_path / "corpus.txt"
    corpora = []
    for word in ("first", "other"):
        before = file.stat().st_mtime_ns if file.exists() else None
        file.write_text("\n".join(f"{word} {number:02d}" for number in range(60)))
        if before is not None:
            os.utime(file, ns=(before, before))
        corpora.append(load_text_dataset(str(file), streaming=streaming))
    assert [corpus.splits["train"]["text"][0].split()[0] for corpus in corpora] == ["first", "other"]
    assert corpora[0].fingerprint != corpora[1].fingerprint


def test_other_columns_are_kept_and_the_text_column_can_be_chosen(tmp_path: Path) -> None:
    data = {"premise": ["p1", "p2", None], "text": ["t", "t", "t"], "label": [0, 1, 2]}
    for split in ("train", "validation", "test"):
        Dataset.from_dict(data).to_parquet(tmp_path / f"{split}.parquet")
    corpus = load_text_dataset(str(tmp_path), text_column="premise")
    assert corpus.splits["train"].to_dict() == {"text": ["p1", "p2"], "label": [0, 1]}
    assert corpus.blank_lines_skipped["train"] == 1


def test_a_single_file_is_cut_the_same_way_whatever_the_seed(tmp_path: Path) -> None:
    file = write(tmp_path, corpus_txt=LINES) / "corpus.txt"
    corpus = load_text_dataset(str(file))
    assert corpus.rows == {"train": 90, "validation": 5, "test": 5}
    assert sorted(sum(texts(corpus).values(), [])) == sorted(LINES)
    assert "no validation and no test split found: cut off train, 5 sentences (5 %) each" in corpus.describe()
    assert load_text_dataset(str(file), seed=9).fingerprint == corpus.fingerprint


def test_only_the_missing_split_is_cut(tmp_path: Path) -> None:
    corpus = load_text_dataset(str(write(tmp_path, train_txt=LINES, test_txt=["t"])))
    assert corpus.rows == {"train": 95, "validation": 5, "test": 1}
    assert "no validation split found" in corpus.describe()


def test_single_saved_dataset_is_train(tmp_path: Path) -> None:
    rows(count=40).save_to_disk(tmp_path / "saved")
    assert load_text_dataset(str(tmp_path / "saved")).rows == {"train": 36, "validation": 2, "test": 2}


def test_sentences_of_the_test_split_that_stand_in_train_are_said(tmp_path: Path) -> None:
    lines = [f"sentence number {n} ." for n in range(20)]
    (tmp_path / "a.txt").write_text("\n".join(lines * 20))
    assert "20 of 20 test sentences also stand in train: figures on test say" in (
        load_text_dataset(str(tmp_path / "a.txt")).describe()
    )
    for split, sentences in (
        ("train", lines),
        ("validation", [*lines[:1], *"abcdefghij"]),
        ("test", [*lines[:1], *"abc"]),
    ):
        (tmp_path / f"{split}.txt").write_text("\n".join(sentences))
    notes = load_text_dataset(str(tmp_path)).describe()
    assert "1 of 4 test sentences" in notes
    assert "validation sentences also" not in notes


def test_num_sentences_shortens_train_only(tmp_path: Path) -> None:
    file = write(tmp_path, corpus_txt=LINES) / "corpus.txt"
    whole, short = load_text_dataset(str(file)), load_text_dataset(str(file), num_sentences=7)
    assert texts(short)["train"] == texts(whole)["train"][:7]
    assert texts(short)["test"] == texts(whole)["test"]
    assert "train is the first 7 of 90 sentences" in short.describe()
    assert load_text_dataset(str(file), num_sentences=10_000).rows["train"] == 90


def test_num_test_sentences_is_the_same_random_sample_in_every_run(tmp_path: Path) -> None:
    write(tmp_path, train_txt=LINES, valid_txt=LINES, test_txt=LINES)
    whole, *parts = [load_text_dataset(str(tmp_path), num_test_sentences=size, seed=size) for size in (100, 30, 10)]
    assert texts(whole)["test"] == LINES
    for size, part in zip((30, 10), parts, strict=True):
        assert part.rows == {"train": 100, "validation": 100, "test": size}
        assert part.fingerprint == whole.fingerprint
        assert f"test is a random {size} of 100 sentences, the same in every run" in part.describe()
        places = [LINES.index(text) for text in texts(part)["test"]]
        assert places == sorted(set(places))
        assert 30 < sum(places) / size < 70, "not the first rows, which may be of one kind"
    assert set(texts(parts[1])["test"]) < set(texts(parts[0])["test"])


def test_grammar_is_generated_from_its_seed() -> None:
    corpus = load_text_dataset("grammar", num_sentences=50, seed=3)
    assert corpus.rows == {"train": 50, "validation": 1000, "test": 1000}
    assert corpus.describe().startswith("data: grammar (embedded corpus, generated, seed 3): 50 train")
    assert "log_prob" in corpus.splits["train"].column_names
    assert load_text_dataset("grammar", num_sentences=50, seed=3).fingerprint == corpus.fingerprint
    assert load_text_dataset("grammar", num_sentences=50, seed=4).fingerprint != corpus.fingerprint


@pytest.mark.parametrize(("chosen", "kept"), [("validation", "test"), ("valid", "test"), ("test", "validation")])
def test_training_on_another_split_is_said_and_the_missing_one_is_cut_off(
    tmp_path: Path, chosen: str, kept: str
) -> None:
    write(tmp_path, validation_txt=LINES, test_txt=LINES[::-1])
    corpus = load_text_dataset(str(tmp_path), train_split=chosen)
    missing = {"validation": "test", "test": "validation"}[kept]
    assert corpus.rows == {"train": 95, missing: 5, kept: 100}
    train = texts(corpus)["train"] + texts(corpus)[missing]
    assert sorted(train) == sorted(LINES)
    name = "TEST" if chosen == "test" else "VALIDATION"
    assert (
        f"TRAINING ON THE {name} SPLIT, as requested: this is not the data set's own training split"
        in corpus.describe()
    )
    assert f"no {missing} split found: cut off train, 5 sentences (5 %) each" in corpus.describe()


def test_a_train_split_is_left_aside_where_another_is_chosen(tmp_path: Path) -> None:
    write(tmp_path, train_txt=["never seen"], test_txt=["t"], dev_txt=LINES)
    corpus = load_text_dataset(str(tmp_path), train_split="dev")
    assert corpus.rows == {"train": 95, "validation": 5, "test": 1}
    assert "splits not used: train" in corpus.describe()
    assert (
        "TRAINING ON" not in load_text_dataset(str(write(tmp_path, train_txt=LINES)), train_split="train").describe()
    )


@pytest.mark.parametrize("num_proc", [1, 2])
def test_several_processes_give_the_same_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_proc: int
) -> None:
    monkeypatch.setattr(cleaning, "_ROWS_PER_PROCESS", 10)
    file = write(tmp_path, corpus_txt=[" ", *LINES, "", "last"]) / "corpus.txt"
    corpus = load_text_dataset(str(file), num_proc=num_proc)
    assert corpus.fingerprint == "efe5a666591553f9", "what checkpoints and caches know the data by"
    assert corpus.blank_lines_skipped["train"] == 2
    assert list(iterate_texts(corpus.splits["train"])) == texts(corpus)["train"]
    lengths = corpus.splits["train"].map(lambda row: {"length": len(row["text"])})
    assert column_array(lengths, "length").tolist() == lengths["length"][:]


# ---- bad input ----


@pytest.mark.parametrize(
    "path", ["./nowhere", "nowhere/", "/no/such/folder", "nowhere.txt", "a/b/c", "~/no-such-file"]
)
def test_missing_path(path: str) -> None:
    with pytest.raises(UsageError, match=f"no file or folder '{path}'; check the path"):
        load_text_dataset(path)


def test_folder_without_train_names_what_it_found(tmp_path: Path) -> None:
    write(tmp_path, validation_txt=["v"], test_txt=["t"])
    with pytest.raises(
        UsageError,
        match=r"no train split \(found: test.txt, validation.txt\); add train.txt.* say which .* with train_split",
    ):
        load_text_dataset(str(tmp_path))


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no train split \(found: nothing\)"):
        load_text_dataset(str(tmp_path))


def test_ambiguous_folders(tmp_path: Path) -> None:
    write(tmp_path, train_txt=LINES, a_train_txt=LINES)
    with pytest.raises(UsageError, match="one file or one set of shards for train, not a.train.txt, train.txt"):
        load_text_dataset(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "found"), [("", "is empty; give a file"), ("\n  \n", r"test has no sentence \(2 blank lines\)")]
)
def test_empty_file(tmp_path: Path, content: str, found: str) -> None:
    with pytest.raises(DataError, match=found):
        load_text_dataset(str(write(tmp_path, train_txt=LINES, test_txt=content)))


def test_parquet_without_rows(tmp_path: Path) -> None:
    rows(count=4).select([]).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match="cannot be read as parquet: .* no data"):
        load_text_dataset(str(tmp_path / "x.parquet"))


def test_too_few_sentences_to_cut(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 train sentences, too few to cut off a validation and a test split"):
        load_text_dataset(str(write(tmp_path, train_txt=LINES[:2])))


def test_not_utf8_names_file_line_and_offset(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes("gut\nschön\n".encode() + "schön\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"train.txt is not UTF-8: line 3, byte offset 14, holds 0xf6; convert"):
        load_text_dataset(str(tmp_path))


def test_utf16_is_called_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes("gut\nschön\n".encode("utf-16"))
    with pytest.raises(DataError, match=r"train.txt is UTF-16, not UTF-8; convert it, e.g. with iconv -f utf-16"):
        load_text_dataset(str(tmp_path))


def test_a_split_file_that_is_not_read_is_named(tmp_path: Path) -> None:
    write(tmp_path, train_txt=LINES, valid_txt=LINES)
    (tmp_path / "test.xlsx").write_bytes(b"PK")
    assert "test.xlsx is ignored: data files end in .txt, .csv" in load_text_dataset(str(tmp_path)).describe()


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a"}, {"text": 2}, {"text": ["b"]}] * 9, r"text \(Json\); give .* holds nothing but strings"),
        ([{"text": {"deep": "a"}}] * 30, r"text \(dict\); give"),
        ([{"text": ["a", "b"]}] * 30, r"text \(List\); give"),
        ([{"n": 1, "m": 2.5}] * 30, r"n \(int64\), m \(float64\); give"),
    ],
    ids=["mixed", "nested", "lists", "numbers"],
)
def test_rows_that_are_no_text(tmp_path: Path, streaming: bool, rows: list[dict[str, Any]], message: str) -> None:
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UsageError, match=f"x.jsonl.* has no text column: its columns are {message}"):
        load_text_dataset(str(tmp_path / "x.jsonl"), streaming=streaming)


def test_empty_documents_are_skipped_and_counted(tmp_path: Path) -> None:
    documents = [{"text": text} for text in ("one\ntwo", "", None, " \n\t ", *LINES)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    corpus = load_text_dataset(str(tmp_path / "x.jsonl"))
    assert sum(corpus.rows.values()) == 101
    assert corpus.blank_lines_skipped == {"train": 3}
    assert "one\ntwo" in sum(texts(corpus).values(), [])


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    write(tmp_path, validation_txt=LINES, test_txt=LINES)
    with pytest.raises(UsageError, match="has no split 'extra' to train on; its splits are validation, test"):
        load_text_dataset(str(tmp_path), train_split="extra")
    with pytest.raises(UsageError, match="has no split 'train' to train on"):
        load_text_dataset(str(tmp_path), train_split="train")


@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet", "x.arrow"])
def test_broken_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"text": "a"}\n{"text": oops\n')
    with pytest.raises(DataError, match=f"{name} cannot be read as"):
        load_text_dataset(str(tmp_path / name))


def test_unknown_ending(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ending '.xlsx'; files must be one of .txt, .csv"):
        load_text_dataset(str(write(tmp_path, x_xlsx=LINES) / "x.xlsx"))


@pytest.mark.parametrize(
    ("text_column", "message"),
    [
        ("nope", "column 'nope' does not exist in .* its columns are a, b, label; text columns: a, b"),
        ("label", "column 'label' is no text column in"),
        (None, "cannot tell which column .* text columns: a, b; choose one with text_column"),
    ],
)
def test_wrong_column(tmp_path: Path, text_column: str | None, message: str) -> None:
    Dataset.from_dict({"a": ["x"], "b": ["y"], "label": [0]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(UsageError, match=message):
        load_text_dataset(str(tmp_path / "x.parquet"), text_column=text_column)


def test_options_that_cannot_be_right(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="num_sentences is 0"):
        load_text_dataset("grammar", num_sentences=0)
    with pytest.raises(UsageError, match="num_test_sentences is -1"):
        load_text_dataset("grammar", num_test_sentences=-1)
    for name in ("grammar", str(write(tmp_path, train_txt=LINES))):
        with pytest.raises(UsageError, match="revision='main' is for Hub data sets"):
            load_text_dataset(name, revision="main")
