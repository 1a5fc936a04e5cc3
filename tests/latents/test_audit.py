"""The audit of log p(x) against closed forms, and against estimates that flatter."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents.integrals import GaussianProposal, LogPartition, audit
from tests.helpers import seeded

NOISE = 0.3
MAP = torch.tensor([[1.0, 0.5], [-0.3, 0.8], [0.2, -1.1]])


@dataclass
class LinearGaussian:
    """`x = z MAP^T + noise` in three dimensions, whose `log p(x)` is known."""

    scale: float = 0.3
    partition: LogPartition = LogPartition.known()

    def log_partition(self) -> LogPartition:
        return self.partition

    def proposal(self, batch: Tensor) -> GaussianProposal:
        return GaussianProposal(batch @ torch.linalg.pinv(MAP).T, self.scale * torch.eye(2).expand(len(batch), 2, 2))

    def log_joint(self, batch: Tensor):
        def log_density(z: Tensor) -> Tensor:
            prior = -0.5 * z.square().sum(dim=-1) - math.log(2 * math.pi)
            errors = (batch - z @ MAP.T) / NOISE
            return prior - 0.5 * errors.square().sum(dim=-1) - 3 * math.log(NOISE) - 1.5 * math.log(2 * math.pi)

        return log_density

    def simulate(self, num_samples: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        z = torch.randn(num_samples, 2, generator=generator)
        return z @ MAP.T + NOISE * torch.randn(num_samples, 3, generator=generator), z


def exact_nll(batch: Tensor) -> Tensor:
    covariance = MAP @ MAP.T + NOISE**2 * torch.eye(3)
    return -torch.distributions.MultivariateNormal(torch.zeros(3), covariance).log_prob(batch)


def test_the_truth_lies_in_the_bracket() -> None:
    model = LinearGaussian()
    batches = [model.simulate(50, seeded(seed))[0] for seed in (1, 2)]
    found = audit(model, batches, num_walks=16, num_levels=20, generator=seeded())
    exact = exact_nll(torch.cat(batches)).double()
    assert found.nll.shape == (100,)
    torch.testing.assert_close(found.nll, exact, atol=0.3, rtol=0)
    assert found.mean - found.resolution - 0.02 <= float(exact.mean()) <= found.mean + 0.02
    assert found.resolution < 0.1
    assert found.reliable
    assert "reliable within" in found.verdict()
    assert not found.rejects(exact)


def test_few_walks_from_a_wrong_proposal_say_so() -> None:
    """A proposal 20 times too narrow, and hardly any annealing: the bound is loose, and the gap shows by how much."""
    model = LinearGaussian(scale=0.015)
    batch, _ = model.simulate(200, seeded(1))
    found = audit(model, [batch], num_walks=2, num_levels=2, generator=seeded())
    error = found.mean - float(exact_nll(batch).mean())
    assert error > 1
    assert found.resolution > error
    assert not found.reliable
    assert "not reliable" in found.verdict()


def test_the_width_of_log_z_counts() -> None:
    batch, _ = LinearGaussian().simulate(20, seeded(1))
    known, open_ = (
        audit(LinearGaussian(partition=partition), [batch], generator=seeded())
        for partition in (LogPartition.known(0.5), LogPartition(0.5, 2.0, 0.1, 50.0, 64))
    )
    assert known.reliable
    assert not open_.reliable
    assert open_.resolution == pytest.approx(known.resolution + 1.5)
    torch.testing.assert_close(open_.nll, known.nll + 1.5)


def test_an_estimate_that_reuses_the_noise_it_was_fitted_to_is_rejected() -> None:
    """A variational posterior per example, fitted to one noise draw and reported with the same one.

    With one draw `e` the fit moves its mean to `z* - s e` and widens `s` without end: every draw that it knows lies at
    the mode while its entropy grows.
    """
    model = LinearGaussian()
    batch, _ = model.simulate(64, seeded(1))
    noise = torch.randn(64, 2, generator=seeded(2))
    mean = torch.zeros(64, 2, requires_grad=True)
    log_scale = torch.full((64, 2), -1.0, requires_grad=True)
    optimizer = torch.optim.Adam([mean, log_scale], lr=0.05)
    density = model.log_joint(batch)

    def bound(noise: Tensor) -> Tensor:
        entropy = log_scale.sum(dim=-1) + 0.5 * noise.square().sum(dim=-1) + math.log(2 * math.pi)
        return density(mean + log_scale.exp() * noise) + entropy

    for _ in range(400):
        optimizer.zero_grad()
        loss = -bound(noise).mean()
        loss.backward()
        optimizer.step()
    claimed = -bound(noise).detach()
    assert float(claimed.mean()) < float(exact_nll(batch).mean()) - 3, "it claims the impossible"
    found = audit(model, [batch], generator=seeded())
    assert found.rejects(claimed)
    fresh = -bound(torch.randn(64, 2, generator=seeded(3))).detach()
    assert not found.rejects(fresh)


def test_what_cannot_be_audited_is_refused() -> None:
    batch, _ = LinearGaussian().simulate(4, seeded(1))
    with pytest.raises(UsageError, match="at least 2, got 1"):
        audit(LinearGaussian(), [batch], num_walks=1)
    found = audit(LinearGaussian(), [batch], generator=seeded())
    with pytest.raises(UsageError, match=r"about \(3,\) examples"):
        found.rejects(torch.zeros(3))
