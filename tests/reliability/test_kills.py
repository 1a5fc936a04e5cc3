"""A run that is killed, at any instant and as often as you like, ends as one that is not."""

import random
import signal
import time
from dataclasses import replace

import pytest

from latent_ebm_text.training.checkpointing import find_checkpoints, load_checkpoint
from tests.reliability.processes import assert_same_outcome, log, newest, send, steps_done, wait_for
from tests.reliability.worker import Run

PAUSE = 0.1  # seconds that every read takes of a run that is killed, or it could end before it is this process's turn
SIGNALS = [signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
LONG = {"num_epochs": 20.0}  # 120 steps
MODES = {
    "short_run": {},
    "persistent": {},
    "amortized": {"encoder_hidden_size": 8},
    "variational": {"encoder_hidden_size": 8},
}


def kill_often(start, run, randomness, kills):
    """Stops the run every few steps, also while it starts, reads or saves; most signals leave it no time to save."""
    for _ in range(kills):
        number = randomness.choice(SIGNALS)
        # The server that forks these processes ignores SIGINT, and so does each of them until it has begun.
        steps = randomness.randint(int(number == signal.SIGINT), 3)
        process, goal = start(run), steps_done(run.folder) + steps
        wait_for(lambda goal=goal: steps_done(run.folder) >= goal, process)
        time.sleep(randomness.uniform(0.0, PAUSE + 0.02))
        assert send(process, number) != 0, "it ended before it was stopped so often"


def assert_kills_change_nothing(start, finish, folder, modality, inference, seed=0, kills=20):
    training = {**LONG, "inference": inference, "averaging_start": 0.5}
    straight, killed = (
        Run(folder / name / "run", modality, MODES[inference], training) for name in ("straight", "killed")
    )
    assert finish(straight) == 0, log(straight)
    kill_often(start, replace(killed, pause=PAUSE), random.Random(seed), kills)
    assert finish(killed) == 0, log(killed)
    assert_same_outcome(killed.folder, straight.folder)
    if inference == "persistent":
        assert (killed.folder / "chains.bin").read_bytes() == (straight.folder / "chains.bin").read_bytes()


def test_kills_change_nothing(start, finish, tmp_path):
    assert_kills_change_nothing(start, finish, tmp_path, "text", "persistent", kills=6)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("inference", MODES)
@pytest.mark.parametrize("modality", ["text", "images"])
def test_twenty_kills_change_nothing_of_any_run(start, finish, tmp_path, modality, inference, seed):
    assert_kills_change_nothing(start, finish, tmp_path, modality, inference, seed)


def count_kills_in_a_save(start, finish, folder, every):
    """Kills a run at file operations of the checkpoint of step 4, until there are no more; goes on after each."""
    training = {"num_epochs": 1.0, "inference": "persistent"}  # 6 steps
    straight = Run(folder / "straight" / "run", training=training)
    assert finish(straight) == 0, log(straight)
    steps = []
    while True:
        number = 1 + every * len(steps)
        killed = Run(folder / str(number) / "run", training=training, kill_at=number)
        code = finish(killed)
        if code == 0:
            return steps
        assert code == -signal.SIGKILL, log(killed)
        published = find_checkpoints(killed.folder / "checkpoints")
        for path in published:  # under its name a checkpoint is whole
            load_checkpoint(path, identity={"model": "text", "inference": "persistent"})
        steps.append(int(newest(killed.folder).name.removeprefix("step-")))
        resumed = Run(killed.folder, training=training)
        assert finish(resumed) == 0, log(resumed)
        assert f"resuming from {published[0]}" in log(resumed)
        assert_same_outcome(resumed.folder, straight.folder)
        assert not list((resumed.folder / "checkpoints").glob(".*")), "what the killed process left is gone"


def test_a_kill_inside_a_save_leaves_the_checkpoint_before(start, finish, tmp_path):
    steps = count_kills_in_a_save(start, finish, tmp_path, every=13)
    assert steps == sorted(steps)
    assert set(steps) == {2, 4}


@pytest.mark.slow
def test_a_kill_at_every_file_operation_of_a_save(start, finish, tmp_path):
    steps = count_kills_in_a_save(start, finish, tmp_path, every=1)
    assert steps == sorted(steps)
    assert set(steps) == {2, 4}
    assert len(steps) > 20
