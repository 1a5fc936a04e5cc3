"""Langevin dynamics against exact distributions, in closed form for the discretised chain or by quadrature."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from latent_ebm_text.errors import DivergenceError, UsageError
from latent_ebm_text.latents.density import ScoredLogDensity
from latent_ebm_text.latents.prior import EnergyPrior
from latent_ebm_text.latents.samplers import LangevinSampler, sampler_from_dict
from tests.latents.samplers.targets import Gaussian, assert_moments, seeded, standard_normal


@pytest.fixture(scope="module")
def gaussian() -> Gaussian:
    """Five correlated dimensions with variances from 0.5 to 3 along the principal axes."""
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, generator=seeded(5), dtype=torch.float64))
    covariance = rotation @ torch.diag(torch.tensor([0.5, 1.0, 1.5, 2.0, 3.0], dtype=torch.float64)) @ rotation.T
    return Gaussian(torch.tensor([1.0, -2.0, 0.0, 0.5, 3.0], dtype=torch.float64), covariance)


# --- settings ---


@pytest.mark.parametrize("num_steps", [0, -1, 2.0, True, "3", None])
def test_number_of_steps_must_be_a_positive_integer(num_steps: Any) -> None:
    with pytest.raises(UsageError, match=f"num_steps of a Langevin sampler must be a positive integer.*{num_steps!r}"):
        LangevinSampler(num_steps)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step_size": 0}, "step_size must be positive and finite at every step, got 0.0"),
        ({"step_size": -0.1}, "step_size must be positive"),
        ({"step_size": math.nan}, "step_size must be positive"),
        ({"step_size": []}, "step_size is an empty list"),
        ({"step_size": {"start": 0.1, "end": 0.2, "shape": "cosine"}}, "cosine"),
        ({"temperature": -0.5}, "temperature must be zero or positive and finite at every step, got -0.5"),
        ({"temperature": [1.0, math.inf]}, "temperature must be zero or positive"),
        ({"integrator": "rk4"}, "integrator of a Langevin sampler must be euler or leimkuhler_matthews, got 'rk4'"),
    ],
)
def test_refused_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LangevinSampler(3, **settings)


@pytest.mark.parametrize(
    "sampler",
    [
        LangevinSampler(60, 0.4),
        LangevinSampler(4, [0.4, 0.2], 0.0),
        LangevinSampler(4, {"start": 0.4, "end": 0.1, "shape": "geometric"}, {"start": 1.0, "end": 0.0}),
        LangevinSampler(4, 0.4, max_score_norm=2.0, integrator="leimkuhler_matthews"),
    ],
)
def test_settings_survive_json(sampler: LangevinSampler) -> None:
    settings = json.loads(json.dumps(sampler.to_dict()))
    assert settings["name"] == "langevin"
    again = sampler_from_dict(settings)
    assert again == sampler
    init, target = standard_normal(3, 2), Gaussian(torch.zeros(2).double(), torch.eye(2).double())
    assert torch.equal(
        again.sample(init, target, generator=seeded(1)).latents,
        sampler.sample(init, target, generator=seeded(1)).latents,
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"name": "gibbs", "num_steps": 3},
            "unknown sampler 'gibbs'; known samplers: hmc, langevin, mala, parallel_tempering",
        ),
        ({"num_steps": 3}, "unknown sampler None"),
        (
            {"name": "langevin", "num_steps": 3, "stepsize": 0.1},
            "'langevin' has no setting 'stepsize'; its settings are num_steps, step_size, temperature",
        ),
        ({"name": "langevin", "num_steps": 0}, "num_steps of a Langevin sampler must be a positive integer"),
    ],
)
def test_sampler_from_dict_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sampler_from_dict(settings)


def test_sampler_from_dict_names_a_missing_setting() -> None:
    with pytest.raises(UsageError, match="num_steps"):
        sampler_from_dict({"name": "langevin"})


def test_sampler_from_dict_leaves_its_argument_alone() -> None:
    settings = {"name": "langevin", "num_steps": 3}
    sampler_from_dict(settings)
    assert settings == {"name": "langevin", "num_steps": 3}


# --- the step ---


def test_temperature_zero_is_gradient_ascent(gaussian: Gaussian) -> None:
    init = standard_normal(4, 5)
    expected = init
    for step_size in (0.5, 0.3, 0.3):
        expected = expected + step_size**2 / 2 * gaussian.score(expected)
    output = LangevinSampler(3, [0.5, 0.3], temperature=0.0).sample(init, gaussian)
    torch.testing.assert_close(output.latents, expected, rtol=0, atol=1e-14)


def test_without_a_gradient_the_variance_grows_by_s_squared_each_step() -> None:
    init = torch.zeros(100_000, 2, dtype=torch.float64)
    draws = LangevinSampler(4, [0.5, 0.2]).sample(init, lambda z: 0.0 * z.sum(dim=-1), generator=seeded(2)).latents
    variance = 0.5**2 + 3 * 0.2**2
    assert_moments(draws, torch.zeros(2).double(), variance * torch.eye(2).double())


def test_init_is_not_modified_and_the_result_is_detached(gaussian: Gaussian) -> None:
    init = standard_normal(4, 5).requires_grad_()
    before = init.detach().clone()
    latents = LangevinSampler(3).sample(init, gaussian).latents
    assert torch.equal(init, before)
    assert not torch.equal(latents, before)
    assert not latents.requires_grad


def test_a_generator_fixes_the_chain_and_spares_the_global_one(gaussian: Gaussian) -> None:
    init, sampler = standard_normal(4, 5), LangevinSampler(3)
    state = torch.get_rng_state()
    first, second, other = (sampler.sample(init, gaussian, generator=seeded(seed)).latents for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    torch.manual_seed(3)
    without = sampler.sample(init, gaussian).latents
    torch.manual_seed(3)
    assert torch.equal(without, sampler.sample(init, gaussian).latents)


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("return_trace", [False, True])
def test_closed_form_and_autograd_give_the_same_chain(context: Callable[[], Any], return_trace: bool) -> None:
    torch.manual_seed(0)
    prior = EnergyPrior(3, 8).double()
    assert isinstance(prior, ScoredLogDensity)
    assert not isinstance(prior.forward, ScoredLogDensity)
    with context():
        outputs = [
            LangevinSampler(5, 0.4).sample(
                standard_normal(6, 3), target, generator=seeded(1), return_trace=return_trace
            )
            for target in (prior, prior.forward)
        ]
    closed, plain = outputs
    torch.testing.assert_close(closed.latents, plain.latents, rtol=0, atol=1e-12)
    if return_trace:
        torch.testing.assert_close(closed.trace.energies, plain.trace.energies, rtol=0, atol=1e-12)
        torch.testing.assert_close(closed.trace.score_norms, plain.trace.score_norms, rtol=0, atol=1e-12)
    assert all(weight.grad is None for weight in prior.parameters())


# --- the trace ---


def test_trace_tells_what_happened_at_every_step(gaussian: Gaussian) -> None:
    init, schedule = standard_normal(6, 5), [0.5, 0.4, 0.3, 0.2]
    output = LangevinSampler(4, schedule).sample(init, gaussian, generator=seeded(1), return_trace=True)
    trace = output.trace
    assert (trace.energies.shape, trace.score_norms.shape, trace.displacements.shape) == ((5, 6), (4, 6), (4, 6))

    path = [init]  # of ever longer chains: the same noise, so the same beginning
    for steps in range(1, 5):
        shorter = LangevinSampler(steps, schedule).sample(init, gaussian, generator=seeded(1))
        assert shorter.trace is None
        path.append(shorter.latents)
    assert torch.equal(path[-1], output.latents), "asking for a trace changes nothing"
    torch.testing.assert_close(trace.energies, torch.stack([-gaussian(z) for z in path]))
    torch.testing.assert_close(trace.score_norms, torch.stack([gaussian.score(z).norm(dim=-1) for z in path[:-1]]))
    moved = torch.stack([(b - a).norm(dim=-1) for a, b in zip(path[:-1], path[1:], strict=True)])
    torch.testing.assert_close(trace.displacements, moved)


# --- laws ---


def stationary(target: Gaussian, step_size: float, temperature: float = 1.0) -> Tensor:
    """Exact covariance of the chain on N(., Sigma): T Sigma (I - eps / 2 Sigma^-1)^-1 with eps = s^2 / 2.

    Along an axis of variance `v`, `x <- (1 - eps / v) x + sqrt(2 eps T) n` has the variance `T v / (1 - eps / (2 v))`.
    """
    identity = torch.eye(len(target.covariance), dtype=torch.float64)
    return temperature * torch.linalg.inv(target.precision @ (identity - step_size**2 / 4 * target.precision))


@pytest.mark.parametrize("temperature", [1.0, 0.4, 2.0])
def test_stationary_law_on_a_correlated_gaussian(gaussian: Gaussian, temperature: float) -> None:
    init = standard_normal(30_000, 5)
    sampler = LangevinSampler(150, 0.7, temperature)  # the slowest axis forgets its start by exp(-12)
    draws = sampler.sample(init, gaussian, generator=seeded(7)).latents
    assert_moments(draws, gaussian.mean, stationary(gaussian, 0.7, temperature))
    with pytest.raises(AssertionError):  # sharp enough to see the discretisation
        assert_moments(draws, gaussian.mean, temperature * gaussian.covariance)


def test_discretisation_error_is_of_order_s_squared() -> None:
    target, num_draws = Gaussian(torch.zeros(1).double(), torch.eye(1).double()), 500_000
    errors = {}
    for step_size, num_steps in ((0.8, 20), (0.4, 60)):
        init = standard_normal(num_draws, 1)
        draws = LangevinSampler(num_steps, step_size).sample(init, target, generator=seeded(3)).latents
        errors[step_size] = draws.var().item() - 1.0
        standard_error = math.sqrt(2 / num_draws) * draws.var().item()  # 0.002
        exact = stationary(target, step_size).item() - 1.0  # 0.190 and 0.042
        assert errors[step_size] == pytest.approx(exact, abs=4 * standard_error)
    ratio = errors[0.8] / errors[0.4]  # 4 up to order s^2, exactly 4.57; of order s it would be 2, of order s^3, 8
    assert 3.5 < ratio < 5.5


RAMP = {"start": 1.2, "end": 0.3, "shape": "geometric"}


@pytest.mark.parametrize(
    ("sampler", "step_sizes", "temperatures"),
    [
        (LangevinSampler(3, 0.4), [0.4] * 3, [1.0] * 3),
        (LangevinSampler(10, 0.4, 0.5), [0.4] * 10, [0.5] * 10),
        (LangevinSampler(3, RAMP, {"start": 2, "end": 0}), [1.2, 0.6, 0.3], [2.0, 1.0, 0.0]),
        (LangevinSampler(4, [1.0, 0.8, 0.5], [0.0, 1.0]), [1.0, 0.8, 0.5, 0.5], [0.0, 1.0, 1.0, 1.0]),
    ],
)
def test_short_run_law_after_k_steps_is_exact(
    sampler: LangevinSampler, step_sizes: list[float], temperatures: list[float]
) -> None:
    variances = torch.tensor([0.5, 2.0], dtype=torch.float64)
    target = Gaussian(torch.tensor([3.0, -1.0], dtype=torch.float64), torch.diag(variances))
    mean, variance = torch.zeros(2).double(), torch.ones(2).double()
    for s, t in zip(step_sizes, temperatures, strict=True):
        keep = 1 - s**2 / 2 / variances
        mean, variance = target.mean + keep * (mean - target.mean), keep**2 * variance + t * s**2
    draws = sampler.sample(standard_normal(50_000, 2), target, generator=seeded(4)).latents
    assert_moments(draws, mean, torch.diag(variance))


def test_skewed_two_mode_target_agrees_with_quadrature() -> None:
    def log_density(latents: Tensor) -> Tensor:  # 0.7 N(-1, 0.6^2) + 0.3 N(1.2, 1)
        z = latents.squeeze(-1)
        narrow = math.log(0.7 / 0.6) - 0.5 * ((z + 1.0) / 0.6) ** 2
        return torch.logaddexp(narrow, math.log(0.3) - 0.5 * (z - 1.2) ** 2)

    grid = torch.linspace(-8, 8, 8_001, dtype=torch.float64)
    density = log_density(grid[:, None]).exp()
    density /= torch.trapezoid(density, grid)
    right = (grid > 0.2).double()
    expected = {
        "mean": torch.trapezoid(density * grid, grid),
        "square": torch.trapezoid(density * grid**2, grid),
        "cube": torch.trapezoid(density * grid**3, grid),
        "right": torch.trapezoid(density * right, grid),
    }
    assert 0.2 < expected["right"] < 0.4
    assert expected["mean"] < -0.2, "not symmetric: a sign error shows"

    # Time 9 of the diffusion, started at N(0, I); the discretisation moves no moment by more than s^2 = 0.0225.
    draws = LangevinSampler(800, 0.15).sample(standard_normal(20_000, 1), log_density, generator=seeded(6)).latents
    z = draws.squeeze(-1)
    for name, values in {"mean": z, "square": z**2, "cube": z**3, "right": (z > 0.2).double()}.items():
        standard_error = values.std() / math.sqrt(len(z))
        assert abs(values.mean() - expected[name]) < 4 * standard_error + 0.15**2, name


# --- chains that blow up ---


class BlowsUp:
    """A flat density whose score is infinite for the first `num_chains` rows from the `step`-th call on."""

    def __init__(self, step: int, num_chains: int) -> None:
        self.step, self.num_chains, self.calls = step, num_chains, 0

    def __call__(self, latents: Tensor) -> Tensor:
        return 0.0 * latents.sum(dim=-1)

    def score(self, latents: Tensor) -> Tensor:
        self.calls += 1
        score = torch.zeros_like(latents)
        if self.calls >= self.step:
            score[: self.num_chains, 0] = math.inf
        return score

    def value_and_score(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        return self(latents), self.score(latents)


@pytest.mark.parametrize(("step", "num_chains"), [(1, 6), (4, 2), (7, 1)])
@pytest.mark.parametrize("return_trace", [False, True])
def test_divergence_names_step_chains_and_step_size(step: int, num_chains: int, return_trace: bool) -> None:
    message = rf"not finite from step {step} of 7 on \({num_chains} of 6 chains\): lower step_size \(now 0.3\)"
    with pytest.raises(DivergenceError, match=message):
        LangevinSampler(7, 0.3).sample(torch.zeros(6, 2), BlowsUp(step, num_chains), return_trace=return_trace)


def test_chains_that_stay_finite_are_returned() -> None:
    output = LangevinSampler(7, 0.3).sample(torch.zeros(6, 2), BlowsUp(8, 6))
    assert output.latents.isfinite().all()


def test_a_step_too_large_for_the_target_diverges_and_says_so() -> None:
    steep = Gaussian(torch.zeros(2), 1e-3 * torch.eye(2))  # stable below s = 2 sqrt(1e-3)
    with pytest.raises(DivergenceError, match=r"\(4 of 4 chains\): lower step_size \(now 0.5\)"):
        LangevinSampler(100, 0.5).sample(torch.ones(4, 2), steep)


def test_positions_whose_energy_would_overflow_have_diverged() -> None:
    class Pushes(BlowsUp):
        def score(self, latents: Tensor) -> Tensor:
            return super().score(latents).nan_to_num(posinf=1e21)

    with pytest.raises(DivergenceError, match=r"not finite from step 4 of 7 on \(2 of 6 chains\)") as caught:
        LangevinSampler(7, 0.3).sample(torch.zeros(6, 2), Pushes(4, 2))
    assert caught.value.rows == [0, 1]


# --- the integrator of Leimkuhler and Matthews ---


def averaged(num_steps: int, step_size: float, **settings: Any) -> LangevinSampler:
    return LangevinSampler(num_steps, step_size, integrator="leimkuhler_matthews", **settings)


def test_leimkuhler_matthews_draws_from_a_gaussian_without_error_at_any_step_size(gaussian: Gaussian) -> None:
    """At a step of 1.2 the Euler chain is 3.6 times too wide along the narrowest axis."""
    init = standard_normal(40_000, 5)
    draws = averaged(60, 1.2).sample(init, gaussian, generator=seeded(1)).latents
    assert_moments(draws, gaussian.mean, gaussian.covariance)
    euler = LangevinSampler(60, 1.2).sample(init, gaussian, generator=seeded(1)).latents
    assert euler.T.cov().trace() > 1.3 * gaussian.covariance.trace()


@pytest.mark.parametrize("step_size", [0.3, 0.7])
def test_one_leimkuhler_matthews_step_from_the_target_law(step_size: float) -> None:
    """A half step widens a Gaussian of precision p by the factor 1 + (s^2 p)^2 / 16, in closed form."""
    variances = torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)
    target = Gaussian(torch.zeros(3).double(), torch.diag(variances))
    init = standard_normal(200_000, 3) * variances.sqrt()
    draws = averaged(1, step_size).sample(init, target, generator=seeded(1)).latents
    widened = variances * (1 + (step_size**2 / variances) ** 2 / 16)
    assert_moments(draws, torch.zeros(3).double(), torch.diag(widened))


def test_persistent_leimkuhler_matthews_chains_keep_the_target_law() -> None:
    """Visits of three steps, as training makes them: within 1 % of the variance, where Euler's is 44 % too wide."""
    target = Gaussian(torch.zeros(1).double(), torch.full((1, 1), 0.1, dtype=torch.float64))
    latents, euler = standard_normal(100_000, 1) * math.sqrt(0.1), standard_normal(100_000, 1)
    generator = seeded(1)
    for _ in range(15):
        latents = averaged(3, 0.35).sample(latents, target, generator=generator).latents
        euler = LangevinSampler(3, 0.35).sample(euler, target, generator=generator).latents
    assert float(latents.var()) == pytest.approx(0.1, rel=0.02)
    assert float(euler.var()) == pytest.approx(0.1 / (1 - 0.35**2 / 0.4), rel=0.02)


def test_leimkuhler_matthews_without_noise_is_gradient_ascent_after_a_half_step(gaussian: Gaussian) -> None:
    init = standard_normal(4, 5)
    expected = init + 0.25 * 0.5**2 * gaussian.score(init)
    expected = expected + 0.5 * 0.5**2 * gaussian.score(expected)
    output = averaged(2, 0.5, temperature=0.0).sample(init, gaussian)
    torch.testing.assert_close(output.latents, expected)


def test_leimkuhler_matthews_is_reproducible_and_traced(gaussian: Gaussian) -> None:
    init = standard_normal(4, 5)
    plain = averaged(7, 0.5).sample(init, gaussian, generator=seeded(3))
    traced = averaged(7, 0.5).sample(init, gaussian, generator=seeded(3), return_trace=True)
    assert traced.trace is not None
    assert torch.equal(plain.latents, traced.latents)
    assert traced.trace.energies.shape == (8, 4)
