"""The controller that sets the likelihood weight: what it measures, where it goes, and what a run leaves behind."""

import json
import math
import signal

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from latent_ebm_text import LatentEBMForTextGeneration
from latent_ebm_text.errors import UsageError
from latent_ebm_text.models.modeling_base import moment_divergence
from latent_ebm_text.training.information import (
    INITIAL_WEIGHT,
    WARMUP,
    WEIGHTS,
    InformationController,
    _bridge,
    step_size_under,
)
from latent_ebm_text.training.reporting import read_metrics
from tests.helpers import LATENT_DIM, seeded, tiny_batch, tiny_model
from tests.training.runs import final_tensors, same, stop_at


def observed(model, target=5.0, *, steps=200, first=0, total=1000, weight=10.0):
    """A controller after some steps of a training that changes nothing, and its weight after each."""
    batch = tiny_batch()
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    controller, weights = InformationController(target, total, LATENT_DIM, weight), []
    for step in range(first, first + steps):
        prior_latents = model.sample_prior(64, generator=seeded(step)).latents
        controller.observe(step, model, inputs, prior_latents, seeded(10_000 + step), Accelerator(cpu=True))
        weights.append(float(controller.weight))
    return controller, weights


def encoder_model(shift=2.0, **settings):
    """A model whose encoder tells something: its means are far from zero."""
    model = tiny_model(encoder_hidden_size=8, **settings).eval()
    with torch.no_grad():
        model.encoder.out.bias[:LATENT_DIM] += shift
        model.encoder.out.bias[LATENT_DIM:] -= 1.0
    return model


def test_under_a_gaussian_prior_the_information_is_the_divergence():
    model = encoder_model(prior_type="gaussian")
    batch = tiny_batch()
    expected = float(model.encoder.propose(batch).divergence().sum(dim=1).mean())
    assert expected > 5
    assert float(observed(model)[0].information) == pytest.approx(expected, rel=0.03)


def test_log_z_of_a_prior_far_from_the_reference_is_its_integral():
    model = encoder_model(prior_sampler={"name": "langevin", "num_steps": 200, "step_size": 0.3})
    with torch.no_grad():
        model.prior.out.weight.mul_(5.0)
    controller, _ = observed(model, steps=100)
    wide = torch.distributions.Normal(0.0, 3.0)
    points = 3.0 * torch.randn(500_000, LATENT_DIM, generator=seeded())
    with torch.no_grad():
        log_weights = model.prior.log_prob(points) - wide.log_prob(points).sum(dim=1)
    log_z = float(log_weights.logsumexp(dim=0)) - math.log(len(points))
    assert abs(log_z) > 5
    with torch.no_grad():
        draws = model.sample_prior(50 * 64, generator=seeded()).latents.split(64)
        found = [float(controller._log_partition(model, own, seeded(seed))) for seed, own in enumerate(draws)]
    assert sum(found) / len(found) == pytest.approx(log_z, abs=0.1)


def test_the_bridge_finds_a_ratio_of_normalisers_that_importance_weights_miss():
    """A density far from its reference: two narrow modes, whose logs of normalisers are known."""
    num_dims, width, height = 8, 0.3, 1.7
    log_z = height + num_dims * math.log(width)

    def log_ratio(z):
        modes = torch.stack([-0.5 * ((z - side) / width).square().sum(dim=1) for side in (-0.4, 0.4)])
        return height - math.log(2) + modes.logsumexp(dim=0) + 0.5 * z.square().sum(dim=1)

    errors = {"bridge": [], "weights": []}
    for seed in range(40):
        reference, noise = torch.randn(2, 256, num_dims, dtype=torch.float64, generator=seeded(seed))
        sides = torch.randint(2, (256, 1), generator=seeded(seed)) * 0.8 - 0.4
        of_reference = log_ratio(reference)
        errors["bridge"].append(float(_bridge(of_reference, log_ratio(sides + width * noise))) - log_z)
        errors["weights"].append(float(of_reference.logsumexp(dim=0)) - math.log(256) - log_z)
    assert abs(sum(errors["bridge"]) / 40) < 0.1
    assert sum(errors["weights"]) / 40 < -0.3


@pytest.mark.parametrize(("target", "sign"), [(0.5, -1), (500.0, 1)])
def test_the_weight_rises_until_enough_is_told_and_falls_when_it_is_too_much(target, sign):
    model = encoder_model()
    _, weights = observed(model, target, first=500)
    assert sign * (weights[-1] - 10.0) > 0
    assert abs(math.log(weights[-1] / 10.0)) == pytest.approx(40 / 1000 * 200, rel=0.1) or weights[-1] in WEIGHTS


def test_the_weight_stays_in_the_first_part_and_where_the_target_is_attained():
    model = encoder_model()
    assert set(observed(model, 500.0, steps=int(WARMUP * 1000))[1]) == {10.0}
    attained = float(observed(model)[0].information)
    _, weights = observed(model, attained, first=500)
    assert weights[-1] == pytest.approx(10.0, rel=0.5), "a batch of four is noisy"


def test_a_run_moves_its_weight_and_saves_the_one_that_it_reached(make_model, make_args, run, tmp_path):
    model = make_model(encoder_hidden_size=16, bag_of_tokens_weight=1.0)
    args = make_args(information=500.0, inference="variational", num_epochs=10.0)
    run(model, args)
    records = [record for record in read_metrics(tmp_path / "run" / "metrics.jsonl") if record["kind"] == "train"]
    assert records[0]["likelihood_weight"] == records[5]["likelihood_weight"] == 2.0, "initial_likelihood_weight"
    assert records[-1]["likelihood_weight"] > 50
    assert all(math.isfinite(record["information"]) for record in records)
    assert model.config.likelihood_weight == pytest.approx(records[-1]["likelihood_weight"], rel=0.5)
    model.save_pretrained(tmp_path / "model")
    assert not [name for name in load_file(tmp_path / "model" / "model.safetensors") if "bag" in name]
    again = LatentEBMForTextGeneration.from_pretrained(tmp_path / "model")
    assert again.config.likelihood_weight == model.config.likelihood_weight


def test_a_stopped_run_ends_with_the_same_weight(make_model, make_args, run, tmp_path):
    settings = {"information": 3.0, "inference": "variational", "initial_likelihood_weight": None}
    changes = {"encoder_hidden_size": 16, "bag_of_tokens_weight": 0.5}
    straight = make_model(**changes)
    run(straight, make_args(output_dir=str(tmp_path / "straight"), **settings))
    args = make_args(output_dir=str(tmp_path / "stopped"), **settings)
    assert run(make_model(**changes), args, stop_at(4)).signal == signal.SIGTERM
    stopped = make_model(**changes)
    run(stopped, args)
    assert straight.config.likelihood_weight == stopped.config.likelihood_weight != INITIAL_WEIGHT
    with pytest.raises(UsageError, match=r"information 3.0 \(not 4.0\)"):
        run(make_model(**changes), make_args(output_dir=str(tmp_path / "stopped"), **settings | {"information": 4.0}))
    found, expected = final_tensors(tmp_path / "stopped"), final_tensors(tmp_path / "straight")
    assert all(same(found[name], expected[name]) for name in expected)


def test_an_edited_state_is_no_state():
    state = InformationController(5.0, 100, 3, 2.0).state()
    assert InformationController.is_state(json.loads(json.dumps(state)))
    for change in ({"weight": math.nan}, {"mean": [0.0]}, {"second_moments": "no"}, {"measured": None}):
        assert not InformationController.is_state(state | change)
    assert not InformationController.is_state([])


def test_information_needs_an_encoder_that_draws(make_args):
    with pytest.raises(UsageError, match="information is measured with an encoder, and inference is 'persistent'"):
        make_args(information=5.0, inference="persistent")
    with pytest.raises(UsageError, match="information must be positive"):
        make_args(information=0.0, inference="variational")


def test_the_bag_of_tokens_by_hand():
    model = tiny_model(encoder_hidden_size=8, bag_of_tokens_weight=0.5).eval()
    batch, latents = tiny_batch(), torch.randn(4, LATENT_DIM, generator=seeded())
    nats = 0.0
    log_probs = model.bag_of_tokens(latents).log_softmax(-1).detach()
    for row, (ids, mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"], strict=True)):
        nats -= float(log_probs[row, ids[1 : int(mask.sum())]].sum())
    assert model._auxiliary_loss(batch, latents).item() == pytest.approx(0.5 * nats / 4, rel=1e-5)


def test_the_moments_of_a_batch_cost_what_a_gaussian_of_these_moments_diverges_by():
    latents = torch.randn(4096, 3, generator=seeded()) * torch.tensor([1.0, 0.5, 2.0]) + torch.tensor([0.0, 1.0, 0.0])
    mean, std = latents.mean(dim=0), latents.std(dim=0)
    exact = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, std), torch.distributions.Normal(0.0, 1.0)
    )
    assert float(moment_divergence(latents)) == pytest.approx(float(exact.sum()), rel=1e-4)
    assert float(moment_divergence(latents[:, :1])) == pytest.approx(0.0, abs=0.01)
    assert float(moment_divergence(latents[:1])) == 0.0


def test_the_scale_of_the_posterior_is_held_by_its_moments():
    batch = tiny_batch()
    losses = []
    for weight in (0.0, 1.0):
        model = encoder_model(shift=5.0, moment_weight=weight).train()
        torch.manual_seed(0)
        losses.append(model(**batch, prior_latents=torch.zeros(4, LATENT_DIM)))
    added = float((losses[1].loss - losses[0].loss).detach())
    assert added == pytest.approx(float(moment_divergence(losses[1].latents)), rel=1e-4)
    assert added > 10


def test_posterior_chains_take_shorter_steps_under_a_higher_weight():
    assert step_size_under(4.0, 0.3) == pytest.approx(0.15)
    assert step_size_under(0.5, 0.3) == 0.3
    assert step_size_under(4.0, [0.4, 0.2]) == pytest.approx([0.2, 0.1])
    assert step_size_under(4.0, {"shape": "linear", "start": 0.6, "end": 0.2}) == {
        "shape": "linear",
        "start": pytest.approx(0.3),
        "end": pytest.approx(0.1),
    }
