"""Warnings in words, learning rates and likelihood weight over the steps, and the optimizer's groups."""

import pytest
import torch

from latent_ebm_text.training.reporting import Health, read_metrics
from latent_ebm_text.training.trainer import build_optimizer, learning_rates, likelihood_weight
from tests.training.runs import (
    HEALTHY,
)


@pytest.fixture
def health(make_args):
    return Health(make_args(prior_learning_rate=3e-4), likelihood_weight=2.5)


def test_a_healthy_run_gives_no_warning(health):
    health.observe({"energy_gap": 3.0})
    assert health.judge(HEALTHY) == []
    assert health.warnings == []


def test_an_unused_latent_is_told(health):
    (warning,) = health.judge({**HEALTHY, "prior_nll": 20.4})
    assert "hardly used: it carries 0.4 nats" in warning
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
    assert len(result.warnings) == 1  # said after both evaluations, noted once
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
