"""Trackers get what `metrics.jsonl` gets, and the record of a finished run stays true."""

import importlib.util
import json
from pathlib import Path

import pytest

from latent_ebm_text.errors import UsageError
from latent_ebm_text.training.arguments import TrainingArguments
from latent_ebm_text.training.tracking import PROJECT, make_accelerator
from tests.tiny_runs import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tracked"
    assert train(folder, {"report_to": "tensorboard", "eval_every": 7}) == 0
    return folder


def test_tensorboard_has_the_numbers_of_the_metrics_file(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = {path.parent for path in (run / PROJECT).glob("events.*")}
    events = EventAccumulator(str(folder))
    events.Reload()
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for kind, name in (("train", "reconstruction_nll"), ("validation", "prior_nll")):
        written = [(record["step"], record[name]) for record in records if record["kind"] == kind]
        tracked = [(event.step, event.value) for event in events.Scalars(f"{kind}/{name}")]
        assert written
        assert tracked == [(step, pytest.approx(value, rel=1e-5)) for step, value in written]


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_other_trackers_run_without_a_network(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    assert train(tmp_path / "run", {"report_to": name}) == 0
    folder, pattern = (tmp_path / "run" / "wandb", "offline-run-*") if name == "wandb" else (tmp_path / "trackio", "*")
    assert list(folder.glob(pattern))


def test_a_tracker_that_cannot_be_is_refused_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"report_to holds 'mlflow'; known trackers: trackio, tensorboard, wandb"):
        make_accelerator(TrainingArguments(report_to="mlflow"))
    monkeypatch.setattr("latent_ebm_text.training.tracking.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"wandb is not installed: pip install 'latent-ebm-text\[wandb\]'"):
        make_accelerator(TrainingArguments(report_to="wandb"))


def test_a_processor_without_bfloat16_trains_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Without support oneDNN has no LSTM primitive to offer, and the first step would end in its error.
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setattr("latent_ebm_text.training.tracking._has_bfloat16_kernels", lambda: False)
    assert train(tmp_path / "run", {}) == 0
    assert "no kernels for bf16; training in float32" in capsys.readouterr().out


def test_fp16_is_refused_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(UsageError, match="fp16 is not supported: use bf16"):
        train(tmp_path / "run", {})
    assert not (tmp_path / "run").exists()


def test_a_finished_run_keeps_the_record_of_how_it_was_trained(run: Path) -> None:
    record = (run / "results.json").read_text()
    for change in ({"decoder_learning_rate": 0.1}, {"num_epochs": 1}):
        with pytest.raises(
            UsageError, match=f"holds a finished run .*, trained with {next(iter(change))} .*another output_dir"
        ):
            train(run, {"report_to": "tensorboard", "eval_every": 7, **change})
        assert (run / "results.json").read_text() == record
    assert train(run, {"report_to": "tensorboard", "eval_every": 3}) == 0
