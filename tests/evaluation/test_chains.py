"""The chain report on Gaussian targets, where the law of every Langevin chain is known."""

import json
import math
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.chains import ChainReport, run_chain_report
from latent_ebm_text.latents.samplers import LangevinSampler
from tests.latents.samplers.targets import Gaussian, TwoModes, seeded, standard_normal

DIM = 4
STANDARD = Gaussian(torch.zeros(DIM).double(), torch.eye(DIM).double())
#: Ten steps of 0.5 carry the mean of a chain by 0.875^10 = 0.26 of its distance.
SAMPLER = LangevinSampler(10, 0.5)
#: Standard deviation of that chain's own stationary law, which is a little too wide.
STATIONARY_STD = 1 / math.sqrt(1 - 0.5**2 / 4)


def report(initial: Tensor, sampler: LangevinSampler = SAMPLER, seed: int = 1, **settings: Any) -> ChainReport:
    settings = {"superchains": 16, "multiples": (1, 2, 5, 30), **settings}
    return run_chain_report(STANDARD, sampler, initial, generator=seeded(seed), **settings)


def far_starts() -> Tensor:
    """512 chains, by 32 from one point, about 4 from the centre in each dimension."""
    return (4 + STATIONARY_STD * standard_normal(16, DIM)).repeat_interleave(32, dim=0)


@pytest.fixture(scope="module")
def far() -> ChainReport:
    return report(far_starts())


@pytest.fixture(scope="module")
def settled() -> ChainReport:
    """512 chains that start in the law that they keep."""
    return report(STATIONARY_STD * standard_normal(512, DIM))


def expected_energy(distance: float) -> float:
    """Mean energy in nats of chains around a centre that lies `distance` off in each dimension."""
    return DIM / 2 * (STATIONARY_STD**2 + distance**2)


def test_a_short_chain_from_afar_is_called_drifting_and_by_how_much(far: ChainReport) -> None:
    assert far.drift == "drifting"
    first, end = far.stages[0], far.energy
    left = 4 * 0.875**10
    assert abs(first.energy.value - expected_energy(left)) < 4 * first.energy.standard_error
    assert abs(first.difference.value - DIM / 2 * left**2) < 4 * first.difference.standard_error
    assert far.verdict.startswith(
        f"Drifting: the mean energy falls from {first.energy.value:.2f} ± {first.energy.standard_error:.2f} nats at "
        f"1x (10 steps) to {end.value:.2f} ± {end.standard_error:.2f} in the long run (16x to 30x), by "
        f"{first.difference.value:.2f} nats or {first.difference.value / far.energy_std:.2f} standard deviations"
    )
    assert "is a short-run chain that has not converged. It has converged from 2x on." in far.verdict


def test_the_long_run_from_afar_has_arrived_and_mixed(far: ChainReport) -> None:
    assert far.late_drift in ("stationary", "undecided")
    assert abs(far.energy.value - expected_energy(0.0)) < 4 * far.energy.standard_error
    assert far.energy_std == pytest.approx(math.sqrt(DIM / 2) * STATIONARY_STD**2, rel=0.03)  # chi-squared
    assert float(far.latent_statistics.r_hat.max()) > 1.02  # 15 draws are too few for a chain alone
    assert far.mixing == "mixed"
    assert far.verdict.endswith(f": by the nested R-hat of {far.r_hat:.3f}, below 1.01, the superchains agree.")


def test_chains_that_start_in_their_own_law_are_called_stationary(settled: ChainReport) -> None:
    assert settled.drift == "stationary"
    assert settled.arrival == 1
    assert settled.verdict.startswith("Stationary: the mean energy is ")
    assert "is not significant, and its 90 % interval lies within 0.2 standard deviations" in settled.verdict
    for stage in settled.stages:
        assert abs(stage.squared_norm.value - STATIONARY_STD**2) < 4 * stage.squared_norm.standard_error


def test_rising_energies_are_said_to_rise() -> None:
    found = report(torch.zeros(512, DIM).double(), LangevinSampler(2, 0.3))
    assert found.stages[0].energy.value < found.energy.value
    assert found.verdict.startswith("Drifting: the mean energy rises from ")


def test_a_significant_but_small_difference_is_called_small() -> None:
    """Starts 5 % too narrow: after one step the energy is 0.11 of its standard deviations too low."""
    sampler = LangevinSampler(1, 0.5)
    found = report(0.95 * STATIONARY_STD * standard_normal(3200, DIM), sampler, multiples=(1, 30), superchains=50)
    assert found.drift == "small drift"
    assert found.verdict.startswith("Small drift: ")
    assert "significant, but small (below 0.2)" in found.verdict


def test_few_chains_cannot_decide() -> None:
    found = report(STATIONARY_STD * standard_normal(16, DIM), superchains=4)
    assert found.drift == "undecided"
    assert "more than a small difference (0.2): run more chains." in found.verdict


def test_a_long_run_that_still_drifts_is_not_taken_for_the_target() -> None:
    found = report(50 + standard_normal(64, DIM), LangevinSampler(1, 0.2), multiples=(1, 10))
    assert found.late_drift == found.drift == "drifting"
    assert found.arrival is None
    assert "Longer chains have not converged either." in found.verdict
    assert "The long run itself still drifts, by -" in found.verdict


def test_chains_in_two_modes_have_not_mixed() -> None:
    modes = torch.tensor([-3.0, 3.0]).repeat_interleave(32)[:, None]
    found = run_chain_report(TwoModes(), LangevinSampler(10, 0.2), modes, superchains=2, generator=seeded(1))
    assert float(found.latent_statistics.r_hat) > 1.5
    assert found.r_hat > 1.5
    assert found.mixing == "not mixed"
    assert found.verdict.endswith("1.05 or more, the superchains have not mixed and remember where they started.")


def test_superchains_of_mixed_starts_cannot_hide_that_no_chain_mixes() -> None:
    """Each superchain holds chains in both modes, so that superchains agree; R-hat itself must judge."""
    modes = torch.tensor([-3.0, 3.0]).repeat(32)[:, None]
    found = run_chain_report(TwoModes(), LangevinSampler(10, 0.2), modes, superchains=2, generator=seeded(1))
    assert found.latent_statistics.nested_r_hat is not None
    assert float(found.latent_statistics.nested_r_hat) < 1.01
    assert found.mixing == "not mixed"
    assert "or the 50 draws of a chain are too few to tell" in found.verdict


def test_slow_chains_have_nearly_mixed() -> None:
    """One step of 0.5 forgets an eighth: an autocorrelation time of 15, of 500 draws, is an R-hat of about 1.03."""
    found = report(STATIONARY_STD * standard_normal(32, DIM), LangevinSampler(1, 0.5), multiples=(1, 1000))
    assert 1.01 < found.r_hat < 1.05
    assert found.mixing == "nearly mixed"
    assert found.verdict.endswith(
        f"by the R-hat of {found.r_hat:.3f}, not below 1.01 but below 1.05, the chains nearly agree."
    )


def test_repetitions_continue_the_chain(far: ChainReport) -> None:
    latents, generator = far_starts(), seeded(1)
    for _ in range(2):
        latents = SAMPLER.sample(latents, STANDARD, generator=generator).latents
    torch.testing.assert_close(far.latents[:, 1], latents)
    torch.testing.assert_close(far.energies[:, 1], -STANDARD(latents))
    torch.testing.assert_close(far.trace[19], far.energies[:, 1])
    assert far.trace.shape == (300, 512)
    assert [stage.num_steps for stage in far.stages] == [10, 20, 50, 300]
    assert float(far.energies[:, 1].mean()) == pytest.approx(far.stages[1].energy.value)


def test_the_same_chains_are_decoded_at_every_multiple() -> None:
    seen = []

    def decode(latents: Tensor) -> list[str]:
        seen.append(latents)
        return [f"sentence of {row[0]:.3f}" for row in latents]

    found = report(standard_normal(32, DIM), multiples=(8, 1, 3), num_texts=3, decode=decode)
    assert [stage.multiple for stage in found.stages] == [1, 3, 8]
    chosen = [0, 15, 31]  # spread over the superchains
    for latents, stage in zip(seen, found.stages, strict=True):
        torch.testing.assert_close(latents, found.latents[chosen, stage.multiple - 1])
        assert stage.texts == tuple(f"sentence of {row[0]:.3f}" for row in latents)
    assert found.to_markdown().count("sentence of") == 9


def test_superchains_are_the_independent_units() -> None:
    """Of 64 chains that do not leave their four starts, four values are independent."""
    starts = torch.tensor([1.0, 2.0, 3.0, 4.0]).double().repeat_interleave(16)[:, None].expand(64, DIM)
    found = report(starts, LangevinSampler(1, 1e-4), superchains=4)
    energies = torch.tensor([DIM / 2 * start**2 for start in (1.0, 2.0, 3.0, 4.0)])
    assert found.stages[0].energy.n == 4
    assert found.stages[0].energy.value == pytest.approx(float(energies.mean()), rel=1e-3)
    assert found.stages[0].energy.standard_error == pytest.approx(float(energies.std()) / 2, rel=1e-3)


def test_the_report_as_json_and_as_markdown(far: ChainReport) -> None:
    written = json.loads(json.dumps(far.to_dict(), allow_nan=False))
    assert written["verdict"] == far.verdict
    assert written["sampler"] == SAMPLER.to_dict()
    assert [stage["multiple"] for stage in written["stages"]] == [1, 2, 5, 30]
    assert written["stages"][0]["energy"]["n"] == 16
    assert written["long_run"]["energy_statistics"]["num_draws"] == 15
    assert written["long_run"]["latent_statistics"]["r_hat"]["worst"] == float(far.latent_statistics.r_hat.max())

    text = far.to_markdown()
    assert far.verdict in text
    first = far.stages[0]
    assert f"| 1x | 10 | {first.energy.value:.2f} ± {first.energy.standard_error:.2f} |" in text
    assert "512 chains in 16 superchains" in text


def test_progress_sees_every_repetition() -> None:
    seen = []
    report(
        standard_normal(32, DIM), multiples=(8,), progress=lambda items: (seen.append(item) or item for item in items)
    )
    assert seen == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("initial", "settings", "message"),
    [
        (torch.zeros(1, DIM), {}, r"initial must have shape \(num_chains >= 2, latent_dim\), got \(1, 4\)"),
        (torch.zeros(8), {}, r"initial must have shape .* got \(8,\)"),
        (torch.full((32, DIM), math.nan), {}, "initial contains values that are not finite"),
        (torch.zeros(32, DIM), {"superchains": 5}, "32 chains do not make 5 superchains of equal size"),
        (torch.zeros(32, DIM), {"multiples": (1, 7)}, r"the largest 8 or more, got \[1, 7\]"),
        (torch.zeros(32, DIM), {"multiples": (0, 10)}, r"multiples must be 1 or more, .* got \[0, 10\]"),
        (torch.zeros(32, DIM), {"multiples": ()}, "multiples must be 1 or more"),
        (torch.zeros(32, DIM), {"num_texts": 0}, "num_texts must be 1 or more, got 0"),
    ],
)
def test_refused_arguments(initial: Tensor, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        report(initial, **settings)


def test_without_arviz_stats_no_chain_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "arviz_stats.base.array", None)
    monkeypatch.setattr(LangevinSampler, "sample", None)
    with pytest.raises(UsageError, match=r"pip install 'latent-ebm-text\[diagnostics\]'"):
        report(standard_normal(32, DIM))
