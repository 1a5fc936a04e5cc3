"""Lines of text become the same sentences, whoever reads them."""

import io
import sys
from pathlib import Path

import pytest

from latent_ebm_text.data.lines import check_unicode, read_sentences, split_sentences
from latent_ebm_text.data.text import load_text_dataset
from latent_ebm_text.errors import DataError, UsageError

#: A byte order mark, separators that end no line, both kinds of line end, blank lines, spaces at both ends.
TEXT = "\ufefffirst\u2028still first\n\n  second\x0cstill second \r\nthird\x85still\rfourth\n \u3000\n"
SENTENCES = ["first\u2028still first", "second\x0cstill second", "third\x85still", "fourth"]


class Bytes:
    """Standard input that holds these bytes."""

    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)


def test_files_standard_input_and_training_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.txt").write_bytes(TEXT.encode())
    assert load_text_dataset(str(tmp_path)).splits["train"]["text"][:] == SENTENCES
    assert read_sentences(tmp_path / "train.txt") == SENTENCES
    monkeypatch.setattr(sys, "stdin", Bytes(TEXT.encode()))
    assert read_sentences("-") == SENTENCES
    assert split_sentences(TEXT) == SENTENCES


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("fine\ncaf\xe9\n".encode("latin1"), "is not UTF-8: line 2, byte offset 8, holds 0xe9; convert it"),
        ("fine".encode("utf-16"), "is UTF-16, not UTF-8"),
        (b" \n\n", "holds no sentence"),
    ],
)
def test_bytes_that_are_no_sentences(
    data: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lines").write_bytes(data)
    monkeypatch.setattr(sys, "stdin", Bytes(data))
    for file, origin in ((tmp_path / "lines", f"{tmp_path}/lines"), ("-", "standard input")):
        with pytest.raises(DataError, match=f"{origin} {message}"):
            read_sentences(file)
    with pytest.raises(UsageError, match="nowhere cannot be read: No such file"):
        read_sentences("nowhere")


def test_half_of_a_surrogate_pair_is_no_character() -> None:
    check_unicode(["\N{GRINNING FACE}"])
    with pytest.raises(UsageError, match="sentence 2 holds .*ud83d.*, half of a surrogate pair"):
        check_unicode(["fine", "\ud83d"])
