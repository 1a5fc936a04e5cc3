"""log p(x) and log Z of whole models, against quadrature over a latent of one dimension."""

import dataclasses
import json
import math
from typing import Any

import pytest
import torch

from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.likelihood import estimate_log_likelihood, estimate_log_partition
from tests.helpers import tiny_batch, tiny_model


def sentences() -> dict[str, torch.Tensor]:
    return {name: value for name, value in tiny_batch().items() if name != "labels"}


def log_joint_on_grid(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Log of tilt times Gaussian, log-likelihood `(points, batch)` on a grid of z, and the grid's spacing."""
    grid = torch.linspace(-8, 8, 1601)[:, None]
    size = len(batch["input_ids"])
    with torch.no_grad():
        prior = model.prior.log_prob(grid)
        likelihood = torch.stack([model.log_prob(**batch, latents=point.expand(size, 1)) for point in grid])
    return prior.double(), likelihood.double(), float(grid[1, 0] - grid[0, 0])


def test_log_partition_agrees_with_quadrature_and_is_bracketed() -> None:
    model = tiny_model(latent_dim=1)
    prior, _, spacing = log_joint_on_grid(model, sentences())
    exact = float(torch.logsumexp(prior, 0)) + math.log(spacing)
    estimate = estimate_log_partition(model)
    assert abs(exact) > 0.1, "a tilt that matters"
    assert estimate.value == pytest.approx(exact, abs=0.05)
    assert estimate.upper == pytest.approx(exact, abs=0.05)
    assert estimate.ess > 100


def test_a_gaussian_prior_has_log_partition_zero() -> None:
    estimate = estimate_log_partition(tiny_model(prior_type="gaussian"), num_chains=64, num_levels=3)
    assert estimate.lower == pytest.approx(0.0, abs=1e-4)
    assert estimate.upper == pytest.approx(0.0, abs=1e-4)


GAUSSIAN: dict[str, Any] = {"prior_type": "gaussian"}


@pytest.mark.parametrize(
    ("method", "num_samples", "settings"),
    [
        ("ais", 32, {}),
        ("ais", 32, GAUSSIAN | {"encoder_hidden_size": 6}),
        # The tiny energy has two modes; the importance weights of a Gaussian at one of them miss the other.
        ("importance", 400, GAUSSIAN),
    ],
)
def test_log_p_of_sentences_agrees_with_quadrature(method: str, num_samples: int, settings: dict[str, Any]) -> None:
    """The trained likelihood weight must not enter."""
    model, batch = tiny_model(latent_dim=1, likelihood_weight=3.0, **settings), sentences()
    with torch.no_grad():
        for weight in model.decoder.parameters():
            weight.mul_(0.3)  # posteriors of one mode, which a Gaussian can propose for
    prior, likelihood, spacing = log_joint_on_grid(model, batch)
    partition = torch.logsumexp(prior, 0)
    exact = torch.logsumexp(prior[:, None] + likelihood, 0) - partition
    estimate = estimate_log_likelihood(model, [batch], method=method, num_samples=num_samples)
    error = estimate.standard_error + estimate.log_partition.standard_error
    assert bool(((estimate.log_prob - exact).abs() < 3 * error + 0.02).all())
    assert estimate.reliable
    figures = json.loads(json.dumps(estimate.to_dict()))
    assert figures["nll"]["value"] == pytest.approx(-float(exact.mean()), abs=0.15)
    assert figures["unreliable_share"] == 0.0


def test_a_model_without_a_latent_is_evaluated_exactly() -> None:
    model, batch = tiny_model(prior_type="gaussian", latent_dim=0), sentences()
    sizes: list[int] = []
    estimate = estimate_log_likelihood(model, [batch, batch], on_batch=sizes.append)
    exact = model.log_prob(**batch, latents=torch.empty(len(batch["input_ids"]), 0))
    torch.testing.assert_close(estimate.log_prob, torch.cat([exact, exact]).double())
    assert estimate.to_dict()["method"] == "exact"
    assert sum(sizes) == 2 * len(batch["input_ids"])
    json.dumps(estimate.to_dict(), allow_nan=False)


def test_too_few_weights_are_flagged() -> None:
    model = tiny_model(likelihood_weight=1.0)
    estimate = estimate_log_likelihood(model, [sentences()], method="importance", num_samples=3)
    assert estimate.unreliable_share == 1.0, "three weights cannot have an effective sample size of five"
    assert not estimate.reliable


def test_a_log_partition_that_is_not_known_is_flagged() -> None:
    model = tiny_model(latent_dim=1, likelihood_weight=3.0)
    found = estimate_log_likelihood(model, [sentences()], num_samples=64)
    assert found.log_partition.reliable
    for doubtful in ({"ess": 1.0}, {"upper": found.log_partition.lower + 2}):
        partition = dataclasses.replace(found.log_partition, **doubtful)
        assert not partition.reliable
        assert not dataclasses.replace(found, unreliable_share=0.0, log_partition=partition).reliable


def test_refused() -> None:
    with pytest.raises(UsageError, match="'ais' or 'importance'"):
        estimate_log_likelihood(tiny_model(), [sentences()], method="exact")
    with pytest.raises(UsageError, match="no data"):
        estimate_log_likelihood(tiny_model(), [])
