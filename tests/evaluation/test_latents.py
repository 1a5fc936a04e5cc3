"""Figures of the latents: active dimensions, spread and energy of posterior against prior."""

import numpy as np
import pytest
import torch

from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.estimates import Estimate
from latent_ebm_text.evaluation.latents import active_units, compare_latents, latent_intervals


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


def test_comparison_by_hand():
    first, second = torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.tensor([[4.0, 1.0], [6.0, 7.0]])
    prior = torch.tensor([[-1.0, 0.0], [1.0, 4.0]])

    report = compare_latents(first, second, prior, torch.tensor([3.0, 5.0]), torch.tensor([0.5, 1.5]))

    posterior_std = np.std([[0, 1], [2, 3], [4, 1], [6, 7]], axis=0, ddof=1)
    prior_std = np.std([[-1, 0], [1, 4]], axis=0, ddof=1)
    assert report.posterior_std == pytest.approx(posterior_std.mean())
    assert report.prior_std == pytest.approx(prior_std.mean())
    assert report.std_mismatch == pytest.approx(np.abs(posterior_std / prior_std - 1).mean())
    assert report.energy_gap == pytest.approx(3.0)
    assert report.n == 2
    assert report.to_dict()["energy_gap"] == report.energy_gap


def test_mismatches_of_opposite_sign_do_not_cancel():
    posterior, prior = two_draws(torch.zeros(2), n=500)
    posterior = posterior * torch.tensor([0.5, 1.5])
    report = compare_latents(posterior, posterior, prior, torch.zeros(500), torch.zeros(500))
    assert report.posterior_std == pytest.approx(report.prior_std, rel=0.15)
    assert report.std_mismatch == pytest.approx(0.5, abs=0.15)


def test_estimate_agrees_with_numpy():
    values = np.random.default_rng(0).normal(30, 4, size=57)

    estimate = Estimate.of_mean(torch.from_numpy(values))

    error = values.std(ddof=1) / np.sqrt(57)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.standard_error == pytest.approx(error)
    assert estimate.to_dict() == {
        "value": estimate.value,
        "standard_error": estimate.standard_error,
        "n": 57,
        "interval_95": pytest.approx([values.mean() - 1.96 * error, values.mean() + 1.96 * error]),
    }
    assert str(Estimate(12.3456, 0.321, 57)) == "12.35 ± 0.32 (n = 57)"


def test_estimate_of_large_float32_values_is_exact():
    values = torch.tensor([1e6, 1e6 + 1, 1e6 + 2] * 1000, dtype=torch.float32)
    assert Estimate.of_mean(values).value == 1e6 + 1


@pytest.mark.parametrize("values", [torch.ones(1), torch.ones(0), torch.ones(3, 2)])
def test_estimate_needs_two_values(values):
    with pytest.raises(UsageError, match="at least 2 values"):
        Estimate.of_mean(values)


def test_intervals_hold_the_figures_and_most_of_what_other_data_give():
    mean_std = torch.tensor([0.9, 0.4, 0.14, 0.0])  # one dimension at the edge of being active
    found = []
    for seed in range(40):
        first, second = two_draws(mean_std, n=300, seed=seed)
        prior = 1.2 * torch.randn(300, 4, generator=torch.Generator().manual_seed(1000 + seed))
        report = compare_latents(first, second, prior, torch.zeros(300), torch.zeros(300))
        found.append((report, latent_intervals(first, second, prior, num_resamples=200)))
    for report, intervals in found:
        for name, (low, high) in intervals.items():
            assert low <= getattr(report, name) <= high
    mean_mismatch = np.mean([report.std_mismatch for report, _ in found])
    covered = [low <= mean_mismatch <= high for _, intervals in found for low, high in [intervals["std_mismatch"]]]
    assert np.mean(covered) >= 0.85
    widths = [high - low for _, intervals in found for low, high in [intervals["std_mismatch"]]]
    spread = np.std([report.std_mismatch for report, _ in found])
    assert 2 * spread < np.mean(widths) < 6 * spread
