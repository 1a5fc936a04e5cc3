"""Signals in every phase of a run: a checkpoint at once, the exit code that the signal has, all processes together."""

import signal
import time

import pytest

from tests.reliability.processes import (
    assert_same_outcome,
    exit_code,
    log,
    newest,
    send,
    start_together,
    steps_done,
    wait_for,
)
from tests.reliability.worker import Run

TRAINING = {"inference": "persistent", "num_epochs": 2.0}  # 12 steps
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 138}
#: The step whose state is saved when a signal comes in a phase that would not end by itself.
PHASES = {"data": 3, "posterior": 3, "prior": 3, "evaluation": 7, "save": 2}
FAST = list(zip(PHASES, [*CODES, *CODES], strict=False))


@pytest.fixture(scope="module")
def straight(finish, tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("straight") / "run", training=TRAINING)
    assert finish(run) == 0, log(run)
    return run.folder


def stop_in(start, finish, folder, straight, phase, number, training=TRAINING, code=None):
    run = Run(folder / "run", training=training, linger=phase)
    process = start(run)
    wait_for((folder / phase).exists, process)
    began = time.monotonic()
    assert send(process, number) == (CODES[number] if code is None else code), log(run)
    assert time.monotonic() - began < 60  # a busy machine; the chain, the read and the evaluation would take hours
    assert newest(run.folder).name == f"step-{PHASES[phase]:08d}"
    assert "Traceback" not in log(run)

    resumed = Run(run.folder, training=training)
    assert finish(resumed) == 0, log(resumed)
    assert_same_outcome(run.folder, straight)


@pytest.mark.parametrize(("phase", "number"), FAST)
def test_a_signal_in_any_phase_saves_at_once(start, finish, tmp_path, straight, phase, number):
    stop_in(start, finish, tmp_path, straight, phase, number)


@pytest.mark.slow
@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("phase", PHASES)
def test_every_signal_in_every_phase(start, finish, tmp_path, straight, phase, number):
    stop_in(start, finish, tmp_path, straight, phase, number)


def test_the_exit_code_of_a_warning_is_as_configured(start, finish, tmp_path, straight):
    training = {**TRAINING, "usr1_exit_code": 75}
    stop_in(start, finish, tmp_path, straight, "posterior", signal.SIGUSR1, training, code=75)


def test_two_processes_leave_together_when_one_is_told_to(start, tmp_path):
    run = Run(tmp_path / "run", training={**TRAINING, "num_epochs": 1000.0})
    processes = start_together(start, run, world=2)
    wait_for(lambda: steps_done(run.folder) >= 2, processes[0])  # both are under way
    assert send(processes[1], signal.SIGTERM) == 143, log(run)
    assert exit_code(processes[0]) == 143, log(run)
    assert "Traceback" not in log(run)
