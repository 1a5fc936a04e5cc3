"""Warnings in words, learning rates and likelihood weight over the steps, and the optimizer's groups."""

import pytest
import torch

from latent_ebm_text.training.reporting import find_problems, read_metrics
from latent_ebm_text.training.step import build_optimizer, learning_rates, likelihood_weight
from tests.training.runs import (
    HEALTHY,
)

SETTINGS = {"latent_dim": 8, "prior_type": "energy", "likelihood_weight": 2.5, "prior_learning_rate": 3e-4}


def test_a_healthy_model_has_no_problem():
    assert find_problems(HEALTHY, SETTINGS) == []


def test_an_unused_latent_is_told_however_bad_prior_draws_are():
    (problem,) = find_problems({**HEALTHY, "latent_gain": 0.4, "prior_nll": 60.0}, SETTINGS)
    assert "hardly used: it tells 0.4 nats more" in problem
    assert "Raise likelihood_weight (now 2.5)" in problem


@pytest.mark.parametrize("gap", [80.0, -80.0])
def test_a_runaway_energy_is_told(gap):
    (problem,) = find_problems({**HEALTHY, "energy_gap": gap}, SETTINGS)
    assert f"runs away: posterior and prior draws are {gap:.0f} nats apart" in problem
    assert "Lower prior_learning_rate (now 0.0003)" in problem


def test_a_prior_that_does_not_match_is_told():
    (problem,) = find_problems({**HEALTHY, "std_mismatch": 0.4}, SETTINGS)
    assert "does not match the posterior: their standard deviations differ by 40 %" in problem


def test_a_target_of_information_that_is_missed_is_told():
    settings = {**SETTINGS, "information": 20.0}
    assert find_problems({**HEALTHY, "information": 19.0}, settings) == []
    (problem,) = find_problems({**HEALTHY, "information": 12.0}, settings)
    assert "the latent carries 12.0 nats of new examples in place of 20. Train longer" in problem
    (problem,) = find_problems({**HEALTHY, "information": 20.0}, {**settings, "likelihood_weight": 44.0})
    assert "does not learn what to tell: the likelihood weight has grown to 44 for 20.0 nats" in problem


def test_a_gaussian_prior_cannot_be_wrong_and_a_language_model_has_none():
    bad = {**HEALTHY, "energy_gap": 80.0, "std_mismatch": 0.4, "latent_gain": 0.0}
    assert len(find_problems(bad, {**SETTINGS, "prior_type": "gaussian"})) == 1
    assert find_problems({"reconstruction_nll": 20.0}, {**SETTINGS, "latent_dim": 0}) == []


def test_settings_that_are_not_known_are_not_quoted():
    (problem,) = find_problems({**HEALTHY, "energy_gap": 80.0}, {"latent_dim": 8, "prior_type": "energy"})
    assert "Lower prior_learning_rate, raise" in problem


def test_problems_are_printed_while_training(make_model, make_args, run, capsys):
    run(make_model(), make_args(), lambda model, step: {**HEALTHY, "latent_gain": 0.0})
    assert "step 4: the latent is hardly used" in capsys.readouterr().out


def test_learning_rate_warms_up_and_falls_linearly(make_args):
    args = make_args(warmup=0.1, final_learning_rate_factor=0.1, decoder_learning_rate=1.0)
    factors = [learning_rates(step, 100, args)[0] for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[4] == pytest.approx(0.5 * (1 - 0.9 * 0.04))
    assert max(factors) == factors[9]
    assert factors[50] == pytest.approx(0.55)
    assert factors[100] == pytest.approx(0.1)


def test_a_constant_learning_rate_can_be_had(make_args):
    args = make_args(warmup=0.0, final_learning_rate_factor=1.0, decoder_learning_rate=0.5, prior_learning_rate=0.25)
    assert {learning_rates(step, 100, args) for step in range(100)} == {(0.5, 0.25, 0.05)}


@pytest.mark.parametrize("warmup", [0.0, 0.1])
def test_the_prior_may_begin_to_learn_later(make_args, warmup):
    args = make_args(warmup=warmup, final_learning_rate_factor=0.0, decoder_learning_rate=1.0, prior_start=0.6)
    args.prior_learning_rate = 1.0
    decoder, prior, _ = zip(*(learning_rates(step, 100, args) for step in range(100)), strict=True)
    assert set(prior[:60]) == {0.0}
    assert all(rate > 0 for rate in prior[60:])
    assert prior[75:] == decoder[75:]


def test_a_prior_that_has_not_begun_stays_as_it_was(make_model, make_args, run):
    model = make_model()
    before = {name: weight.clone() for name, weight in model.prior.named_parameters()}
    run(model, make_args(prior_start=1.0))
    assert all(torch.equal(weight, before[name]) for name, weight in model.prior.named_parameters())


def test_likelihood_weight_falls_geometrically_to_its_final_value(make_args):
    args = make_args(initial_likelihood_weight=8.0, likelihood_weight_fall=0.5)
    weights = [likelihood_weight(step, 200, args, 2.0) for step in (0, 50, 100, 199)]
    assert weights == pytest.approx([8.0, 4.0, 2.0, 2.0])
    assert likelihood_weight(0, 200, make_args(initial_likelihood_weight=None), 2.0) == 2.0


def test_the_loop_follows_the_schedules(make_model, make_args, run, tmp_path):
    args = make_args(decoder_learning_rate=0.004)
    run(make_model(likelihood_weight=1.0), args)
    records = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "train"]
    for step, record in enumerate(records):
        assert record["decoder_learning_rate"] == pytest.approx(learning_rates(step, 12, args)[0])
        assert record["likelihood_weight"] == pytest.approx(likelihood_weight(step, 12, args, 1.0))


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
