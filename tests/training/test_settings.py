"""Settings that differ when a run is resumed: refused by name, or taken on purpose and told in the results."""

import json
import shutil
from dataclasses import fields

import pytest

from latent_ebm_text.errors import LatentEBMError, UsageError
from latent_ebm_text.training.arguments import TrainingArguments
from tests import tiny_runs
from tests.training.runs import contents, copy_of, final_tensors, same, stop_at

#: For every setting that may differ, another value than that of the stopped run.
ALLOWED = {
    "num_epochs": 3.0, "decoder_learning_rate": 0.01, "prior_learning_rate": 0.01, "chain_step_size": 0.1,
    "eval_batch_size": 7, "log_every": 2, "eval_every": 9, "save_every": 3, "keep_checkpoints": 5,
    "report_to": "tensorboard", "max_rollbacks": 7, "num_eval_examples": 9,
    "num_eval_samples": 9, "matmul_precision": "medium",
}  # fmt: skip
#: The same for those that may not.
REFUSED = {
    "seed": 1, "train_batch_size": 8, "decoder_weight_decay": 0.1, "prior_weight_decay": 0.1, "prior_start": 0.5,
    "warmup": 0.9, "final_learning_rate_factor": 1.0, "averaging_start": 0.5, "max_decoder_grad_norm": 1.0,
    "max_prior_grad_norm": 9.0, "inference": "short_run", "prior_chain_num_steps": 3, "chain_num_steps": 2,
    "chain_refresh": 0.9, "initial_likelihood_weight": None, "likelihood_weight_fall": 0.9,
}  # fmt: skip


@pytest.fixture
def stopped(make_model, make_args, run):
    """A run of 12 steps that was stopped after the eighth."""
    args = make_args(inference="persistent")
    assert run(make_model(), args, stop_at(8)).step == 8
    return args


def test_every_setting_is_decided():
    untold = {"output_dir", "usr1_exit_code"}
    elsewhere = {"information", "gradient_checkpointing"}  # in test_information.py and test_decoders.py
    assert ALLOWED.keys() | REFUSED.keys() | untold | elsewhere == {field.name for field in fields(TrainingArguments)}


@pytest.mark.parametrize("name", REFUSED)
def test_a_setting_that_decides_what_is_learned_is_refused_and_nothing_changes(
    make_model, make_args, run, stopped, tmp_path, name
):
    written = contents(tmp_path / "run")
    with pytest.raises(LatentEBMError, match=rf"\b{name}\b.*\b{REFUSED[name]}\b"):
        run(make_model(), make_args(**{"inference": "persistent", name: REFUSED[name]}))
    assert contents(tmp_path / "run") == written


@pytest.mark.parametrize("name", ALLOWED)
def test_a_setting_that_may_differ_is_told(make_model, make_args, run, stopped, tmp_path, name, capsys):
    result = run(make_model(), make_args(inference="persistent", **{name: ALLOWED[name]}))

    assert result.step == (18 if name == "num_epochs" else 12)
    old = getattr(stopped, name)
    assert result.settings_history == [{"step": 8, "changed": {name: [old, ALLOWED[name]]}}]
    assert f"note: from step 8 on with other settings: {name} {ALLOWED[name]} (was {old})" in capsys.readouterr().out


def test_all_changes_of_a_run_are_told_in_its_results(tmp_path):
    assert tiny_runs.train(tmp_path / "run", {"num_epochs": 1}) == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["settings_history"] == []
    assert tiny_runs.train(tmp_path / "run", {"num_epochs": 2, "decoder_learning_rate": 0.01}) == 0
    assert tiny_runs.train(tmp_path / "run", {"num_epochs": 3, "decoder_learning_rate": 0.01}) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["settings_history"] == [
        {"step": 7, "changed": {"num_epochs": [1, 2], "decoder_learning_rate": [0.001, 0.01]}},
        {"step": 14, "changed": {"num_epochs": [2, 3]}},
    ]
    assert (results["step"], results["settings"]["num_epochs"]) == (21, 3)


def test_a_moved_folder_is_resumed(make_model, make_args, run, stopped, tmp_path):
    shutil.move(tmp_path / "run", tmp_path / "moved")
    result = run(make_model(), make_args(inference="persistent", output_dir=str(tmp_path / "moved")))
    assert (result.step, result.settings_history) == (12, [])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_epochs": 1.0}, r"step 12 of 6\), trained with num_epochs 2.0 \(not 1.0\)"),
        (
            {"decoder_learning_rate": 0.01, "log_every": 9},
            r"step 12 of 12\), trained with decoder_learning_rate 0.001",
        ),
    ],
    ids=str,
)
def test_a_finished_run_does_not_claim_settings_that_taught_it_nothing(
    make_model, make_args, run, tmp_path, changes, words
):
    run(make_model(), make_args())
    written = contents(tmp_path / "run")
    with pytest.raises(UsageError, match=f"holds a finished run .{words}"):
        run(make_model(), make_args(**changes))
    assert contents(tmp_path / "run") == written


def test_a_longer_run_averages_over_its_own_last_part(make_model, make_args, run, tmp_path):
    run(make_model(), make_args(averaging_start=0.5))  # 12 steps, the last 6 averaged
    model = make_model()
    run(model, make_args(averaging_start=0.5, num_epochs=5.0))  # 30 steps, the last 15 averaged
    averages = final_tensors(tmp_path / "run")["averaged.safetensors"]
    assert averages["n_averaged"] == 15
    assert same(
        copy_of(model), {name.removeprefix("module."): v for name, v in averages.items() if name != "n_averaged"}
    )
