"""The folder of an earlier run: what is refused, what is made again, and what stays as it was."""

import shutil
import sys

import pytest

from latent_ebm_text.training.checkpointing import find_checkpoints
from tests.helpers import edit_manifest
from tests.recipes.commands import assert_refused, contents


@pytest.fixture
def earlier(call, corpus, tmp_path):
    """A finished run in the folder `run`, on the local corpus."""
    code, _, err = call(output_dir="run")
    assert code == 0, err
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"latent_dim": 5}, ["belongs to another model", "config.latent_dim is 4 there and 5 here"]),
        ({"seed": 1}, ["seed is 0 there and 1 here"]),
        ({"inference": "short_run"}, ["inference is 'persistent' there and 'short_run' here"]),
    ],
    ids=str,
)
def test_the_folder_of_another_model_is_refused_and_stays(call, earlier, changes, words):
    written = contents(earlier)
    assert_refused(call(output_dir="run", **changes), 1, *words)
    assert contents(earlier) == written


def test_a_checkpoint_of_another_library_version_is_refused_and_stays(call, earlier):
    for checkpoint in find_checkpoints(earlier / "checkpoints"):
        edit_manifest(checkpoint, library_version="99.0.0")
    written = contents(earlier)
    assert_refused(call(output_dir="run"), 1, "was written by latent_ebm_text 99.0.0")
    assert contents(earlier) == written


def test_a_half_written_checkpoint_is_named_and_made_again(call, earlier, tmp_path):
    untouched = shutil.copytree(earlier, tmp_path / "untouched")
    newest = find_checkpoints(earlier / "checkpoints")[0]
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])

    code, out, err = call(output_dir="run")

    assert code == 0, err
    assert f"skipped an incomplete checkpoint: run/checkpoints/{newest.name} is half-written: model.safetensors" in out
    for part in ("model/model.safetensors", "samples.txt", "chains.bin"):
        assert (earlier / part).read_bytes() == (untouched / part).read_bytes()


def test_a_finished_run_can_be_evaluated_again_without_training(call, earlier):
    before = (earlier / "model" / "model.safetensors").read_bytes()
    metrics = (earlier / "metrics.jsonl").read_bytes()

    code, out, err = call(output_dir="run", num_eval_samples=30)

    assert code == 0, err
    assert len((earlier / "samples.txt").read_text().splitlines()) == 30
    assert (earlier / "model" / "model.safetensors").read_bytes() == before
    assert (earlier / "metrics.jsonl").read_bytes() == metrics


def test_divergence_is_one_line_and_keeps_what_was_saved(call, earlier):
    checkpoints = contents(earlier / "checkpoints")
    assert_refused(call(output_dir="run", num_epochs=20, chain_step_size=1e15), 1, "training step", "step_size")
    assert contents(earlier / "checkpoints") == checkpoints


def test_without_matplotlib_the_run_ends_well_and_says_so(call, corpus, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, err = call(output_dir="run")
    assert code == 0, err
    assert "plot  none: plots need matplotlib: pip install 'latent-ebm-text[plots]'" in out
