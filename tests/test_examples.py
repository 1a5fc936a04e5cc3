"""Every example runs as a script would be run, with tiny settings."""

import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from latent_ebm_text import LatentEBMForTextGeneration, LatentEBMTextConfig
from latent_ebm_text.data.tokenizers import train_word_tokenizer

FOLDER = Path(__file__).parents[1] / "examples"
RunExample = Callable[..., list[str]]
SENTENCES = ["the cat sat on the mat", "a dog ran in a park", "the dog sat on a mat"]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with its tokenizer, not trained."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_word_tokenizer(SENTENCES)
    config = LatentEBMTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, embedding_size=8, latent_dim=4, max_sequence_length=10
    )
    torch.manual_seed(0)
    LatentEBMForTextGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def run_example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunExample:
    """Runs an example as `__main__` and returns the lines that it prints."""

    def run(name: str, *arguments: object) -> list[str]:
        path = FOLDER / name
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        capsys.readouterr()
        runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_help_shows_the_command(path: Path, run_example: RunExample, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        run_example(path.name, "--help")
    assert left.value.code == 0
    assert f"python examples/{path.name}" in capsys.readouterr().out


def test_generate_text(model_folder: Path, run_example: RunExample) -> None:
    options = (model_folder, "--num_samples", 3, "--max_new_tokens", 5)
    sentences = run_example("generate_text.py", *options)
    assert len(sentences) == 3
    assert all(len(sentence.split()) <= 5 for sentence in sentences)
    assert not any(token in sentence for sentence in sentences for token in ("<bos>", "<eos>", "<pad>"))
    assert run_example("generate_text.py", *options) == sentences
    with_energies = run_example("generate_text.py", *options, "--energies")
    assert [line.split(maxsplit=1)[1:] for line in with_energies] == [[s] if s else [] for s in sentences]
    assert all(float(line.split()[0]) == float(line.split()[0]) for line in with_energies)


def test_interpolate(model_folder: Path, run_example: RunExample) -> None:
    lines = run_example("interpolate.py", model_folder, SENTENCES[0], "a zebra ran", "--num_points", 5)
    assert lines[0] == f"from   {SENTENCES[0]}"
    assert lines[-1] == "to     a <unk> ran"
    assert [line.split()[0] for line in lines[1:-1]] == ["0.00", "0.25", "0.50", "0.75", "1.00"]


def test_edit_sentences(model_folder: Path, run_example: RunExample, tmp_path: Path) -> None:
    labelled = tmp_path / "labelled.jsonl"
    rows = [{"text": SENTENCES[row % 3], "label": row % 2} for row in range(40)]
    labelled.write_text("\n".join(json.dumps(row) for row in rows))
    lines = run_example("edit_sentences.py", model_folder, labelled, 1, *SENTENCES[:2])
    assert lines[0].startswith("the classifier is right on")
    assert lines[1::2] == SENTENCES[:2]
    assert all(line.startswith("    -> ") for line in lines[2::2])


def test_train_with_hf_trainer(tmp_path: Path, run_example: RunExample) -> None:
    folder = tmp_path / "run"
    lines = run_example(
        "train_with_hf_trainer.py", "--output_dir", folder, "--max_steps", 60, "--batch_size", 16,
        "--hidden_size", 32, "--num_sentences", 320,
    )  # fmt: skip
    (summary,) = (line for line in lines if line.startswith("validation loss"))
    before, after = map(float, re.findall(r"\d+\.\d\d", summary))
    assert after < before - 4
    sentences = run_example("generate_text.py", folder, "--num_samples", 2)
    assert len(sentences) == 2
