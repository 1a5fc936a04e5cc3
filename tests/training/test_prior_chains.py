"""Chains of the prior that go on from step to step: where they get to, and that a stopped run goes on with them."""

import signal

import pytest
import torch
from accelerate import Accelerator

from latent_ebm_text.errors import UsageError
from latent_ebm_text.training.prior_chains import PriorChains
from tests.helpers import LATENT_DIM, seeded, tiny_model
from tests.training.runs import BATCH_SIZE, copy_of, final_tensors, metrics_without_seconds, same, stop_at

ENCODER = {"encoder_hidden_size": 16}
SETTINGS = {"inference": "variational", "prior_chain_num_steps": 2, "log_every": 3}


def test_short_steps_add_up_to_draws_from_the_density(make_args):
    sampler = {"name": "langevin", "num_steps": 99, "step_size": 0.3, "integrator": "leimkuhler_matthews"}
    model = tiny_model(prior_sampler=sampler).train()
    with torch.no_grad():
        model.prior.out.weight.mul_(2.0)
    points = torch.randn(400_000, LATENT_DIM, generator=seeded())
    with torch.no_grad():
        weights = model.prior.tilt(points).softmax(dim=0)
    mean = weights @ points
    assert mean.norm() > 0.5, "an energy that moves the prior"

    chains = PriorChains(model, make_args(train_batch_size=1000, prior_chain_num_steps=5), Accelerator(cpu=True))
    found = chains.whole().flatten(0, 1)
    assert found.shape == (2000, LATENT_DIM)
    assert found.mean(dim=0).norm() < 0.1, "they start from N(0, I)"
    for step in range(100):
        found = chains.advanced(model, torch.arange(1000), 1000, step)
        if step == 0:
            assert (found.mean(dim=0) - mean).norm() > 0.2, "five steps are not enough"
        chains.move(found)
    torch.testing.assert_close(found.mean(dim=0), mean, atol=0.08, rtol=0)
    torch.testing.assert_close(found.var(dim=0), weights @ (points - mean).square(), atol=0.1, rtol=0.1)


def test_a_short_batch_leaves_the_other_chains_where_they_are(make_args):
    model = tiny_model().train()
    chains = PriorChains(model, make_args(train_batch_size=6, prior_chain_num_steps=2), Accelerator(cpu=True))
    before = chains.whole()
    chains.move(chains.advanced(model, torch.arange(4), 4, 0))
    assert not torch.isclose(chains.whole()[:4], before[:4]).any()
    assert torch.equal(chains.whole()[4:], before[4:])


@pytest.mark.parametrize("changes", [{}, {"inference": "amortized"}, {"averaging_start": 0.5}])
def test_a_stopped_run_goes_on_with_its_chains(make_model, make_args, run, tmp_path, changes):
    folders = straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    first, second = (make_args(output_dir=str(folder), **SETTINGS | changes) for folder in folders)
    run(make_model(**ENCODER), first)
    assert run(make_model(**ENCODER), second, stop_at(4)).signal == signal.SIGTERM
    torch.manual_seed(1234)
    run(make_model(**ENCODER), second)
    expected, found = final_tensors(straight), final_tensors(stopped)
    assert expected["prior_chains.safetensors"]["latents"].shape == (BATCH_SIZE, 2, 4)
    assert expected.keys() == found.keys()
    assert all(same(found[name], expected[name]) for name in expected)
    assert metrics_without_seconds(stopped) == metrics_without_seconds(straight)


def test_they_change_what_is_learned_and_the_number_of_their_steps_cannot_change_on_the_way(
    make_model, make_args, run, tmp_path
):
    learned = {}
    for steps in (None, 2):
        model = make_model(**ENCODER)
        run(model, make_args(output_dir=str(tmp_path / str(steps)), **SETTINGS | {"prior_chain_num_steps": steps}))
        learned[steps] = copy_of(model.prior)
    assert not same(learned[None], learned[2])
    with pytest.raises(UsageError, match="prior_chain_num_steps"):
        run(
            make_model(**ENCODER), make_args(output_dir=str(tmp_path / "2"), **SETTINGS | {"prior_chain_num_steps": 3})
        )


def test_a_gaussian_prior_has_no_chains(make_model, make_args, run, tmp_path):
    run(make_model(prior_type="gaussian", **ENCODER), make_args(**SETTINGS))
    assert "prior_chains.safetensors" not in final_tensors(tmp_path / "run")


@pytest.mark.parametrize("steps", [0, -1])
def test_the_number_of_steps_is_positive(make_args, steps):
    with pytest.raises(UsageError, match="prior_chain_num_steps"):
        make_args(prior_chain_num_steps=steps)
