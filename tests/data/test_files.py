"""Files as people have them: tables, compressed files, JSON of all kinds, and files that only look like text."""

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latent_ebm_text.data.formats import MAX_JSON_DEPTH
from latent_ebm_text.data.lines import read_sentences
from latent_ebm_text.data.text import TextCorpus, load_text_dataset
from latent_ebm_text.errors import DataError, UsageError

#: What tables and JSON must quote, and words that a reader of tables takes for missing values.
LINES = ['he said "no", twice', "NA", "null", "three; four", *(f"sentence number {n} ." for n in range(56))]
PLAIN = "".join(f"{line}\n" for line in LINES).encode()
ROWS = [{"id": f"i{n}", "text": line} for n, line in enumerate(LINES)]


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def read(file: str, **options: Any) -> TextCorpus:
    """A corpus, the same whether or not it is read as a stream."""
    whole, streamed = (load_text_dataset(file, streaming=way, **options) for way in (False, True))
    assert streamed.fingerprint == whole.fingerprint
    return whole


def texts(corpus: TextCorpus) -> list[str]:
    return sorted(sum((split["text"][:] for split in corpus.splits.values()), []))


def short(value: object) -> str:
    """The identity of a parameter, without the bytes of a file, in which the time may stand."""
    return value if isinstance(value, str) and len(value) < 80 else "content"


def table(separator: str, *, quoted: bool = True) -> str:
    rows = [("id", "text"), *(tuple(row.values()) for row in ROWS)]
    if quoted:
        rows = [tuple('"' + field.replace('"', '""') + '"' for field in row) for row in rows]
    return "".join(separator.join(row) + "\r\n" for row in rows)


def json_lines(rows: list[dict[str, Any]] = ROWS) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


# -------- what is read


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("CORPUS.TXT", PLAIN, ""),
        ("a.txt.gz", gzip.compress(PLAIN), ""),
        ("a.TXT.GZ", gzip.compress(PLAIN), ""),
        ("a.txt.bz2", bz2.compress(PLAIN), ""),
        ("a.txt.xz", lzma.compress(PLAIN), ""),
        ("a.jsonl.gz", gzip.compress(json_lines().encode()), ""),
        ("a.ndjson", json_lines(), ""),
        ("a.csv", "\ufeff" + table(","), ""),
        ("a.csv.gz", gzip.compress(table(",").encode()), ""),
        ("a.csv", table(";"), "the fields of a.csv are separated by ';'"),
        ("a.csv", table("\t"), r"the fields of a.csv are separated by '\t'"),
        ("a.tsv", table("\t"), ""),
        ("a.tsv", table("\t", quoted=False).replace('he said "', '"he said '), "part of the text"),
        ("a.json", json.dumps(ROWS, indent=1), ""),
        ("a.json", json.dumps({"version": 1, "data": ROWS}), "the rows of a.json are those of its key 'data'"),
        ("a.json", json.dumps({"version": 1, "data": ROWS}, indent=1), "those of its key 'data'"),
    ],
    ids=short,
)
def test_every_format_gives_the_same_corpus(tmp_path: Path, name: str, content: str | bytes, note: str) -> None:
    file = write(tmp_path / name, content)
    corpus = read(file)
    expected = ['"' + LINES[0].replace('"', "", 1), *LINES[1:]] if note == "part of the text" else LINES
    assert texts(corpus) == sorted(expected)
    assert note in corpus.describe()
    assert read_sentences(file) == expected, "what is scored is what is trained on"


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())], ids=str
)
def test_strings_are_text_however_arrow_stores_them(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"text": pa.array(LINES).cast(kind)}), tmp_path / "a.parquet")
    assert texts(read(str(tmp_path / "a.parquet"))) == sorted(LINES)


def test_a_table_without_names_of_columns_loses_no_row(tmp_path: Path) -> None:
    rows = [f"{number % 2}\tThis is sentence number {number}, as it was said." for number in range(60)]
    for name in ("a.tsv", "a.txt"):
        file = write(tmp_path / name, "\n".join(rows))
        corpus = read(file, text_column="2")
        assert texts(corpus) == sorted(row.split("\t")[1] for row in rows)
        assert read_sentences(file, text_column="2") == [row.split("\t")[1] for row in rows]
    assert "a.tsv begins without names of columns; they are called 1, 2" in read(str(tmp_path / "a.tsv")).describe()


@pytest.mark.parametrize(
    "header",
    ["number,How did you hear about us?", "Review (in full),Clothing ID"],
    ids=["a question beside a name above numbers", "a remark in brackets"],
)
def test_names_of_columns_as_people_write_them(tmp_path: Path, header: str) -> None:
    text = max(header.split(","), key=len)
    rows = [f"{n},so it is" if header.endswith(text) else f"so it is,{n}" for n in range(60)]
    corpus = read(write(tmp_path / "a.csv", "\n".join([header, *rows])))
    assert f"the text is column {text!r}" in corpus.describe()
    assert texts(corpus) == ["so it is"] * 60


def test_lines_of_a_table_are_not_taken_for_sentences(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", "".join(f"label\t{line}\n" for line in LINES))
    message = "a.txt have 2 fields with tabs between them: .* --text_column 1 or 2, or --text_column text for whole"
    for reader in (load_text_dataset, read_sentences):
        with pytest.raises(UsageError, match=message):
            reader(file)
    assert texts(read(file, text_column="text")) == sorted(f"label\t{line}" for line in LINES)
    assert read_sentences(file, text_column="text") == [f"label\t{line}" for line in LINES]
    with pytest.raises(UsageError, match="column '3' does not exist in .* its columns are 1, 2"):
        load_text_dataset(file, text_column="3")


def test_the_chosen_column_is_said(tmp_path: Path) -> None:
    rows = [{"review": line, "stars": 5} for line in LINES]
    corpus = read(write(tmp_path / "a.jsonl", json_lines(rows)))
    assert texts(corpus) == sorted(LINES)
    assert "the text is column 'review'; other columns: stars" in corpus.describe()


@pytest.mark.parametrize(("column", "key"), [("messages", "content"), ("conversations", "value")])
def test_conversations_are_their_messages(tmp_path: Path, column: str, key: str) -> None:
    rows = [
        {"id": f"i{n}", column: [{"from": "a", key: line}, {"from": "b", key: "yes"}]} for n, line in enumerate(LINES)
    ]
    file = write(tmp_path / "a.jsonl", json_lines(rows))
    corpus = read(file)
    assert texts(corpus) == sorted(f"{line}\nyes" for line in LINES)
    assert f"the messages of each conversation in '{column}', one a line, without their roles" in corpus.describe()
    assert read_sentences(file) == [f"{line}\nyes" for line in LINES]


def test_files_of_the_system_are_no_data(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    for name in ("train.txt", "test/part.txt"):
        write(tmp_path / name, PLAIN)
    for name in ("._train.txt", ".train.txt", ".DS_Store", "test/._part.txt"):
        write(tmp_path / name, b"\x00\x05\x16\x07")
    assert load_text_dataset(str(tmp_path)).rows == {"train": 57, "validation": 3, "test": 60}


def test_a_part_of_a_split_counts_where_the_whole_is_missing(tmp_path: Path) -> None:
    for name in ("x.train.10000.txt", "x.valid.txt", "x.test.txt"):
        write(tmp_path / name, PLAIN)
    assert load_text_dataset(str(tmp_path)).rows == {"train": 60, "validation": 60, "test": 60}
    write(tmp_path / "x.train.txt", PLAIN * 2)
    corpus = load_text_dataset(str(tmp_path))
    assert corpus.rows["train"] == 120
    assert "x.train.10000.txt is ignored beside x.train.txt" in corpus.describe()


def test_lines_with_nothing_to_see_are_blank(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", "\u200b\n\u2060\u00ad \x01\n".encode() + PLAIN + "a\u200bb\n".encode())
    corpus = read(file)
    assert texts(corpus) == sorted([*LINES, "a\u200bb"])
    assert corpus.blank_lines_skipped == {"train": 2}
    assert read_sentences(file) == [*LINES, "a\u200bb"]


# -------- what is refused


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", PLAIN.decode().encode("utf-16-le"), r"NUL byte.*: line 1, byte offset 1; .* iconv -f utf-16le"),
        ("a.csv", table(",").encode("utf-16-be"), r"NUL byte.*: line 1, byte offset 0; .* iconv -f utf-16be"),
        ("a.txt", PLAIN.decode().encode("utf-32"), "is UTF-32, not UTF-8"),
        ("a.txt.gz", gzip.compress(b""), "a.txt.gz (is empty; give a file with|holds no sentence)"),
        ("a.csv", "\n\n", "a.csv has no rows; give a table with at least one sentence"),
        ("a.txt.gz", b"not compressed", "a.txt.gz cannot be decompressed: Not a gzipped file"),
        ("a.txt.gz", gzip.compress(PLAIN)[:-20], "a.txt.gz cannot be decompressed: Compressed file ended"),
        ("a.txt.xz", b"not compressed", "a.txt.xz cannot be decompressed: "),
        ("a.csv", "text\n" + "so, it is\n" * 60, "a.csv, line 2: 2 fields, where the first row has 1; put quotation"),
        ("a.csv", "text,n\n" + "so,1\n" * 50 + "and, so,1\n", "a.csv, line 52: 3 fields, where the first row has 2"),
        ("a.csv", 'text,n\nso,1\n"and,1\nso, so,1\n', "a.csv, line 4: unexpected end of data"),
        ("a.jsonl", '{"text": "a", "x": ' + "[" * 100_000 + "]" * 100_000 + "}", "line 1, nests JSON more than"),
        ("a.json", "[\n" * 100_000, f"line {MAX_JSON_DEPTH + 1}, nests JSON more than {MAX_JSON_DEPTH} levels deep"),
    ],
    ids=short,
)  # fmt: skip
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    file = write(tmp_path / name, content)
    for reader in (load_text_dataset, read_sentences):
        with pytest.raises(DataError, match=message):
            reader(file)


def test_brackets_in_strings_nest_nothing(tmp_path: Path) -> None:
    smileys = [rf"\":-{bracket * 200} {n}" for n, bracket in enumerate("[{]}" * 15)]
    corpus = read(write(tmp_path / "a.jsonl", "".join(f'{{"text": "{smiley}"}}\n' for smiley in smileys)))
    assert sum(corpus.rows.values()) == 60


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", json_lines([{"text": None, "body": line} for line in LINES]), r"'text' .* holds no text \(null\)"),
        (
            "a.csv",
            "text,body\n" + ",so it is\n" * 60,
            "column 'text' of .* holds no text .* text columns: body; choose",
        ),
        (
            "a.jsonl",
            json_lines([{"text": f"2024-01-{n % 28 + 1:02d}", "id": f"i{n}"} for n in range(60)]),
            r"column 'text' of .* holds no text \(timestamp\[s\]\): .* text columns: id; choose one with text_column",
        ),
    ],
)
def test_no_other_column_stands_in_for_the_text(tmp_path: Path, name: str, content: str, message: str) -> None:
    file = write(tmp_path / name, content)
    for options in ({}, {"streaming": True}):
        with pytest.raises(UsageError, match=message):
            load_text_dataset(file, **options)


def test_a_blank_column_beside_a_full_one_is_said(tmp_path: Path) -> None:
    rows = [{"text": line if n < 20 else "", "body": line} for n, line in enumerate(LINES)]
    corpus = load_text_dataset(write(tmp_path / "a.jsonl", json_lines(rows)))
    assert "column 'text' of" in corpus.describe()
    assert (
        "is blank in 40 of 60 rows; its other text columns are body: choose one with text_column" in corpus.describe()
    )
    blank = write(tmp_path / "b.jsonl", json_lines([{"text": " ", "body": line} for line in LINES]))
    with pytest.raises(DataError, match=r"no sentence \(60 blank lines\).* text columns are body: choose one with"):
        load_text_dataset(blank)


def test_a_column_begins_with_missing_values(tmp_path: Path) -> None:
    rows = [{"text": None if n < 3 else line} for n, line in enumerate(LINES)]
    assert texts(read(write(tmp_path / "a.jsonl", json_lines(rows)))) == sorted(LINES[3:])


def test_shards_of_different_formats(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    write(tmp_path / "train" / "0.csv", table(","))
    write(tmp_path / "train" / "1.csv", table(";"))
    with pytest.raises(DataError, match="the files of train in .* differ in their format"):
        load_text_dataset(str(tmp_path))


def test_columns_of_what_has_none() -> None:
    with pytest.raises(UsageError, match="text_column is for files; cut the field out of standard input"):
        read_sentences("-", text_column="2")
    with pytest.raises(UsageError, match="nowhere.csv cannot be read: No such file"):
        read_sentences("nowhere.csv")
