"""Files of a run that were damaged or edited: a run goes on as if they never had been, or names the file."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from latent_ebm_text.errors import CheckpointError
from latent_ebm_text.evaluation.plots import plot_training
from latent_ebm_text.training.checkpointing import find_checkpoints, load_latest_checkpoint
from latent_ebm_text.training.reporting import MetricsFile, read_metrics
from tests.helpers import sign_files
from tests.training.runs import copy_of, metrics_without_seconds, same, stop_at

FILES = [
    "manifest.json", "state.json", "model.safetensors", "optimizer.safetensors", "averaged.safetensors",
    "chains.safetensors",
]  # fmt: skip
SETTINGS = {"inference": "persistent", "averaging_start": 0.5}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return {}


@pytest.fixture
def stopped(make_model, make_args, run, tmp_path, kept, tmp_path_factory):
    """The folder of a run that was stopped after step 8 of 12, with a checkpoint of step 5 before; and its end."""
    if not kept:
        folder = tmp_path_factory.mktemp("kept")
        model = make_model()
        run(model, make_args(output_dir=str(folder / "straight"), **SETTINGS))
        run(make_model(), make_args(output_dir=str(folder / "stopped"), **SETTINGS), stop_at(8))
        kept.update(folder=folder, weights=copy_of(model), metrics=metrics_without_seconds(folder / "straight"))
    shutil.copytree(kept["folder"] / "stopped", tmp_path / "run")
    assert [path.name for path in find_checkpoints(tmp_path / "run" / "checkpoints")] == [
        "step-00000008", "step-00000005",
    ]  # fmt: skip
    return tmp_path / "run"


@pytest.fixture
def resume(make_model, make_args, run):
    def resume():
        model = make_model()
        run(model, make_args(**SETTINGS))
        return model

    return resume


def flip_bit(path: Path, position: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def flip_in_the_middle(path: Path) -> None:
    flip_bit(path, path.stat().st_size // 2)


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.write_bytes(b"")


# -------- damage: the run falls back and ends as it would have


@pytest.mark.parametrize("damage", [flip_in_the_middle, cut_in_half, empty, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_of_the_newest_checkpoint_is_named_and_costs_a_few_steps(
    stopped, resume, kept, name, damage, capsys
):
    damage(stopped / "checkpoints" / "step-00000008" / name)
    model = resume()
    out = capsys.readouterr().out
    assert re.search(rf"skipped an incomplete checkpoint: .*step-00000008 is .*{name}", out)
    assert f"resuming from {stopped / 'checkpoints' / 'step-00000005'}" in out
    assert same(copy_of(model), kept["weights"])
    assert metrics_without_seconds(stopped) == kept["metrics"]


@pytest.mark.parametrize("name", ["manifest.json", "state.json"])
def test_one_bit_of_a_json_file_is_never_read_as_something_else(stopped, name):
    identity = json.loads((stopped / "checkpoints" / "step-00000008" / "manifest.json").read_text())["identity"]
    whole = load_latest_checkpoint(stopped / "checkpoints", identity=identity)[0]
    path = stopped / "checkpoints" / "step-00000008" / name
    content, outcomes = path.read_bytes(), set()
    for position in range(0, len(content), 41):
        flip_bit(path, position, bit=position % 8)
        checkpoint, skipped = load_latest_checkpoint(stopped / "checkpoints", identity=identity)
        assert checkpoint is not None
        outcomes.add(checkpoint.step)
        assert [name in line for line in skipped] == [True] * (checkpoint.step == 5), skipped
        if checkpoint.step == 8:
            assert checkpoint.state == whole.state
        path.write_bytes(content)
    assert 5 in outcomes


@pytest.mark.parametrize("damage", [flip_in_the_middle, cut_in_half, empty, Path.unlink])
def test_chains_are_taken_from_the_checkpoint(stopped, resume, kept, damage):
    damage(stopped / "chains.bin")
    assert same(copy_of(resume()), kept["weights"])


def test_one_bit_of_the_metrics_stops_neither_the_run_nor_its_plot(stopped, tmp_path, caplog):
    """Whatever bit: a line that is not whole is named and left out, and all others are kept."""
    path = stopped / "metrics.jsonl"
    content, records = path.read_bytes(), read_metrics(path)
    for position in range(0, len(content), 53):
        flip_bit(path, position, bit=position % 8)
        caplog.clear()
        MetricsFile(path, first_step=99)
        found = read_metrics(path)
        lost = len(records) - len(found)
        assert lost <= 2  # a line break that was lost joins two lines
        assert lost == 0 or re.search(rf"line \d+ of {path} is damaged and left out", caplog.text)
        assert sum(record in found for record in records) >= len(records) - 2
        path.write_bytes(content)
    flip_bit(path, 5, bit=7)  # no longer UTF-8
    assert plot_training(path, tmp_path / "plot.png").stat().st_size > 0


@pytest.mark.parametrize(
    "line", ["[]", "1", '{"kind": "train"}', '{"kind": 3, "step": 1}', '{"kind": "x", "step": "1"}']
)
def test_a_line_of_the_metrics_that_is_something_else_is_left_out(stopped, resume, kept, line, caplog):
    path = stopped / "metrics.jsonl"
    path.write_text(f"{line}\n{path.read_text()}")
    assert same(copy_of(resume()), kept["weights"])
    assert metrics_without_seconds(stopped) == kept["metrics"]
    assert "line 1 of " in caplog.text


# -------- edits: a checkpoint whose files are intact and cannot be what a training wrote is refused


def edit_state(name, value):
    def edit(checkpoint: Path) -> None:
        state = json.loads((checkpoint / "state.json").read_text())
        *outer, last = name.split(".")
        inner = state
        for key in outer:
            inner = inner[key]
        if value is None:
            del inner[last]
        else:
            inner[last] = value
        (checkpoint / "state.json").write_text(json.dumps(state))

    return edit


def edit_tensor(file, name, change):
    def edit(checkpoint: Path) -> None:
        tensors = load_file(checkpoint / f"{file}.safetensors")
        tensor = tensors.pop(name)
        tensors |= change(name, tensor)
        save_file(tensors, checkpoint / f"{file}.safetensors")

    return edit


def remove_file(file):
    return lambda checkpoint: (checkpoint / f"{file}.safetensors").unlink()


def remove(name, tensor):
    return {}


def rename(name, tensor):
    return {"other": tensor}


def reshape(name, tensor):
    return {name: torch.zeros(3, 2)}


def make_integer(name, tensor):
    return {name: tensor.to(torch.int16)}


STATES = [
    *((name, None) for name in ("seconds", "rollbacks", "means", "warnings", "settings", "settings_history")),
    ("optimizer", None), ("seconds", "x"), ("seconds", -1), ("seconds", float("inf")), ("seconds", 10**400),
    ("rollbacks", "1"), ("rollbacks", -5), ("rollbacks", 0.5), ("rollbacks", 10**6), ("means", []),
    ("means.sums", 1), ("means.sums", {"loss": "x"}), ("means.examples", None), ("means.examples", "x"),
    ("warnings", 3), ("warnings", [1]), ("settings", []), ("settings_history", 1),
]  # fmt: skip
OPTIMIZER = [
    ("optimizer.state", None), ("optimizer.state", []), ("optimizer.param_groups", {}), ("optimizer.param_groups", 3),
    ("optimizer.param_groups.0.betas", ["x", 1]), ("optimizer.param_groups.0.params", [0]),
    ("optimizer.param_groups.1.weight_decay", 7.0), ("optimizer.param_groups.0.fused", False),
]  # fmt: skip
TENSORS = [
    (file, name, change)
    for file, name in (
        ("model", "decoder.lstm.weight_ih_l0"), ("optimizer", "state.0.exp_avg"), ("optimizer", "state.1.step"),
        ("averaged", "n_averaged"), ("averaged", "module.decoder.lstm.weight_ih_l0"), ("chains", "latents"),
    )
    for change in (remove, rename, reshape, make_integer)
]  # fmt: skip


FOREIGN = "is not what a training of this version writes: "
EDITS = [
    *((edit_state(*case), rf"/state\.json {FOREIGN}its {case[0].split('.')[0]} ") for case in STATES),
    *((edit_state(*case), " cannot be resumed from: this optimizer state belongs to another") for case in OPTIMIZER),
    *((edit_tensor(*case), rf"/{case[0]}\.safetensors {FOREIGN}.*({case[1]}|other)") for case in TENSORS),
    *((remove_file(file), rf"/{file}\.safetensors {FOREIGN}it is missing") for file in ("model", "optimizer")),
    *((remove_file(file), rf"/{file}\.safetensors {FOREIGN}it is missing") for file in ("averaged", "chains")),
]


@pytest.mark.parametrize(("edit", "words"), EDITS)
def test_an_edited_checkpoint_is_refused_by_the_name_of_its_file(stopped, resume, edit, words):
    checkpoint = stopped / "checkpoints" / "step-00000008"
    edit(checkpoint)
    sign_files(checkpoint)
    with pytest.raises(CheckpointError, match=f"step-00000008{words}"):
        resume()
