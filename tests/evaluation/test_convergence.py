"""R-hat and effective sample sizes on chains whose answer is known."""

import json
import math
import sys

import pytest
import torch
from torch import Tensor

from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.convergence import chain_statistics
from tests.latents.samplers.targets import standard_normal


def autoregressive(num_chains: int, num_draws: int, rho: float, seed: int = 0) -> Tensor:
    """Chains of variance 1 that start in their own law, with autocorrelation `rho^lag`."""
    noise = standard_normal(num_draws, num_chains, seed=seed)
    values = [noise[0]]
    for row in noise[1:]:
        values.append(rho * values[-1] + math.sqrt(1 - rho**2) * row)
    return torch.stack(values, dim=1)


def test_independent_draws_have_an_r_hat_of_one_and_count_fully() -> None:
    statistics = chain_statistics(standard_normal(16, 500), superchains=4)
    assert float(statistics.r_hat) == pytest.approx(1.0, abs=0.003)
    assert statistics.nested_r_hat is not None
    assert float(statistics.nested_r_hat) == pytest.approx(1.0, abs=0.005)
    assert float(statistics.ess_bulk) == pytest.approx(8000, rel=0.1)
    assert float(statistics.ess_tail) == pytest.approx(8000, rel=0.1)
    assert float(statistics.mcse_mean) == pytest.approx(1 / math.sqrt(8000), rel=0.1)
    assert (statistics.num_chains, statistics.num_draws) == (16, 500)


@pytest.mark.parametrize("rho", [0.5, 0.9])
def test_autocorrelated_draws_count_as_theory_says(rho: float) -> None:
    statistics = chain_statistics(autoregressive(256, 1000, rho))
    effective = 256_000 * (1 - rho) / (1 + rho)
    assert float(statistics.ess_bulk) == pytest.approx(effective, rel=0.15)
    assert float(statistics.mcse_mean) == pytest.approx(1 / math.sqrt(effective), rel=0.08)


def test_chains_stuck_in_two_modes_do_not_agree() -> None:
    draws = standard_normal(8, 200)
    draws[4:] += 6
    statistics = chain_statistics(draws, superchains=2)
    assert float(statistics.r_hat) > 1.5
    assert statistics.nested_r_hat is not None
    assert float(statistics.nested_r_hat) > 1.5
    assert float(statistics.ess_bulk) < 32


def test_chains_of_one_mean_but_two_widths_do_not_agree() -> None:
    """R-hat without folding would miss this: half of the chains explore a tenth of the width."""
    draws = standard_normal(8, 200)
    draws[4:] *= 0.1
    assert float(chain_statistics(draws).r_hat) > 1.1


def test_many_short_chains_agree_by_the_nested_r_hat_alone() -> None:
    """A chain of 30 draws knows little; a superchain of 64 chains knows enough."""
    statistics = chain_statistics(autoregressive(256, 30, 0.8), superchains=4)
    assert float(statistics.r_hat) > 1.05
    assert statistics.nested_r_hat is not None
    assert float(statistics.nested_r_hat) < 1.01


def test_each_dimension_is_judged_alone() -> None:
    draws = standard_normal(8, 200, 3)
    draws[4:, :, 1] += 6
    statistics = chain_statistics(draws, superchains=4)
    assert statistics.r_hat.shape == (3,)
    assert int(statistics.r_hat.argmax()) == 1
    torch.testing.assert_close(statistics.r_hat[0], chain_statistics(draws[..., 0]).r_hat)

    written = json.loads(json.dumps(statistics.to_dict(), allow_nan=False))
    assert written["r_hat"]["worst"] == float(statistics.r_hat[1])
    assert written["r_hat"]["median"] < 1.02
    assert written["ess_bulk"]["worst"] == float(statistics.ess_bulk[1])


def test_a_single_quantity_is_reported_as_numbers() -> None:
    written = chain_statistics(standard_normal(4, 50)).to_dict()
    assert written["r_hat"] == pytest.approx(1.0, abs=0.05)
    assert "nested_r_hat" not in written


@pytest.mark.parametrize("shape", [(1, 100), (4, 3), (100,)])
def test_too_few_chains_or_draws(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="at least 2 chains and 4 draws, got "):
        chain_statistics(torch.zeros(shape))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite(value: float) -> None:
    draws = standard_normal(4, 50)
    draws[2, 7] = value
    with pytest.raises(UsageError, match="not finite.*lower step_size"):
        chain_statistics(draws)


def test_chains_that_never_move() -> None:
    draws = standard_normal(4, 50, 3)
    draws[..., 1] = torch.arange(4.0)[:, None]
    with pytest.raises(UsageError, match="1 of 3 quantities never change along any chain"):
        chain_statistics(draws)


@pytest.mark.parametrize("superchains", [0, 1, 3, 16])
def test_superchains_must_be_equal(superchains: int) -> None:
    with pytest.raises(UsageError, match=f"8 chains do not make {superchains} superchains of equal size"):
        chain_statistics(standard_normal(8, 50), superchains=superchains)


def test_without_arviz_stats_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "arviz_stats.base.array", None)
    with pytest.raises(UsageError, match=r"pip install 'latent-ebm-text\[diagnostics\]'"):
        chain_statistics(standard_normal(4, 50))
