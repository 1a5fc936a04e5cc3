"""MAUVE: the frontier of two-bin distributions by hand, and its ends."""

import math

import numpy as np
import pytest

from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.mauve import frontier_area, mauve


def test_equal_distributions_have_an_area_of_1_and_disjoint_ones_almost_none() -> None:
    assert frontier_area(np.array([0.3, 0.7]), np.array([0.3, 0.7])) == pytest.approx(1)
    # KL(q | r) = -log(1 - w) and KL(p | r) = -log w: the frontier is x = (1 - w)^5, y = w^5, whose area is 5! 5! / 10!
    exact = math.factorial(5) ** 2 / math.factorial(10)
    assert frontier_area(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(exact, abs=5e-4)


def test_the_area_of_overlapping_distributions_agrees_with_fine_quadrature() -> None:
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.25, 0.25, 0.5])
    weights = np.linspace(0, 1, 20_001)[:, None]
    mixtures = weights * p + (1 - weights) * q
    x, y = (np.exp(-5 * (part * np.log(part / mixtures)).sum(axis=1)) for part in (q, p))
    # from w = 1, where y = 1, to w = 0, where x = 1; before and after them the frontier is level and upright
    exact = x.min() * 1.0 + float(np.sum((x[:-1] - x[1:]) * (y[:-1] + y[1:]) / 2))
    assert frontier_area(p, q) == pytest.approx(exact, abs=0.01)
    assert frontier_area(q, p) == pytest.approx(frontier_area(p, q))


def test_it_falls_with_the_distance_and_knows_its_own() -> None:
    rng = np.random.default_rng(0)
    real, same = rng.normal(size=(2, 300, 4))
    values = [mauve(same + shift, real, "numbers").value for shift in (0.0, 0.7, 5.0)]
    assert values[0] > 0.9
    assert values[0] > values[1] + 0.1 > values[2] + 0.2
    estimate = mauve(same, real, "numbers")
    assert estimate == mauve(same, real, "numbers"), "the clusters are always the same"
    assert estimate.interval_95[0] <= estimate.value <= estimate.interval_95[1]
    assert "30 clusters" in estimate.definition


def test_too_few_sentences_are_refused() -> None:
    with pytest.raises(UsageError, match="20 sentences of each kind at least, got 19 and 50"):
        mauve(np.ones((19, 2)), np.ones((50, 2)), "numbers")
