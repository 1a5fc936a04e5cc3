"""FSDP2 on two processes trains what DDP and one process train; its checkpoints are those of any other run."""

import json
from dataclasses import replace

import pytest

from latent_ebm_text.errors import UsageError
from latent_ebm_text.training.sharding import check_sharding
from tests.language_models import IDS
from tests.language_models import SETTINGS as LANGUAGE_MODELS
from tests.reliability.processes import (
    assert_same_outcome,
    exit_code,
    log,
    metrics,
    newest,
    start_together,
    steps_done,
    tensors,
    wait_for,
)
from tests.reliability.worker import Run

TRANSFORMER = {"decoder_type": "transformer", "dropout": 0.0, "token_dropout": 0.0, "hidden_size": 16}
TRAINING = {"num_epochs": 2.0, "eval_every": 100, "averaging_start": 0.5}  # 12 steps


@pytest.fixture(scope="module")
def alone(finish, tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("alone") / "run", model=TRANSFORMER, training=TRAINING)
    assert finish(run) == 0, log(run)
    return run


@pytest.fixture(scope="module")
def sharded(finish_together, tmp_path_factory, alone):
    run = replace(alone, folder=tmp_path_factory.mktemp("sharded") / "run", fsdp=True)
    assert finish_together(run, 2) == [0, 0], log(run)
    assert "FSDP2 shards gradients and optimizer state over 2 processes" in log(run)
    return run


def losses(run):
    """Those of the main process, on its share of the batch."""
    return [line["loss"] for line in metrics(run.folder) if line["kind"] == "train"]


def assert_same_training(run, reference):
    """Every tensor of the last checkpoint is equal but for the order of sums."""
    found, expected = tensors(run.folder), tensors(reference.folder)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        scale = expected[name].abs().max().clamp(min=1e-6)
        assert (tensor - expected[name]).abs().max() / scale < 2e-3, name


def test_sharded_processes_train_what_ddp_and_one_process_train(finish_together, tmp_path, alone, sharded):
    ddp = replace(alone, folder=tmp_path / "ddp" / "run")
    assert finish_together(ddp, 2) == [0, 0], log(ddp)
    assert len(losses(sharded)) == 12
    assert losses(sharded) == pytest.approx(losses(ddp), rel=1e-4)
    assert_same_training(sharded, ddp)
    assert_same_training(sharded, alone)
    whole, expected = (
        {path.name: path.stat().st_size for path in newest(run.folder).glob("*.safetensors")}
        for run in (sharded, alone)
    )
    assert whole == expected, "every tensor whole, and once"


def test_an_encoder_and_a_target_of_information_train_as_under_ddp(finish_together, tmp_path, alone):
    settings = {
        "model": {**TRANSFORMER, "encoder_hidden_size": 8, "latent_injection": "layers"},
        "training": {
            "inference": "variational",
            "information": 1.0,
            "num_epochs": 1.0,
            "gradient_checkpointing": True,
        },
    }
    ddp = replace(alone, folder=tmp_path / "ddp" / "run", **settings)
    assert finish_together(ddp, 2) == [0, 0], log(ddp)
    run = replace(ddp, folder=tmp_path / "sharded" / "run", fsdp=True)
    assert finish_together(run, 2) == [0, 0], log(run)
    assert losses(run) == pytest.approx(losses(ddp), rel=1e-4)
    assert_same_training(run, ddp)


@pytest.mark.parametrize("lm_dtype", ["float32", "bfloat16"])
def test_adapters_of_a_frozen_decoder_train_as_under_ddp(finish_together, tmp_path, alone, lm_dtype):
    decoder = {"model_type": "llama", **IDS, **LANGUAGE_MODELS["llama"]}
    model = {"decoder_type": "causal_lm", "decoder_config": decoder, "decoder_training": "lora", "dropout": 0.0}
    training = {**TRAINING, "num_epochs": 1.0}
    ddp = replace(alone, folder=tmp_path / "ddp" / "run", model=model, training=training, lm_dtype=lm_dtype)
    assert finish_together(ddp, 2) == [0, 0], log(ddp)
    run = replace(ddp, folder=tmp_path / "sharded" / "run", fsdp=True)
    assert finish_together(run, 2) == [0, 0], log(run)
    assert losses(run) == pytest.approx(losses(ddp), rel=1e-4 if lm_dtype == "float32" else 1e-2)
    if lm_dtype == "float32":
        assert_same_training(run, ddp)


def test_a_sharded_run_that_is_killed_ends_the_same(start, finish_together, tmp_path, sharded):
    run = replace(sharded, folder=tmp_path / "run", pause=0.1)
    first, second = start_together(start, run, world=2)
    wait_for(lambda: steps_done(run.folder) >= 5, first)
    for process in (first, second):
        process.kill()
        exit_code(process)
    assert finish_together(run, 2) == [0, 0], log(run)
    assert "resuming from" in log(run)
    assert_same_outcome(run.folder, sharded.folder)


def test_what_two_processes_have_sharded_one_goes_on_with_and_the_other_way_round(
    finish_together, start, tmp_path, alone
):
    run = replace(alone, folder=tmp_path / "run")
    for world, fsdp, steps in ((2, True, 4), (1, False, 4), (2, True, 9)):
        part = replace(run, fsdp=fsdp, stop_after=steps)
        codes = [exit_code(process) for process in start_together(start, part, world)]
        done = newest(run.folder).name == "step-00000012"
        assert codes == [0 if done else 143] * world, log(run)
    assert done
    assert_same_training(run, alone)


def test_a_sharded_run_goes_back_to_its_checkpoint_when_numbers_are_not_finite(finish_together, tmp_path, sharded):
    run = replace(sharded, folder=tmp_path / "run", diverge="once")
    assert finish_together(run, 2) == [0, 0], log(run)
    assert "Went back to step" in log(run)
    assert newest(run.folder).name == "step-00000012"
    assert json.loads((newest(run.folder) / "state.json").read_text())["rollbacks"] == 1


@pytest.mark.parametrize(
    ("environment", "is_causal_lm", "message"),
    [
        ({"FSDP_VERSION": "2"}, False, "trains by DDP: launch without --use_fsdp"),
        ({}, True, "FSDP1 is not supported: launch with --fsdp_version 2"),
        ({"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, True, "set fsdp_offload_params to false"),
    ],
)
def test_what_cannot_be_sharded_is_refused_by_name(monkeypatch, environment, is_causal_lm, message):
    check_sharding(is_causal_lm)
    for name, value in {"ACCELERATE_USE_FSDP": "true", **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=message):
        check_sharding(is_causal_lm)
