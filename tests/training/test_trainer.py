"""The training loop: it learns, stops and goes on as if it never had, and says what is wrong."""

import dataclasses
import json
import math
import os
import signal
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from latent_ebm_text import LatentEBMForTextGeneration
from latent_ebm_text.errors import CheckpointError, DivergenceError, UsageError
from latent_ebm_text.training.arguments import DataArguments, ModelArguments, TrainingArguments
from latent_ebm_text.training.checkpointing import find_checkpoints
from latent_ebm_text.training.reporting import Health, MetricsFile, RunningMeans, read_metrics
from latent_ebm_text.training.text import prepare_text
from latent_ebm_text.training.trainer import (
    _StopSignals,
    build_optimizer,
    learning_rates,
    likelihood_weight,
    train,
)

NUM_SENTENCES, BATCH_SIZE = 96, 16  # 6 batches an epoch
HEALTHY = {"reconstruction_nll": 20.0, "prior_nll": 30.0, "std_mismatch": 0.0}


@pytest.fixture(scope="module")
def text():
    args = DataArguments(dataset_name="grammar", num_sentences=NUM_SENTENCES, max_length=20)
    return prepare_text(args, 0, Accelerator(cpu=True))


@pytest.fixture
def make_model(text):
    def make(**changes):
        settings = {
            "latent_dim": 4, "hidden_size": 24, "embedding_size": 12, "prior_hidden_size": 8, "prior_num_steps": 3,
            "posterior_num_steps": 3, "posterior_step_size": 0.3, "dropout": 0.2, "word_dropout": 0.1,
        }  # fmt: skip
        torch.manual_seed(0)
        return LatentEBMForTextGeneration(ModelArguments(**settings | changes).text_config(len(text.tokenizer), 20))

    return make


@pytest.fixture
def make_args(tmp_path):
    def make(**changes):
        settings = {
            "output_dir": str(tmp_path / "run"), "num_epochs": 2.0, "train_batch_size": BATCH_SIZE, "warmup_steps": 3,
            "log_every": 1, "eval_every": 4, "save_every": 5, "initial_likelihood_weight": 2.0,
            "likelihood_weight_steps": 10,
        }  # fmt: skip
        return TrainingArguments(**settings | changes)

    return make


@pytest.fixture
def run(text):
    """Trains as the recipe does, with an evaluation that costs nothing."""

    def run(model, args, evaluate=lambda model, step: HEALTHY):
        data = text.training_data(args.train_batch_size, args.seed)
        return train(
            model,
            data,
            args,
            identity=text.identity(model, args),
            evaluate=evaluate,
            accelerator=Accelerator(cpu=True),
        )

    return run


def stop_at(stop_step):
    """An evaluation during which the process is told to stop."""

    def evaluate(model, step):
        if step == stop_step:
            os.kill(os.getpid(), signal.SIGTERM)
        return HEALTHY

    return evaluate


def copy_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def final_tensors(folder):
    newest = find_checkpoints(folder / "checkpoints")[0]
    return {path.name: load_file(path) for path in newest.glob("*.safetensors")}


def metrics_without_seconds(folder):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in read_metrics(folder / "metrics.jsonl")]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -------- learning


def test_the_loss_falls_on_the_grammar(make_model, make_args, run, tmp_path):
    args = make_args(num_epochs=10.0, decoder_learning_rate=0.03)
    result = run(make_model(hidden_size=64, embedding_size=32, dropout=0.0, word_dropout=0.0), args)

    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    nll = [record["reconstruction_nll"] for record in records if record["kind"] == "train"]
    assert result.step == len(nll) == 60
    assert np.mean(nll[-6:]) < 0.7 * np.mean(nll[:6])  # an epoch each, so that both count the same sentences


BASELINES = {
    "language model": ({"latent_dim": 0, "prior_type": "gaussian"}, "short_run"),
    "Gaussian prior": ({"prior_type": "gaussian"}, "persistent"),
    "VAE": ({"prior_type": "gaussian", "encoder_hidden_size": 16, "free_bits": 0.1}, "variational"),
}


@pytest.mark.parametrize("baseline", BASELINES)
def test_baselines_learn_in_the_same_loop(make_model, make_args, run, tmp_path, baseline):
    model_settings, inference = BASELINES[baseline]
    model = make_model(hidden_size=64, embedding_size=32, dropout=0.0, word_dropout=0.0, **model_settings)
    before = copy_of(model)
    run(model, make_args(num_epochs=10.0, decoder_learning_rate=0.03, inference=inference))
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    nll = [record["reconstruction_nll"] for record in records if record["kind"] == "train"]
    assert np.mean(nll[-6:]) < 0.7 * np.mean(nll[:6])
    still = {name for name, weight in copy_of(model).items() if weight.numel() and torch.equal(weight, before[name])}
    assert not still, "every weight learns"


@pytest.mark.parametrize(
    ("settings", "inference"),
    [({}, "variational"), ({"prior_type": "gaussian", "encoder_hidden_size": 8}, "short_run")],
)
def test_an_encoder_and_variational_inference_go_together(make_model, make_args, run, tmp_path, settings, inference):
    with pytest.raises(UsageError, match="go together"):
        run(make_model(**settings), make_args(inference=inference))
    assert not (tmp_path / "run").exists(), "refused before anything is written"


def test_evaluation_comes_every_so_many_steps_in_training_mode_and_is_written(make_model, make_args, run, tmp_path):
    seen = []

    def evaluate(model, step):
        seen.append((step, model.training))
        return {**HEALTHY, "reconstruction_nll": float(step)}

    run(make_model(), make_args(eval_every=4), evaluate)

    assert seen == [(4, True), (8, True)]  # the end has an evaluation of its own, on all data
    records = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "validation"]
    assert [(r["step"], r["reconstruction_nll"]) for r in records] == [(4, 4.0), (8, 8.0)]


def test_an_evaluation_that_draws_random_numbers_changes_nothing(make_model, make_args, run, tmp_path):
    models = []
    for name, evaluate in (("quiet", lambda *_: HEALTHY), ("noisy", lambda *_: torch.randn(99) is None or HEALTHY)):
        models.append(make_model())
        run(models[-1], make_args(output_dir=str(tmp_path / name)), evaluate)
    assert same(models[0].state_dict(), models[1].state_dict())


def test_a_batch_of_one_sentence_gives_finite_figures(make_model, make_args, run, tmp_path):
    run(make_model(), make_args(num_epochs=0.02, train_batch_size=1))
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert json.loads(text.splitlines()[0])["posterior_std"] == 0.0
    assert "NaN" not in text


# -------- persistent chains


def test_persistent_chains_go_on_where_the_last_visit_left_them(make_model, make_args, run, text, monkeypatch):
    model, visits = make_model(), []
    sample = model.sample_posterior

    def record(inputs, **kwargs):
        output = sample(inputs, **kwargs)
        visits.append((kwargs["initial_latents"].clone(), output.latents.clone()))
        return output

    monkeypatch.setattr(model, "sample_posterior", record)
    args = make_args(inference="persistent", chain_refresh=0.0)
    run(model, args)

    batches = text.training_data(BATCH_SIZE, args.seed).batches
    ends = torch.full((NUM_SENTENCES, 4), torch.nan)
    for epoch in range(2):
        for position, indices in enumerate(batches.epoch(epoch)):
            start, end = visits[epoch * len(batches) + position]
            if epoch:
                assert torch.equal(start, ends[indices])
            ends[indices] = end
    assert not ends.isnan().any()


@pytest.mark.parametrize("epochs", [0.5, 1.0])
def test_every_visited_chain_is_written_and_no_other(make_model, make_args, run, text, tmp_path, epochs):
    run(make_model(), make_args(inference="persistent", num_epochs=epochs))
    chains = np.fromfile(tmp_path / "run" / "chains.bin", dtype=np.float32).reshape(NUM_SENTENCES, 4)
    batches = text.training_data(BATCH_SIZE, 0).batches.epoch(0)[: int(6 * epochs)]
    assert set(np.flatnonzero(chains.any(axis=1))) == set(np.concatenate(batches))


# -------- stopping and going on


@pytest.mark.parametrize("inference", ["short_run", "persistent", "variational"])
def test_a_stopped_run_ends_like_one_that_never_stopped(make_model, make_args, run, tmp_path, inference):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    if inference == "variational":
        make_model = partial(make_model, **BASELINES["VAE"][0])
    settings = {"inference": inference, "log_every": 3}  # the stops fall between the lines of metrics.jsonl
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
    assert same(copy_of(model), expected["model.safetensors"])
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
    two = SimpleNamespace(num_processes=2, device="cpu", reduce=lambda tensor, reduction: tensor)
    assert _StopSignals().agreed(two) is None


def test_processes_leave_together_when_another_got_the_signal():
    other_got_one = SimpleNamespace(num_processes=2, device="cpu", reduce=lambda tensor, reduction: tensor + 15)
    assert _StopSignals().agreed(other_got_one) == signal.SIGTERM


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


# -------- divergence


@pytest.mark.parametrize(
    ("broken", "figure"), [("loss", "reconstruction loss is nan"), ("gradient", "decoder gradient norm is")]
)
def test_a_step_that_is_not_finite_changes_no_weight(make_model, make_args, run, monkeypatch, broken, figure):
    model = make_model()
    objective, before = model.objective, []

    def break_third(*args):
        before.append(copy_of(model))
        parts = objective(*args)
        if len(before) < 3:
            return parts
        if broken == "loss":
            return dataclasses.replace(
                parts, loss=parts.loss * math.nan, reconstruction=parts.reconstruction * math.nan
            )
        model.decoder.output.bias.register_hook(lambda gradient: gradient * math.inf)
        return parts

    monkeypatch.setattr(model, "objective", break_third)
    with pytest.raises(DivergenceError, match=f"{figure}.* at step 3 .*decoder_learning_rate"):
        run(model, make_args())
    assert not same(before[0], before[2])
    assert same(copy_of(model), before[2])


def test_a_chain_that_is_not_finite_names_the_training_step_and_the_setting(make_model, make_args, run):
    model = make_model()
    with torch.no_grad():
        model.decoder.output.bias[5] = math.nan
    before = copy_of(model)

    with pytest.raises(DivergenceError, match="training step 1: Langevin chain not finite .*step_size"):
        run(model, make_args())

    after = copy_of(model)
    assert all(torch.equal(before[name], after[name]) for name in before if name != "decoder.output.bias")


# -------- health, schedules, optimizer


@pytest.fixture
def health(make_args):
    return Health(make_args(prior_learning_rate=3e-4), likelihood_weight=2.5)


def test_a_healthy_run_gives_no_warning(health):
    health.observe({"energy_gap": 3.0})
    assert health.judge(HEALTHY) == []
    assert health.warnings == []


def test_an_unused_latent_is_told(health):
    (warning,) = health.judge({**HEALTHY, "prior_nll": 20.4})
    assert "hardly used: it tells 0.4 nats" in warning
    assert "Raise likelihood_weight (now 2.5)" in warning
    assert health.warnings == [warning]


@pytest.mark.parametrize("gap", [80.0, -80.0])
def test_a_runaway_energy_is_told(health, gap):
    for _ in range(5):
        health.observe({"energy_gap": gap})
    (warning,) = health.judge(HEALTHY)
    assert f"runs away: posterior and prior draws are {gap:.0f} nats apart" in warning
    assert "Lower prior_learning_rate (now 0.0003)" in warning


def test_one_large_gap_long_ago_is_no_runaway(health):
    for gap in (800.0, 1.0, 1.0, 1.0, 1.0, 1.0):
        health.observe({"energy_gap": gap})
    assert health.judge(HEALTHY) == []


def test_a_prior_that_does_not_match_is_told(health):
    (warning,) = health.judge({**HEALTHY, "std_mismatch": 0.4})
    assert "does not match the posterior: their standard deviations differ by 40 %" in warning


def test_warnings_are_printed_and_returned(make_model, make_args, run, capsys):
    result = run(make_model(), make_args(), lambda model, step: {**HEALTHY, "prior_nll": 20.0})
    assert len(result.warnings) == 2
    assert "step 4: the latent is hardly used" in capsys.readouterr().out


def test_learning_rate_warms_up_and_falls_linearly(make_args):
    args = make_args(warmup_steps=10, final_learning_rate_factor=0.1, decoder_learning_rate=1.0)
    factors = [learning_rates(step, 100, args)[0] for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[4] == pytest.approx(0.5 * (1 - 0.9 * 0.04))
    assert max(factors) == factors[9]
    assert factors[50] == pytest.approx(0.55)
    assert factors[100] == pytest.approx(0.1)


def test_a_constant_learning_rate_can_be_had(make_args):
    args = make_args(
        warmup_steps=0, final_learning_rate_factor=1.0, decoder_learning_rate=0.5, prior_learning_rate=0.25
    )
    assert {learning_rates(step, 100, args) for step in range(100)} == {(0.5, 0.25)}


@pytest.mark.parametrize("warmup_steps", [0, 10])
def test_the_prior_may_begin_to_learn_later(make_args, warmup_steps):
    args = make_args(
        warmup_steps=warmup_steps, final_learning_rate_factor=0.0, decoder_learning_rate=1.0, prior_start=0.6
    )
    args.prior_learning_rate = 1.0
    decoder, prior = zip(*(learning_rates(step, 100, args) for step in range(100)), strict=True)
    assert set(prior[:60]) == {0.0}
    assert all(rate > 0 for rate in prior[60:])
    assert prior[75:] == decoder[75:]


def test_a_prior_that_has_not_begun_stays_as_it_was(make_model, make_args, run):
    model = make_model()
    before = {name: weight.clone() for name, weight in model.prior.named_parameters()}
    run(model, make_args(prior_start=1.0))
    assert all(torch.equal(weight, before[name]) for name, weight in model.prior.named_parameters())


def test_likelihood_weight_falls_geometrically_to_its_final_value(make_args):
    args = make_args(initial_likelihood_weight=8.0, likelihood_weight_steps=100)
    weights = [likelihood_weight(step, args, 2.0) for step in (0, 50, 100, 5000)]
    assert weights == pytest.approx([8.0, 4.0, 2.0, 2.0])
    assert likelihood_weight(0, make_args(initial_likelihood_weight=None), 2.0) == 2.0


def test_the_loop_follows_the_schedules(make_model, make_args, run, tmp_path):
    args = make_args(decoder_learning_rate=0.004)
    run(make_model(likelihood_weight=1.0), args)
    records = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "train"]
    for step, record in enumerate(records):
        assert record["decoder_learning_rate"] == pytest.approx(learning_rates(step, 12, args)[0])
        assert record["likelihood_weight"] == pytest.approx(likelihood_weight(step, args, 1.0))


@pytest.mark.parametrize("tied", [True, False])
def test_the_optimizer_has_every_weight_once_with_the_settings_of_its_part(make_model, make_args, tied):
    model = make_model(tie_word_embeddings=tied)
    args = make_args(
        decoder_learning_rate=0.1, prior_learning_rate=0.2, decoder_weight_decay=0.3, prior_weight_decay=0.4
    )
    decoder, prior = build_optimizer(model, args).param_groups
    assert (decoder["lr"], decoder["weight_decay"]) == (0.1, 0.3)
    assert (prior["lr"], prior["weight_decay"]) == (0.2, 0.4)
    assert {id(p) for p in prior["params"]} == {id(p) for p in model.prior.parameters()}
    optimized = [id(p) for p in decoder["params"] + prior["params"]]
    assert len(optimized) == len(set(optimized))
    assert set(optimized) == {id(p) for p in model.parameters()}
