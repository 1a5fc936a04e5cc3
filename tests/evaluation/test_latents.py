"""Metrics of the latents: active dimensions, spread and energy of posterior against prior; and estimates."""

import json

import numpy as np
import pytest
import torch

from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.estimates import Estimate
from latent_ebm_text.evaluation.latents import (
    NAMES,
    LatentDraws,
    active_units,
    draw_metrics,
    latent_metrics,
    latents_of_others,
    plain_numbers,
    split_results,
)


def two_draws(mean_std: torch.Tensor, n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two posterior draws per data point; the posterior means have `mean_std`, the draws unit variance or more."""
    generator = torch.Generator().manual_seed(seed)
    means = mean_std * torch.randn(n, len(mean_std), generator=generator)
    noise_std = (1 - mean_std.square()).clamp(min=0.05).sqrt()
    return tuple(means + noise_std * torch.randn(means.shape, generator=generator) for _ in range(2))


def test_dimensions_that_follow_the_data_are_active():
    mean_std = torch.tensor([0.9, 0.0, 0.7, 0.0, 0.0, 0.5, 0.0, 0.0])
    assert active_units(*two_draws(mean_std, n=500)) == 3


def test_noise_alone_hardly_ever_activates_a_dimension():
    assert active_units(*two_draws(torch.zeros(2000), n=500)) / 2000 < 0.03


def test_a_mean_that_moves_less_than_the_threshold_is_not_active():
    assert active_units(*two_draws(torch.full((50,), 0.05), n=20_000)) == 0  # variance 0.0025 < 0.01


def test_a_dimension_far_from_zero_but_constant_is_not_active():
    first, second = two_draws(torch.zeros(4), n=500)
    assert active_units(first + 10, second + 10) == 0


def make_draws(first, second, prior, posterior_energy=None, prior_energy=None):
    zeros = torch.zeros(len(first))
    energies = [zeros if energy is None else energy for energy in (posterior_energy, prior_energy)]
    nlls = {
        "reconstruction_nll": zeros + 2,
        "prior_nll": zeros + 3,
        "other_nll": zeros + 4,
        "averaged_nll": zeros + 2.5,
    }
    return LatentDraws(first, second, prior, *energies, **nlls)


def test_comparison_by_hand():
    first, second = torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.tensor([[4.0, 1.0], [6.0, 7.0]])
    prior = torch.tensor([[-1.0, 0.0], [1.0, 4.0]])

    metrics = latent_metrics(make_draws(first, second, prior, torch.tensor([3.0, 5.0]), torch.tensor([0.5, 1.5])))

    posterior_std = np.std([[0, 1], [2, 3], [4, 1], [6, 7]], axis=0, ddof=1)
    prior_std = np.std([[-1, 0], [1, 4]], axis=0, ddof=1)
    assert metrics["posterior_std"].value == pytest.approx(posterior_std.mean())
    assert metrics["prior_std"].value == pytest.approx(prior_std.mean())
    assert metrics["std_mismatch"].value == pytest.approx(np.abs(posterior_std / prior_std - 1).mean())
    assert metrics["energy_gap"].value == pytest.approx(3.0)
    assert metrics["energy_gap"].standard_error == pytest.approx((2 / 2 + 0.5 / 2) ** 0.5)
    assert {metric.n for metric in metrics.values()} == {2}


def test_mismatches_of_opposite_sign_do_not_cancel():
    posterior, prior = two_draws(torch.zeros(2), n=500)
    posterior = posterior * torch.tensor([0.5, 1.5])
    metrics = latent_metrics(make_draws(posterior, posterior, prior))
    assert metrics["posterior_std"].value == pytest.approx(metrics["prior_std"].value, rel=0.15)
    assert metrics["std_mismatch"].value == pytest.approx(0.5, abs=0.15)


def test_metrics_have_names_and_definitions_in_the_results():
    posterior, prior = two_draws(torch.zeros(2), n=50)
    results = split_results(draw_metrics(make_draws(posterior, posterior, prior), "image"), 50)
    for key in NAMES.keys() - {"mse", "information"}:
        assert results[key]["name"] == NAMES[key]
        assert results[key]["definition"], key
    assert "in nats per image" in results["prior_nll"]["definition"]
    assert results["latents"]["std_mismatch"] == results["std_mismatch"]["value"]
    assert results["latents"]["n"] == 50
    assert results["latent_gain"]["value"] == plain_numbers(results)["latent_gain"] == 0.5
    assert json.loads(json.dumps(results, allow_nan=False)) == results


def test_a_model_without_a_latent_has_zeros_and_no_metrics_of_one():
    results = split_results(draw_metrics(make_draws(*[torch.zeros(5, 0)] * 3), "image"), 5)
    assert results.keys() == {"reconstruction_nll", "prior_nll", "latents"}
    zeros = dict.fromkeys(("active_units", "posterior_std", "prior_std", "std_mismatch", "energy_gap"), 0)
    assert results["latents"] == {**zeros, "n": 5}


@pytest.mark.parametrize("n", [2, 3, 50])
def test_others_are_never_oneself_and_are_used_alike(n):
    own = torch.arange(n)[:, None]
    others = latents_of_others(own)
    assert others.shape == (min(8, n - 1), n, 1)
    assert not (others == own).any()
    assert (others.flatten().bincount() == len(others)).all()


@pytest.mark.parametrize("n", [2, 3, 5])
def test_few_draws_give_finite_intervals(n):
    """Resamples in which all prior draws are the same have no spread to divide by."""
    metrics = latent_metrics(make_draws(*two_draws(torch.zeros(2), n=n), torch.randn(n, 2)))
    assert all(np.isfinite(metric.interval_95).all() for metric in metrics.values())


def test_estimate_agrees_with_numpy():
    values = np.random.default_rng(0).normal(30, 4, size=57)

    estimate = Estimate.of_mean(torch.from_numpy(values), "a mean", warning=None)

    error = values.std(ddof=1) / np.sqrt(57)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.standard_error == pytest.approx(error)
    assert estimate.to_dict() == {
        "value": estimate.value,
        "standard_error": estimate.standard_error,
        "n": 57,
        "interval_95": pytest.approx([values.mean() - 1.96 * error, values.mean() + 1.96 * error]),
        "definition": "a mean; normal interval",
        "warning": None,
    }


def test_estimates_as_text():
    assert f"{Estimate.of_normal(12.3456, 0.321, 57, 'a mean'):.2f}" == "12.35 ± 0.32"
    assert f"{Estimate.of_proportion(8, 10, 'a share'):.1%}" == "80.0% [49.0%, 94.3%]"


def test_estimate_of_large_float32_values_is_exact():
    values = torch.tensor([1e6, 1e6 + 1, 1e6 + 2] * 1000, dtype=torch.float32)
    assert Estimate.of_mean(values, "a mean").value == 1e6 + 1


@pytest.mark.parametrize("values", [torch.ones(1), torch.ones(0), torch.ones(3, 2)])
def test_estimate_needs_two_values(values):
    with pytest.raises(UsageError, match="at least 2 values"):
        Estimate.of_mean(values, "a mean")


def test_intervals_hold_the_values_and_most_of_what_other_data_give():
    mean_std = torch.tensor([0.9, 0.4, 0.14, 0.0])  # one dimension at the edge of being active
    found = []
    for seed in range(40):
        first, second = two_draws(mean_std, n=300, seed=seed)
        prior = 1.2 * torch.randn(300, 4, generator=torch.Generator().manual_seed(1000 + seed))
        found.append(latent_metrics(make_draws(first, second, prior), num_resamples=200))
    for metrics in found:
        for metric in metrics.values():
            assert metric.interval_95[0] <= metric.value <= metric.interval_95[1]
    for key in ("posterior_std", "prior_std", "std_mismatch"):
        values = [metrics[key].value for metrics in found]
        intervals = [metrics[key].interval_95 for metrics in found]
        assert np.mean([low <= np.mean(values) <= high for low, high in intervals]) >= 0.85
        assert 2 * np.std(values) < np.mean([high - low for low, high in intervals]) < 6 * np.std(values)
