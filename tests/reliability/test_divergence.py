"""Numbers that are not finite: stopped before they touch a weight, told, and survived if they can be."""

import re

import pytest

from tests.reliability.processes import assert_same_outcome, log, metrics, newest, tensors
from tests.reliability.worker import Run

TRAINING = {
    "num_epochs": 2.0,
    "inference": "persistent",
    "warmup": 0.0,
    "final_learning_rate_factor": 1.0,
}  # 12 steps


def assert_finite(folder):
    assert all(bool(tensor.isfinite().all()) for tensor in tensors(folder).values())


def errors(run):
    return re.findall(r"\berror: .*", log(run))  # one may stand behind the progress bar of another process


def test_a_chain_that_leaves_the_finite_numbers_sends_the_run_back(finish, tmp_path):
    run = Run(tmp_path / "run", training=TRAINING, diverge="once")
    assert finish(run) == 0, log(run)

    (rollback,) = [record for record in metrics(run.folder) if record["kind"] == "rollback"]
    assert rollback["step"] == 2
    assert "training step 4: posterior of examples [" in rollback["reason"]
    assert "Langevin chain not finite from step " in rollback["reason"]
    assert f"{rollback['reason']}. Went back to step 2; from there on with learning rates 2 times smaller" in log(run)
    assert newest(run.folder).name == "step-00000012"
    assert_finite(run.folder)
    rates = [record["decoder_learning_rate"] for record in metrics(run.folder) if record["kind"] == "train"]
    assert rates == pytest.approx([1e-3] * 2 + [5e-4] * 10)


def test_a_run_that_went_back_is_resumed_with_its_smaller_steps(finish, tmp_path):
    straight, stopped = (Run(tmp_path / name / "run", training=TRAINING, diverge="once") for name in ("a", "b"))
    assert finish(straight) == 0, log(straight)
    interrupted = Run(stopped.folder, training=TRAINING, diverge="once", stop_after=8)  # two of them done twice
    assert finish(interrupted) == 143, log(interrupted)
    assert finish(Run(stopped.folder, training=TRAINING)) == 0, log(stopped)
    assert_same_outcome(stopped.folder, straight.folder)


def test_a_run_that_cannot_be_helped_ends_with_advice(finish, tmp_path):
    run = Run(tmp_path / "run", training={**TRAINING, "max_rollbacks": 2}, diverge="always")
    assert finish(run) == 1
    assert log(run).count("Went back to step 2") == 2
    (error,) = errors(run)
    assert error.startswith("error: training step ")
    assert "posterior of examples [" in error
    assert "Lower decoder_learning_rate or prior_learning_rate" in error
    assert newest(run.folder).name == "step-00000002"
    assert_finite(run.folder)


@pytest.mark.parametrize("name", ["decoder_learning_rate", "prior_learning_rate"])
def test_a_learning_rate_far_too_large_spoils_no_checkpoint(finish, tmp_path, name):
    run = Run(tmp_path / "run", training={**TRAINING, name: 1e30, "save_every": 1})
    assert finish(run) == 1
    assert len(errors(run)) == 1
    assert "Traceback" not in log(run)
    assert_finite(run.folder)


def test_processes_go_back_together(finish_together, tmp_path):
    run = Run(tmp_path / "once" / "run", training=TRAINING, diverge="once")
    assert finish_together(run, 2) == [0, 0], log(run)
    assert log(run).count("Went back to step 2") == 1

    run = Run(tmp_path / "always" / "run", training={**TRAINING, "max_rollbacks": 1}, diverge="always")
    assert finish_together(run, 2) == [1, 1]
    first, second = errors(run)
    assert first == second
    assert "posterior of examples [" in first
