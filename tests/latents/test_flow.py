"""A flow distilled from a density: its own density, its fit to known ones, and what corrections repair."""

import pytest
import torch
from torch import Tensor

from latent_ebm_text.errors import DivergenceError, UsageError
from latent_ebm_text.latents.flow import LatentFlow, fit_flow, flow_quality
from tests.helpers import seeded

MEAN = torch.tensor([1.0, -0.5])
COVARIANCE = torch.tensor([[1.0, 0.6], [0.6, 0.5]])


def gaussian(latents: Tensor) -> Tensor:
    away = latents - MEAN
    return 3.0 - 0.5 * (away @ COVARIANCE.inverse() * away).sum(dim=1)  # the constant is not to matter


def two_modes(latents: Tensor) -> Tensor:
    centre = torch.tensor([2.0, 0.0])
    return torch.logaddexp(
        -0.5 * (latents - centre).square().sum(dim=1), -0.5 * (latents + centre).square().sum(dim=1)
    )


def random_flow(latent_dim: int) -> LatentFlow:
    torch.manual_seed(0)
    flow = LatentFlow(latent_dim, hidden_size=8, num_layers=3)
    with torch.no_grad():
        for weight in flow.parameters():
            weight.normal_(std=0.3)
    return flow


@pytest.mark.parametrize("latent_dim", [2, 5])
def test_its_density_is_that_of_what_it_draws(latent_dim: int) -> None:
    """By the inverse, by the determinant of the Jacobian, and by an integral over the plane."""
    flow, noise = random_flow(latent_dim), torch.randn(4, latent_dim, generator=seeded())
    latents, log_prob = flow(noise)
    torch.testing.assert_close(flow.log_prob(latents), log_prob, atol=1e-4, rtol=1e-4)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: flow(row[None])[0][0]))(noise)
    normal = torch.distributions.Normal(0, 1).log_prob(noise).sum(dim=1)
    torch.testing.assert_close(log_prob, normal - torch.linalg.slogdet(jacobian).logabsdet, atol=1e-4, rtol=1e-4)
    if latent_dim == 2:
        grid = torch.cartesian_prod(*[torch.linspace(-12, 12, 481)] * 2)
        with torch.no_grad():
            total = float(flow.log_prob(grid).exp().sum())
        assert total * 0.05**2 == pytest.approx(1, abs=0.01)


def test_a_new_flow_is_the_identity_up_to_order() -> None:
    noise = torch.randn(3, 5, generator=seeded())
    latents, _ = LatentFlow(5)(noise)
    torch.testing.assert_close(latents.sort(dim=1).values, noise.sort(dim=1).values)


def fitted(target, draws: Tensor) -> LatentFlow:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    flow = LatentFlow(2, hidden_size=32, num_layers=4)
    fit_flow(flow, target, draws, num_steps=150, batch_size=256, generator=seeded(1))
    return flow


def test_it_becomes_a_gaussian() -> None:
    exact = torch.distributions.MultivariateNormal(MEAN, COVARIANCE)
    torch.manual_seed(1)
    draws, unseen = exact.sample((4000,)), exact.sample((4000,))
    flow = fitted(gaussian, draws)
    quality = flow_quality(flow, gaussian, unseen, generator=seeded(2))
    assert quality.effective_share > 0.97
    assert quality.acceptance_rate > 0.9
    assert quality.std_mismatch < 0.05
    assert quality.mean_distance < 0.06
    assert float(flow.log_prob(unseen).mean().detach()) == pytest.approx(
        float(exact.log_prob(unseen).mean()), abs=0.02
    )


def test_no_mode_is_left_out() -> None:
    torch.manual_seed(1)
    draws = torch.randn(4000, 2) + torch.tensor([2.0, 0.0]) * torch.where(torch.rand(4000, 1) < 0.5, -1.0, 1.0)
    latents = fitted(two_modes, draws).sample(4000, two_modes, generator=seeded(2)).latents
    assert float((latents[:, 0] > 0).float().mean()) == pytest.approx(0.5, abs=0.06)


def test_corrections_repair_a_flow_that_does_not_fit() -> None:
    """Draws of N(0, I) against a Gaussian with another mean: each step brings the mean nearer."""
    target = lambda latents: -0.5 * (latents - 0.5).square().sum(dim=1)  # noqa: E731
    flow = LatentFlow(2)
    means = [
        float(flow.sample(20_000, target, num_corrections=number, generator=seeded()).latents.mean())
        for number in (0, 1, 20)
    ]
    assert means[0] == pytest.approx(0, abs=0.02)
    assert 0.1 < means[1] < 0.45
    assert means[2] == pytest.approx(0.5, abs=0.02)


def test_a_density_that_is_not_finite_is_named() -> None:
    with pytest.raises(DivergenceError, match="the flow's loss is nan at step 0"):
        fit_flow(LatentFlow(2), lambda latents: latents.sum(dim=1) * float("nan"), torch.zeros(8, 2), num_steps=3)


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="2 dimensions or more"):
        LatentFlow(1)
    with pytest.raises(UsageError, match="positive sizes"):
        LatentFlow(4, num_layers=0)
