"""One run at a time in a folder: a second one is refused and spoils nothing; a killed process holds nothing."""

import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from accelerate import Accelerator

from latent_ebm_text.training.locking import only_run
from tests.reliability.processes import assert_same_outcome, exit_code, log, send, start_together, wait_for
from tests.reliability.worker import Run
from tests.training.runs import contents

TRAINING = {"inference": "persistent", "num_epochs": 2.0}  # 12 steps


@pytest.fixture(scope="module")
def straight(finish, tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("straight") / "run", training=TRAINING)
    assert finish(run) == 0, log(run)
    return run.folder


@pytest.mark.parametrize("world", [1, 2])
def test_a_second_run_is_refused_by_all_its_processes_until_the_first_is_killed(
    start, finish, tmp_path, straight, world
):
    first = Run(tmp_path / "run", training=TRAINING, linger="prior")
    process = start(first)
    wait_for((tmp_path / "prior").exists, process)
    written = contents(first.folder)

    others = start_together(start, replace(first, linger=None, training={**TRAINING, "seed": 1}), world)

    assert [exit_code(other) for other in others] == [2] * world
    words = f"another run is going on in output_dir {first.folder} (process {process.pid} on "
    assert log(first).count(words) == world
    assert "Traceback" not in log(first)
    assert contents(first.folder) == written

    assert send(process, signal.SIGKILL) == -signal.SIGKILL
    assert finish(replace(first, linger=None)) == 0, log(first)
    assert_same_outcome(first.folder, straight)


def hold_with_a_worker(folder: Path) -> None:
    """Holds a folder and forks a worker, which tells its id and lives on."""
    with only_run(folder, Accelerator(cpu=True)):
        if (worker := os.fork()) == 0:
            time.sleep(1000)
        (folder.parent / "worker.tmp").write_text(str(worker))
        (folder.parent / "worker.tmp").rename(folder.parent / "worker")
        time.sleep(1000)


def test_a_forked_worker_that_outlives_a_killed_run_does_not_hold_its_folder(start, tmp_path):
    process = multiprocessing.get_context("forkserver").Process(target=hold_with_a_worker, args=(tmp_path / "run",))
    process.start()
    wait_for((tmp_path / "worker").exists, process)
    worker = int((tmp_path / "worker").read_text())
    try:
        assert send(process, signal.SIGKILL) == -signal.SIGKILL
        os.kill(worker, 0)  # it lives
        with only_run(tmp_path / "run", Accelerator(cpu=True)):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_run_that_holds_its_folder_may_ask_for_it_again_and_keeps_it(start, tmp_path):
    accelerator = Accelerator(cpu=True)
    with only_run(tmp_path / "run", accelerator):
        with only_run(tmp_path / "run", accelerator):
            pass
        second = start(Run(tmp_path / "run", training=TRAINING))
        assert exit_code(second) == 2
    assert exit_code(start(Run(tmp_path / "run", training=TRAINING))) == 0
