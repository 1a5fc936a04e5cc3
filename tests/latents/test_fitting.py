"""Gaussians fitted to posteriors: against closed forms, and row by row."""

import pytest
import torch
from torch import Tensor

from latent_ebm_text.errors import DivergenceError, UsageError
from latent_ebm_text.latents.fitting import fit_gaussian
from latent_ebm_text.latents.posterior import LatentPosterior
from latent_ebm_text.latents.prior import GaussianPrior
from tests.helpers import seeded

LATENT_DIM, NUM_DATA, NOISE_STD = 3, 5, 0.5


class LinearGaussianLikelihood:
    """`x = A z + noise`; under N(0, I) the posterior has precision `P = I + A'A / s^2` and mean `P^-1 A'x / s^2`."""

    def __init__(self, matrix: Tensor, data: Tensor) -> None:
        self.matrix, self.data = matrix, data

    def __call__(self, latents: Tensor) -> Tensor:
        return -0.5 * (self.data - latents @ self.matrix.t()).square().sum(dim=1) / NOISE_STD**2

    def score(self, latents: Tensor) -> Tensor:
        return (self.data - latents @ self.matrix.t()) @ self.matrix / NOISE_STD**2

    def value_and_score(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        return self(latents), self.score(latents)


def example(matrix: Tensor) -> tuple[LatentPosterior, Tensor, Tensor]:
    """A posterior, and its exact mean `(NUM_DATA, LATENT_DIM)` and precision."""
    data = torch.randn(NUM_DATA, len(matrix), generator=seeded(1), dtype=torch.float64)
    precision = torch.eye(LATENT_DIM, dtype=torch.float64) + matrix.t() @ matrix / NOISE_STD**2
    mean = torch.linalg.solve(precision, matrix.t() @ data.t() / NOISE_STD**2).t()
    return LatentPosterior(GaussianPrior(LATENT_DIM), LinearGaussianLikelihood(matrix, data)), mean, precision


def start() -> tuple[Tensor, Tensor]:
    zeros = torch.zeros(NUM_DATA, LATENT_DIM, dtype=torch.float64)
    return zeros, zeros.clone()


def elbo(posterior: LatentPosterior, mean: Tensor, log_std: Tensor, num_draws: int = 400) -> float:
    generator = seeded(99)
    noise = torch.randn(num_draws, *mean.shape, generator=generator, dtype=mean.dtype)
    values = torch.stack([posterior(mean + log_std.exp() * each) for each in noise])
    return float((values.mean(dim=0) + log_std.sum(dim=1)).mean())


def test_a_posterior_that_is_such_a_gaussian_is_found_exactly() -> None:
    posterior, mean, precision = example(torch.diag(torch.tensor([0.2, 1.0, 2.0], dtype=torch.float64)))
    found, log_std = fit_gaussian(posterior, *start(), num_steps=400, generator=seeded())
    torch.testing.assert_close(found, mean, rtol=0, atol=2e-3)
    torch.testing.assert_close((-2 * log_std).exp(), precision.diagonal().expand_as(log_std), rtol=1e-2, atol=0)


def test_of_another_gaussian_mean_and_diagonal_of_the_precision_are_found() -> None:
    """The optimum of a diagonal Gaussian: the exact mean, and variances of one over the precision's diagonal."""
    matrix = 0.6 * torch.randn(4, LATENT_DIM, generator=seeded(2), dtype=torch.float64)
    posterior, mean, precision = example(matrix)
    assert float((precision - torch.diag(precision.diagonal())).abs().max()) > 0.5
    found, log_std = fit_gaussian(posterior, *start(), num_steps=1500, generator=seeded())
    torch.testing.assert_close(found, mean, rtol=0, atol=0.05)
    torch.testing.assert_close((-2 * log_std).exp(), precision.diagonal().expand_as(log_std), rtol=0.08, atol=0)


def test_the_bound_rises_with_the_steps() -> None:
    matrix = 0.6 * torch.randn(4, LATENT_DIM, generator=seeded(2), dtype=torch.float64)
    posterior, mean, precision = example(matrix)
    bounds = [
        elbo(posterior, *fit_gaussian(posterior, *start(), num_steps=steps, generator=seeded()))
        for steps in (0, 4, 16, 64)
    ]
    assert bounds == sorted(bounds)
    best = elbo(posterior, mean, -0.5 * precision.diagonal().log().expand_as(mean))
    assert bounds[0] < bounds[-1] - 1
    assert bounds[-1] == pytest.approx(best, abs=0.05 * (best - bounds[0]))


def test_a_fit_that_starts_at_its_end_stays_there() -> None:
    posterior, mean, precision = example(torch.diag(torch.tensor([0.2, 1.0, 2.0], dtype=torch.float64)))
    log_std = -0.5 * precision.diagonal().log().expand_as(mean)
    for found, exact in zip(fit_gaussian(posterior, mean, log_std, num_steps=8), (mean, log_std), strict=True):
        torch.testing.assert_close(found, exact)


def test_no_step_leaves_the_start_and_no_fit_changes_it() -> None:
    posterior, _, _ = example(torch.eye(LATENT_DIM, dtype=torch.float64))
    mean, log_std = start()
    for found, given in zip(fit_gaussian(posterior, mean, log_std, num_steps=0), (mean, log_std), strict=True):
        assert torch.equal(found, given)
    fit_gaussian(posterior, mean, log_std, num_steps=3)
    assert float(mean.abs().max()) == 0


def test_a_fit_follows_its_generator_and_draws_anew_at_every_step() -> None:
    seen: list[Tensor] = []

    def flat(latents: Tensor) -> Tensor:
        seen.append(latents.detach().clone())
        return latents.sum(dim=1)

    first, again = (fit_gaussian(flat, *start(), num_steps=3, generator=seeded(4))[0] for _ in "ab")
    assert torch.equal(first, again)
    assert float((seen[1] - seen[0]).abs().min()) > 0.001, "not the same noise, shifted"
    assert float((seen[1] - seen[0]).std()) > 0.3


def test_rows_do_not_depend_on_each_other() -> None:
    """A row that is thousands of times as steep as the others changes nothing in them."""
    scale = torch.ones(NUM_DATA, 1, dtype=torch.float64)

    def fitted() -> Tensor:
        def log_density(latents: Tensor) -> Tensor:
            return -(scale * (latents - 1).square()).sum(dim=1)

        return fit_gaussian(log_density, *start(), num_steps=5, generator=seeded())[0]

    plain = fitted()
    scale[0] = 5000.0
    assert torch.equal(fitted()[1:], plain[1:])


def test_what_cannot_be_right_is_refused() -> None:
    posterior, _, _ = example(torch.eye(LATENT_DIM, dtype=torch.float64))
    with pytest.raises(UsageError, match="num_steps of a fit must be zero or positive, got -1"):
        fit_gaussian(posterior, *start(), num_steps=-1)
    with pytest.raises(UsageError, match="learning_rate must be positive"):
        fit_gaussian(posterior, *start(), num_steps=1, learning_rate=0.0)
    mean, log_std = start()
    mean[2, 0] = float("nan")
    with pytest.raises(
        DivergenceError, match="the fit of 1 of 5 posteriors is not finite: lower fit_learning"
    ) as error:
        fit_gaussian(posterior, mean, log_std, num_steps=2)
    assert error.value.rows == [2]
