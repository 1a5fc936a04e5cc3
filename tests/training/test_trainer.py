"""The training loop: it learns, visits its chains, and lets nothing through that is not finite."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from latent_ebm_text.errors import DivergenceError, UsageError
from latent_ebm_text.training.reporting import read_metrics
from tests.training.runs import (
    BASELINES,
    BATCH_SIZE,
    HEALTHY,
    NUM_SENTENCES,
    copy_of,
    same,
)

# -------- learning


def test_the_loss_falls_on_the_grammar(make_model, make_args, run, tmp_path):
    args = make_args(num_epochs=10.0, decoder_learning_rate=0.03)
    result = run(make_model(hidden_size=64, embedding_size=32, dropout=0.0, token_dropout=0.0), args)

    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    nll = [record["reconstruction_nll"] for record in records if record["kind"] == "train"]
    assert result.step == len(nll) == 60
    assert np.mean(nll[-6:]) < 0.7 * np.mean(nll[:6])  # an epoch each, so that both count the same sentences


def test_the_final_weights_are_the_averages_over_the_last_part(make_model, make_args, run, monkeypatch):
    seen = []
    step = torch.optim.AdamW.step

    def recording(optimizer, *args, **kwargs):
        result = step(optimizer, *args, **kwargs)
        seen.append([weight.detach().clone() for group in optimizer.param_groups for weight in group["params"]])
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", recording)
    model = make_model()
    run(model, make_args(averaging_start=0.75))
    assert len(seen) == 12
    trained = [*model.decoder.parameters(), *model.prior.parameters()]
    for weight, *values in zip(trained, *seen[9:], strict=True):
        torch.testing.assert_close(weight, torch.stack(values).mean(dim=0))
        assert not torch.equal(weight, values[-1])


@pytest.mark.parametrize("averaging_start", [0.97, 0.999])
def test_an_average_from_the_end_on_is_of_the_last_weights(make_model, make_args, run, tmp_path, averaging_start):
    averaged, plain = make_model(), make_model()
    run(averaged, make_args(averaging_start=averaging_start, output_dir=str(tmp_path / "averaged")))
    run(plain, make_args(output_dir=str(tmp_path / "plain")))
    for weight, expected in zip(averaged.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(weight, expected)


@pytest.mark.parametrize("baseline", BASELINES)
def test_baselines_learn_in_the_same_loop(make_model, make_args, run, tmp_path, baseline):
    model_settings, inference = BASELINES[baseline]
    model = make_model(hidden_size=64, embedding_size=32, dropout=0.0, token_dropout=0.0, **model_settings)
    before = copy_of(model)
    run(model, make_args(num_epochs=10.0, decoder_learning_rate=0.03, inference=inference))
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    nll = [record["reconstruction_nll"] for record in records if record["kind"] == "train"]
    assert np.mean(nll[-6:]) < 0.7 * np.mean(nll[:6])
    still = {name for name, weight in copy_of(model).items() if weight.numel() and torch.equal(weight, before[name])}
    assert not still, "every weight learns"


@pytest.mark.parametrize(
    ("settings", "inference"),
    [({}, "variational"), ({}, "amortized"), ({"prior_type": "gaussian", "encoder_hidden_size": 8}, "short_run")],
)
def test_an_encoder_and_variational_inference_go_together(make_model, make_args, run, tmp_path, settings, inference):
    with pytest.raises(UsageError, match="do not go together: set encoder_hidden_size"):
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


# -------- divergence


@pytest.mark.parametrize(
    ("broken", "figure"),
    [
        ("loss", "reconstruction loss is nan"),
        ("gradient", "gradient of decoder.output.bias is not finite on examples"),
    ],
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
                parts, loss=parts.loss * math.nan, reconstruction_loss=parts.reconstruction_loss * math.nan
            )
        model.decoder.output.bias.register_hook(lambda gradient: gradient * math.inf)
        return parts

    monkeypatch.setattr(model, "objective", break_third)
    with pytest.raises(DivergenceError, match=f"training step 3: .*{figure}.*decoder_learning_rate"):
        run(model, make_args(max_rollbacks=0))
    assert not same(before[0], before[2])
    assert same(copy_of(model), before[2])


def test_a_chain_that_is_not_finite_names_the_training_step_and_the_setting(make_model, make_args, run):
    model = make_model()
    with torch.no_grad():
        model.decoder.output.bias[5] = math.nan
    before = copy_of(model)

    with pytest.raises(
        DivergenceError, match=r"training step 1: posterior of examples \[.*Langevin chain not finite .*step_size"
    ):
        run(model, make_args(max_rollbacks=0))

    after = copy_of(model)
    assert all(torch.equal(before[name], after[name]) for name in before if name != "decoder.output.bias")
