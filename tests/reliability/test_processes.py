"""Processes train together what one trains; a run goes on with another number of them; one that dies is missed."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.reliability.processes import exit_code, log, newest, start_together, steps_done, tensors, wait_for
from tests.reliability.worker import Run

ROOT = Path(__file__).parents[2]
NO_DROPOUT = {"dropout": 0.0, "token_dropout": 0.0}  # its masks differ from process to process
TRAINING = {"inference": "persistent", "prior_chain_num_steps": 2, "num_epochs": 2.0, "eval_every": 100}  # 12 steps


@pytest.fixture(scope="module")
def alone(finish, tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("alone") / "run", model=NO_DROPOUT, training=TRAINING)
    assert finish(run) == 0, log(run)
    return run


def differences(folder, reference):
    """The largest difference of each tensor, relative to the largest entry."""
    found, expected = tensors(folder), tensors(reference)
    assert found.keys() == expected.keys()
    return {
        name: float((found[name] - expected[name]).abs().max() / expected[name].abs().max().clamp(min=1e-6))
        for name in found
        if name.startswith(("model/", "chains/", "prior_chains/"))
    }


def test_two_processes_train_what_one_does(finish, finish_together, tmp_path, alone):
    run = replace(alone, folder=tmp_path / "two" / "run")
    assert finish_together(run, 2) == [0, 0], log(run)
    assert max(differences(run.folder, alone.folder).values()) < 1e-3

    other = replace(alone, folder=tmp_path / "other" / "run", training={**TRAINING, "seed": 1})
    assert finish(other) == 0, log(other)
    assert max(differences(other.folder, alone.folder).values()) > 0.1, "the tolerance tells runs apart"


def test_a_run_of_two_processes_goes_on_with_one_and_with_three(finish, start, tmp_path, alone):
    # Batches of 9 and one of 2: of two processes one has more to do, of three one has nothing at times.
    run = replace(alone, folder=tmp_path / "run")
    for world, steps in ((2, 4), (1, 3), (3, 5)):
        first, *others = start_together(start, replace(run, stop_after=steps), world)
        codes = [exit_code(process) for process in (first, *others)]
        done = newest(run.folder).name
        assert codes == [0 if done == "step-00000012" else 143] * world, log(run)
    assert done == "step-00000012"
    assert log(run).count("resuming from") == 2
    # Every example once an epoch, each with its own chain, whoever had it: or weights and chains would be others.
    assert max(differences(run.folder, alone.folder).values()) < 1e-3
    assert bool(tensors(run.folder)["chains/latents"].any(dim=1).all())


def test_a_process_that_dies_is_missed_and_the_run_goes_on(start, finish_together, tmp_path, alone):
    run = replace(alone, folder=tmp_path / "run", training={**TRAINING, "num_epochs": 10.0})
    first, second = start_together(start, run, world=2)
    wait_for(lambda: steps_done(run.folder) >= 4, first)
    second.kill()
    began = time.monotonic()
    assert exit_code(first) == 1, log(run)
    assert time.monotonic() - began < 120
    assert re.search("Connection (closed|reset) by peer", log(run)), "its own error is shown"

    assert finish_together(run, 2) == [0, 0], log(run)
    assert newest(run.folder).name == "step-00000060"
    assert "resuming from" in log(run)


@pytest.mark.slow
def test_torchrun_ends_all_when_one_dies_and_the_run_resumes(tmp_path):
    """The launcher that people use, on the recipe that they run."""
    settings = {
        "dataset_name": "grammar", "num_sentences": 200, "max_length": 20, "latent_dim": 4, "hidden_size": 16,
        "embedding_size": 8, "prior_hidden_size": 8, "prior_sampler.num_steps": 3, "posterior_sampler.num_steps": 3,
        "num_epochs": 20, "train_batch_size": 32, "log_every": 1, "eval_every": 500, "save_every": 5,
        "num_eval_examples": 32, "num_eval_samples": 20, "output_dir": tmp_path / "run",
    }  # fmt: skip
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
        str(ROOT / "recipes" / "train_text.py"),
        *(f"--{name}={value}" for name, value in settings.items()),
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}

    launched = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: steps_done(tmp_path / "run") >= 20, launched)
    (victim, *_) = (int(pid) for pid in Path(f"/proc/{launched.pid}/task/{launched.pid}/children").read_text().split())
    os.kill(victim, signal.SIGKILL)
    began = time.monotonic()
    _, err = launched.communicate(timeout=300)
    assert launched.returncode == 1
    assert time.monotonic() - began < 120
    assert "SIGKILL" in err

    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0, again.stderr
    assert "resuming from" in again.stdout
    assert (tmp_path / "run" / "results.json").exists()
