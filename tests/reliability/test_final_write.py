"""The model of a run is written as a whole: a kill at any file operation leaves the old folder or the new one."""

import multiprocessing
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from latent_ebm_text.errors import CheckpointError
from latent_ebm_text.models.loading import load_text_model
from latent_ebm_text.training import files
from latent_ebm_text.training.files import replace_text, replaced_folder
from tests.helpers import tiny_model, tiny_tokenizer
from tests.reliability.processes import exit_code


def write_model(folder: Path, seed: int) -> None:
    with replaced_folder(folder) as written:
        tiny_model(seed).save_pretrained(written)
        tiny_tokenizer().save_pretrained(written)


def write_until_killed(folder: Path, countdown: int) -> None:
    """Python announces each file operation to audit hooks; one of those of the write ends the process."""

    def hook(event: str, _: object) -> None:
        nonlocal countdown
        if event == "open" or event.startswith(("os.", "shutil.")):
            countdown -= 1
            if countdown == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    model, tokenizer = tiny_model(2), tiny_tokenizer()
    model.save_pretrained(folder.parent / "warm")  # what is imported at the first use
    sys.addaudithook(hook)
    with replaced_folder(folder) as written:
        model.save_pretrained(written)
        tokenizer.save_pretrained(written)


def whose(folder: Path) -> int:
    """The seed of the model in a folder, which is whole with its tokenizer and its card."""
    model, tokenizer = load_text_model(folder)
    assert tokenizer.get_vocab() == tiny_tokenizer().get_vocab()
    assert (folder / "README.md").read_text() == "edited by hand"
    (seed,) = [seed for seed in (1, 2) if torch.equal(next(tiny_model(seed).parameters()), next(model.parameters()))]
    assert all(torch.equal(a, b) for a, b in zip(tiny_model(seed).parameters(), model.parameters(), strict=True))
    return seed


@pytest.mark.parametrize("every", [17, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("start")  # whose server has imported everything
def test_a_kill_leaves_the_old_model_or_the_new_one(tmp_path, every):
    context = multiprocessing.get_context("forkserver")
    write_model(tmp_path / "template", 1)
    (tmp_path / "template" / "README.md").write_text("edited by hand")
    found, code = [], -signal.SIGKILL
    while code == -signal.SIGKILL:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(tmp_path / "template", tmp_path / "run" / "model")
        process = context.Process(target=write_until_killed, args=(tmp_path / "run" / "model", 1 + every * len(found)))
        process.start()
        code = exit_code(process)
        found.append(whose(tmp_path / "run" / "model"))
        write_model(tmp_path / "run" / "model", 2)
        assert [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith(".")] == []
    assert code == 0
    assert found == sorted(found)
    assert set(found) == {1, 2}
    assert every * len(found) > 30


def test_a_system_that_cannot_exchange_folders_renames_them(tmp_path, monkeypatch):
    monkeypatch.setattr(files.ctypes, "CDLL", lambda *_, **__: object())
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "README.md").write_text("edited by hand")
    write_model(tmp_path / "model", 2)
    assert whose(tmp_path / "model") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_write_that_fails_changes_nothing(tmp_path, monkeypatch):
    def fail(_):
        raise OSError("No space left on device")

    write_model(tmp_path / "model", 1)
    before = load_file(tmp_path / "model" / "model.safetensors")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CheckpointError, match="cannot write .*model: No space left.*; what was there is unchanged"):
        write_model(tmp_path / "model", 2)
    after = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_link_to_a_folder_elsewhere_stays_one(tmp_path):
    write_model(tmp_path / "elsewhere", 1)
    (tmp_path / "elsewhere" / "README.md").write_text("edited by hand")
    (tmp_path / "model").symlink_to(tmp_path / "elsewhere")
    write_model(tmp_path / "model", 2)
    assert (tmp_path / "model").is_symlink()
    assert whose(tmp_path / "elsewhere") == 2


def test_a_text_is_replaced_as_a_whole(tmp_path):
    (tmp_path / "results.json").write_text("old")
    (tmp_path / ".tmp-results.json").write_text("of a process that was killed")
    replace_text(tmp_path / "results.json", "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"results.json": "new"}
