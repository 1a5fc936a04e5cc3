"""Samplers side by side on Gaussian targets."""

import json
import math
import sys
from typing import Any

import pytest
import torch
from sampler_comparison import SamplerComparison, compare_samplers

from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents.samplers import HMCSampler, LangevinSampler, ParallelTemperingSampler
from tests.latents.samplers.targets import Gaussian, seeded, standard_normal

#: One wide dimension and one narrow one, where Langevin steps that suit the narrow one are slow.
TARGET = Gaussian(torch.zeros(2).double(), torch.diag(torch.tensor([4.0, 1.0])).double())
SAMPLERS = {
    "slow": LangevinSampler(1, 0.5),
    "fast": LangevinSampler(8, 0.5),
    "HMC": HMCSampler(2, 0.5, num_leapfrog_steps=4),
    "tempering": ParallelTemperingSampler(3, 0.5, num_temperatures=2),
}


@pytest.fixture(scope="module")
def comparison() -> SamplerComparison:
    return compare_samplers(TARGET, SAMPLERS, 2 * standard_normal(64, 2), repetitions=200, generator=seeded(1))


def test_rows_stand_in_the_order_given(comparison: SamplerComparison) -> None:
    assert [row.name for row in comparison.rows] == list(SAMPLERS)
    assert [row.num_steps for row in comparison.rows] == [1, 8, 2, 3]
    assert (comparison.num_chains, comparison.num_draws) == (64, 100)


@pytest.mark.parametrize(("row", "name"), list(enumerate(["slow", "fast"])))
def test_the_worst_dimension_is_the_wide_one_with_its_autocorrelation(
    comparison: SamplerComparison, row: int, name: str
) -> None:
    """A Langevin chain of `K` steps keeps `(1 - s^2 / 2V)^K` of a dimension of variance `V`."""
    rho = (1 - 0.5**2 / 8) ** SAMPLERS[name].num_steps
    expected = 64 * 100 * (1 - rho) / (1 + rho)
    ess = comparison.rows[row].ess_worst_dimension
    assert ess.n == 64
    assert abs(ess.value - expected) < 0.3 * expected
    assert 0 < ess.standard_error < 0.5 * expected


def test_longer_repetitions_mix_better_and_cost_more(comparison: SamplerComparison) -> None:
    slow, fast, *_ = comparison.rows
    assert fast.ess > 3 * slow.ess
    assert fast.r_hat < slow.r_hat
    assert fast.ess == min(fast.ess_energy.value, fast.ess_worst_dimension.value)
    assert fast.ess_per_second == pytest.approx(fast.ess / fast.seconds)
    assert fast.ess_per_thousand_gradients == pytest.approx(1000 * fast.ess / (64 * 1600))


def test_gradients_are_counted_for_every_kind_of_sampler(comparison: SamplerComparison) -> None:
    """HMC and tempering evaluate one more at the start of each repetition; tempering two temperatures."""
    per_repetition = [row.gradients_per_chain / 200 for row in comparison.rows]
    assert per_repetition[:3] == [1, 8, 2 * 4 + 1]
    assert 3 * 2 <= per_repetition[3] <= (3 + 1) * 2


def test_a_target_without_a_closed_form_score_is_counted_too() -> None:
    found = compare_samplers(
        lambda latents: -0.5 * latents.square().sum(dim=-1),
        {"langevin": LangevinSampler(3, 0.5)},
        standard_normal(8, 2),
        repetitions=8,
        generator=seeded(1),
    )
    assert found.rows[0].gradients_per_chain == 24


def test_the_standard_error_is_the_spread_over_other_chains() -> None:
    """Twelve runs with other chains spread as the jackknife of one run says, within a factor of two."""
    rows = []
    for seed in range(12):
        init = standard_normal(64, 2, seed=seed) * torch.tensor([2.0, 1.0])
        found = compare_samplers(
            TARGET, {"fast": SAMPLERS["fast"]}, init, repetitions=60, generator=seeded(100 + seed)
        )
        rows.append(found.rows[0].ess_energy)
    spread = float(torch.tensor([row.value for row in rows]).std())
    typical = float(torch.tensor([row.standard_error for row in rows]).median())
    assert 0.5 < typical / spread < 2


def test_json_and_markdown(comparison: SamplerComparison) -> None:
    written = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert [row["name"] for row in written["samplers"]] == list(SAMPLERS)
    assert written["samplers"][1]["ess_energy"]["value"] == comparison.rows[1].ess_energy.value

    fast, text = comparison.rows[1], comparison.to_markdown()
    assert f"| fast | 8 | {fast.ess_energy.value:.0f} ± {fast.ess_energy.standard_error:.0f} |" in text
    assert "64 chains of 100 draws" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samplers": {}}, "there is no sampler to compare"),
        ({"repetitions": 7}, "repetitions must be 8 or more, got 7"),
        ({"initial": torch.zeros(1, 2)}, "num_chains >= 2"),
        ({"initial": torch.full((4, 2), math.inf)}, "initial contains values that are not finite"),
    ],
)
def test_refused_arguments(arguments: dict[str, Any], message: str) -> None:
    arguments = {"samplers": SAMPLERS, "initial": standard_normal(4, 2), **arguments}
    with pytest.raises(UsageError, match=message):
        compare_samplers(TARGET, **arguments)


def test_without_arviz_stats_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "arviz_stats.base.array", None)
    with pytest.raises(UsageError, match=r"pip install 'latent-ebm-text\[diagnostics\]'"):
        compare_samplers(TARGET, SAMPLERS, standard_normal(4, 2))
