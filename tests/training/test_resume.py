"""A run that stops goes on as if it never had, or says why it cannot."""

import os
import signal
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from latent_ebm_text.errors import CheckpointError, UsageError
from latent_ebm_text.training.checkpointing import find_checkpoints
from latent_ebm_text.training.reporting import MetricsFile, RunningMeans, read_metrics
from latent_ebm_text.training.stopping import StopSignals
from tests.training.runs import (
    BASELINES,
    contents,
    copy_of,
    final_tensors,
    metrics_without_seconds,
    same,
    stop_at,
)


@pytest.mark.parametrize(
    ("inference", "averaging_start"),
    [
        ("short_run", 1.0),
        ("persistent", 1.0),
        ("variational", 1.0),
        ("amortized", 1.0),
        ("fitted", 1.0),
        ("persistent", 0.5),
    ],
)
def test_a_stopped_run_ends_like_one_that_never_stopped(
    make_model, make_args, run, tmp_path, inference, averaging_start
):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    if inference == "variational":
        make_model = partial(make_model, **BASELINES["VAE"][0])
    if inference == "amortized":
        make_model = partial(make_model, encoder_hidden_size=16, frequent_tokens=20, drawn_tokens=5)
    if inference == "fitted":
        make_model = partial(make_model, num_fit_steps=2)
    # The stops fall between the lines of metrics.jsonl.
    settings = {"inference": inference, "log_every": 3, "averaging_start": averaging_start}
    run(make_model(), make_args(output_dir=str(straight), **settings))

    args = make_args(output_dir=str(stopped), **settings)
    first = run(make_model(), args, stop_at(4))
    assert (first.step, first.signal) == (4, signal.SIGTERM)
    second = run(make_model(), args, stop_at(8))
    assert (second.step, second.signal) == (8, signal.SIGTERM)
    torch.manual_seed(1234)  # whatever the state of the new process
    model = make_model()
    last = run(model, args)
    assert (last.step, last.signal) == (12, None)

    expected, found = final_tensors(straight), final_tensors(stopped)
    assert expected.keys() == found.keys()
    assert ("chains.safetensors" in found) == (inference == "persistent")
    for name, tensors in expected.items():
        assert same(tensors, found[name]), name
    final = expected["model.safetensors"]
    if averaging_start < 1:
        averages = expected["averaged.safetensors"]
        assert averages["n_averaged"] == 6
        final = {name.removeprefix("module."): value for name, value in averages.items() if name != "n_averaged"}
    assert same(copy_of(model), final)
    assert metrics_without_seconds(stopped) == metrics_without_seconds(straight)


def test_metrics_are_means_over_the_examples_since_the_last_line(make_model, make_args, run, tmp_path):
    lines = {}
    for log_every in (1, 6):
        folder = tmp_path / str(log_every)
        run(make_model(), make_args(output_dir=str(folder), log_every=log_every, eval_every=99))
        lines[log_every] = [record["reconstruction_nll"] for record in read_metrics(folder / "metrics.jsonl")]
    assert lines[6] == pytest.approx([np.mean(lines[1][:6]), np.mean(lines[1][6:])])

    means = RunningMeans()
    means.add({"loss": 10.0}, examples=3)
    means.add({"loss": 20.0}, examples=1)
    assert means.take() == {"loss": 12.5}


def test_figures_after_the_last_checkpoint_are_forgotten_by_a_resumed_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, first_step=0)
    for step in (1, 2, 3):
        metrics.write("train", step, {"loss": 1.0 / step})
    with path.open("a") as file:
        file.write('{"kind": "train", "step": 4, "lo')  # a kill cut it short

    MetricsFile(path, first_step=2).write("train", 3, {"loss": 7.0})

    assert [(r["step"], r["loss"]) for r in read_metrics(path)] == [(1, 1.0), (2, 0.5), (3, 7.0)]
    assert len(path.read_text().splitlines()) == 3


def test_a_signal_in_the_last_step_is_reported_and_the_next_run_is_complete(make_model, make_args, run, monkeypatch):
    model = make_model()
    objective, calls = model.objective, []

    def stop_in_the_last(*args):
        calls.append(1)
        if len(calls) == 12:
            os.kill(os.getpid(), signal.SIGINT)
        return objective(*args)

    monkeypatch.setattr(model, "objective", stop_in_the_last)
    first = run(model, make_args())
    assert (first.step, first.signal) == (12, signal.SIGINT)
    second = run(make_model(), make_args())
    assert (second.step, second.signal) == (12, None)


def test_handlers_of_the_caller_come_back(make_model, make_args, run):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    run(make_model(), make_args(num_epochs=0.1))
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_processes_that_got_no_signal_do_not_report_one():
    two = SimpleNamespace(num_processes=2, device="cpu", gather=lambda tensor: torch.cat([tensor, tensor]))
    assert StopSignals().agreed(two) is None


def test_processes_leave_together_when_another_got_the_signal():
    other = torch.tensor([signal.SIGTERM])
    two = SimpleNamespace(num_processes=2, device="cpu", gather=lambda tensor: torch.cat([tensor, other]))
    assert StopSignals().agreed(two) == signal.SIGTERM


def test_a_finished_run_does_no_more_steps(make_model, make_args, run, tmp_path, monkeypatch):
    trained = make_model()
    run(trained, make_args())
    written = contents(tmp_path / "run")

    again = make_model()
    monkeypatch.setattr(again, "objective", lambda *_: pytest.fail("a step was done"))
    result = run(again, make_args())

    assert result.step == 12
    assert same(copy_of(again), copy_of(trained))
    assert contents(tmp_path / "run") == written


def test_an_incomplete_checkpoint_is_named_and_the_one_before_is_used(make_model, make_args, run, tmp_path, capsys):
    model = make_model()
    run(model, make_args())
    newest = find_checkpoints(tmp_path / "run" / "checkpoints")[0]
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    capsys.readouterr()

    again = make_model()
    run(again, make_args())

    printed = capsys.readouterr().out
    assert f"skipped an incomplete checkpoint: {newest}" in printed
    assert "resuming from" in printed
    assert "step-00000010" in printed
    assert same(copy_of(again), copy_of(model))


@pytest.mark.parametrize(
    ("model_changes", "args_changes", "key"),
    [
        ({"latent_dim": 5}, {}, "config.latent_dim is 4 there and 5 here"),
        ({}, {"seed": 1}, "seed is 0 there and 1 here"),
        ({}, {"inference": "short_run"}, "inference is 'persistent' there and 'short_run' here"),
    ],
)
def test_the_folder_of_another_run_is_refused_and_stays(
    make_model, make_args, run, tmp_path, model_changes, args_changes, key
):
    run(make_model(), make_args(inference="persistent"))
    written = contents(tmp_path / "run")

    with pytest.raises(CheckpointError, match=key):
        run(make_model(**model_changes), make_args(**{"inference": "persistent", **args_changes}))

    assert contents(tmp_path / "run") == written


def test_an_output_dir_that_is_a_file_is_refused(make_model, make_args, run, tmp_path):
    (tmp_path / "run").write_text("something of mine")
    with pytest.raises(UsageError, match="output_dir .*run cannot be used"):
        run(make_model(), make_args())
