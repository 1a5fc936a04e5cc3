"""log p(x) and log Z of whole models, against quadrature over a latent of one dimension, and what scores promise."""

import dataclasses
import math
from typing import Any

import pytest
import torch

from latent_ebm_text import LatentEBMForImageGeneration, LatentEBMImageConfig
from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents.integrals import LogPartition
from latent_ebm_text.models.scoring import SCORE_NAMES, estimate_log_partition, prior_moments, tempered_proposal
from latent_ebm_text.networks.base import GaussianPosterior
from tests.helpers import LATENT_DIM, seeded, tiny_batch, tiny_model

PARTITION = LogPartition(0.5, 0.5, 0.0, 100.0, 100)


def sentences() -> dict[str, torch.Tensor]:
    return {name: value for name, value in tiny_batch().items() if name != "labels"}


def log_joint_on_grid(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Log of tilt times Gaussian, log-likelihood `(points, batch)` on a grid of z, and the grid's spacing."""
    grid = torch.linspace(-8, 8, 1601)[:, None]
    size = len(next(iter(batch.values())))
    with torch.no_grad():
        prior = model.prior.log_prob(grid)
        likelihood = torch.stack([model.log_prob(**batch, latents=point.expand(size, 1)) for point in grid])
    return prior.double(), likelihood.double(), float(grid[1, 0] - grid[0, 0])


def test_log_partition_agrees_with_quadrature_and_is_bracketed() -> None:
    model = tiny_model(latent_dim=1)
    prior, _, spacing = log_joint_on_grid(model, sentences())
    exact = float(torch.logsumexp(prior, 0)) + math.log(spacing)
    estimate = estimate_log_partition(model, num_chains=1024, generator=seeded())
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
    ("marginal", "num_samples", "settings"),
    [
        ("ais", 32, {}),
        ("ais", 32, GAUSSIAN | {"encoder_hidden_size": 6}),
        # The tiny energy has two modes; the importance weights of a Gaussian at one of them miss the other.
        ("importance", 400, GAUSSIAN),
    ],
)
def test_log_p_of_sentences_agrees_with_quadrature(marginal: Any, num_samples: int, settings: dict[str, Any]) -> None:
    """The trained likelihood weight must not enter."""
    model, batch = tiny_model(latent_dim=1, likelihood_weight=3.0, **settings), sentences()
    with torch.no_grad():
        for weight in model.decoder.parameters():
            weight.mul_(0.3)  # posteriors of one mode, which a Gaussian can propose for
    prior, likelihood, spacing = log_joint_on_grid(model, batch)
    partition = torch.logsumexp(prior, 0)
    exact = torch.logsumexp(prior[:, None] + likelihood, 0) - partition
    options: dict[str, Any] = {"marginal": marginal, "num_samples": num_samples, "generator": seeded()}
    scores = model.score(**batch, **options)
    assert scores.nll is not None
    assert scores.nll_standard_error is not None
    assert scores.log_partition is not None
    error = scores.nll_standard_error + scores.log_partition.standard_error
    assert bool(((scores.nll + exact).abs() < 3 * error + 0.02).all())
    assert scores.reliable
    assert scores.unreliable_share == 0.0


def test_log_p_of_images_agrees_with_quadrature() -> None:
    torch.manual_seed(0)
    config = LatentEBMImageConfig(
        latent_dim=1, image_size=8, num_channels=1, decoder_channels=[6, 5], prior_hidden_size=8, pixel_std=1.0
    )
    model = LatentEBMForImageGeneration(config).eval()
    batch = {"pixel_values": model.generate(num_samples=3, generator=seeded())}
    prior, likelihood, spacing = log_joint_on_grid(model, batch)
    exact = torch.logsumexp(prior[:, None] + likelihood, 0) - torch.logsumexp(prior, 0)
    scores = model.score(**batch, marginal="ais", num_samples=32, generator=seeded())
    assert scores.nll is not None
    assert scores.nll_standard_error is not None
    assert bool(((scores.nll + exact).abs() < 3 * scores.nll_standard_error + 0.05).all())
    assert scores.names() == ["nll", "joint_energy", "reconstruction", "prior_energy", "squared_error"]
    with pytest.raises(UsageError, match="these data have no nll_per_token; their scores: nll, joint_energy"):
        scores.get("nll_per_token")


def test_a_model_without_a_latent_is_evaluated_exactly() -> None:
    model, batch = tiny_model(prior_type="gaussian", latent_dim=0), sentences()
    scores = model.score(**batch, batch_size=3)
    exact = model.log_prob(**batch, latents=torch.empty(len(batch["input_ids"]), 0))
    torch.testing.assert_close(scores.nll, -exact.double().detach())
    assert scores.reliable


def test_scores_are_those_of_their_draws_whether_or_not_the_marginal_is_estimated() -> None:
    model, batch = tiny_model(), sentences()
    options: dict[str, Any] = {"num_draws": 3, "batch_size": 3}
    scores = model.score(**batch, num_samples=2, generator=seeded(), **options)
    assert torch.equal(scores.latents, model.posterior_draws(**batch, generator=seeded(), **options))
    without = model.score(**batch, marginal="none", generator=seeded(), **options)
    for name in without.names():
        assert torch.equal(without.get(name), scores.get(name))
    each = [model.score(**batch, latents=draw, marginal="none") for draw in scores.latents]
    torch.testing.assert_close(torch.stack([s.joint_energy for s in each]).mean(dim=0), scores.joint_energy)
    log_prob = model.log_prob(**batch, latents=scores.latents[0]).detach().double()
    torch.testing.assert_close(each[0].reconstruction, -log_prob)
    torch.testing.assert_close(each[0].prior_energy, model.prior.energy(scores.latents[0]).detach().double())


def test_scores_without_a_generator_come_from_the_global_one() -> None:
    model, batch = tiny_model(), sentences()
    options: dict[str, Any] = {"num_draws": 1, "num_samples": 2, "log_partition": PARTITION}
    torch.manual_seed(4)
    drawn = model.score(**batch, **options)
    assert not torch.equal(drawn.nll, model.score(**batch, **options).nll)
    assert torch.equal(drawn.nll, model.score(**batch, **options, generator=seeded(4)).nll)


def test_more_anomalous_data_score_higher() -> None:
    """Every score of shuffled tokens under a model that has learned one sentence by heart."""
    model, batch = tiny_model(), sentences()
    optimizer = torch.optim.Adam(model.decoder.parameters(), lr=0.05)
    ids = batch["input_ids"][2:3]  # the longest sentence
    for _ in range(60):
        optimizer.zero_grad()
        (-model.log_prob(ids, latents=torch.zeros(1, LATENT_DIM)).mean()).backward()
        optimizer.step()
    shuffled = torch.cat([ids[:, :1], ids[:, 1:-1].flip(1), ids[:, -1:]], dim=1)
    scores = model.score(torch.cat([ids, shuffled]), generator=seeded())
    for name in set(SCORE_NAMES) - {"prior_energy", "squared_error"}:
        ordinary, anomaly = scores.get(name).tolist()
        assert ordinary < anomaly


def test_too_few_weights_are_flagged() -> None:
    model = tiny_model(likelihood_weight=1.0)
    scores = model.score(**sentences(), num_samples=3)
    assert scores.unreliable_share == 1.0, "three weights cannot have an effective sample size of five"
    assert not scores.reliable


def test_a_log_partition_that_is_not_known_is_flagged() -> None:
    model = tiny_model(latent_dim=1, likelihood_weight=3.0)
    found = model.score(**sentences(), marginal="ais", num_samples=64, generator=seeded())
    assert found.reliable
    assert found.log_partition is not None
    for doubtful in ({"ess": 1.0}, {"upper": found.log_partition.lower + 2}):
        partition = dataclasses.replace(found.log_partition, **doubtful)
        assert not partition.reliable
        assert not dataclasses.replace(found, log_partition=partition).reliable


def test_a_tempered_proposal_is_the_posterior_of_the_likelihood_itself() -> None:
    """Of Gaussians: prior N(m0, 1/l0), likelihood of precision l at y, and a proposal exact at the weight w."""
    prior_mean, prior_precision, data, precision, weight = 0.5, 2.0, -1.0, 3.0, 7.0

    def posterior(w: float) -> GaussianPosterior:
        total = prior_precision + w * precision
        mean = (prior_precision * prior_mean + w * precision * data) / total
        return GaussianPosterior(torch.full((1, 1), mean), torch.full((1, 1), -0.5 * math.log(total)))

    prior = GaussianPosterior(torch.full((1,), prior_mean), torch.full((1,), -0.5 * math.log(prior_precision)))
    for w in (weight, 0.25):
        tempered = tempered_proposal(posterior(w), prior, w)
        torch.testing.assert_close(tempered.mean, posterior(1.0).mean)
        torch.testing.assert_close(tempered.log_std, posterior(1.0).log_std)
    # A proposal that is wider than the prior allows at a low weight keeps a tenth of the prior's precision.
    wide = GaussianPosterior(torch.zeros(1, 1), torch.full((1, 1), 3.0))
    assert float(tempered_proposal(wide, prior, 0.25).log_std) == pytest.approx(-0.5 * math.log(0.2))


def test_the_lower_bound_is_a_bound_and_fast() -> None:
    """The bound of many draws against quadrature: `nll` is too high, by the divergence of the proposal."""
    model = tiny_model(latent_dim=1, encoder_hidden_size=6, prior_type="gaussian")
    batch = sentences()
    prior, likelihood, spacing = log_joint_on_grid(model, batch)
    exact = -(torch.logsumexp(prior[:, None] + likelihood, dim=0) + math.log(spacing))
    scores = model.score(**batch, marginal="elbo", num_draws=2000, generator=seeded())
    assert scores.nll is not None
    assert scores.nll_standard_error is not None
    gap = scores.nll - exact
    assert (gap > -3 * scores.nll_standard_error).all()
    # The same divergence by quadrature, of the proposal that was used.
    reference = prior_moments(model, generator=seeded())
    proposal = tempered_proposal(model.encoder.propose(batch), reference, model.config.likelihood_weight)
    grid = torch.linspace(-8, 8, 1601)[:, None]
    log_q = torch.stack([proposal.log_prob(point.expand(len(gap), 1)) for point in grid]).double()
    divergence = (log_q.exp() * (log_q - prior[:, None] - likelihood - exact)).sum(dim=0) * spacing
    torch.testing.assert_close(gap, divergence.detach(), atol=0.05, rtol=0.1)
    assert scores.latents.shape == (2000, len(gap), 1)


def test_what_the_lower_bound_needs() -> None:
    with pytest.raises(
        UsageError, match="marginal='elbo' needs a model with an encoder, or num_fit_steps: take marginal='importance'"
    ):
        tiny_model().score(**sentences(), marginal="elbo")
    with pytest.raises(UsageError, match="num_fit_steps is for marginal='elbo', got marginal='importance'"):
        tiny_model().score(**sentences(), num_fit_steps=3)
    model = tiny_model(encoder_hidden_size=6)
    with pytest.raises(UsageError, match="draws latents from the encoder: leave latents and sampler out"):
        model.score(**sentences(), marginal="elbo", sampler=model.posterior_sampler)
    first, second = (
        model.score(**sentences(), marginal="elbo", generator=seeded(), log_partition=PARTITION) for _ in "ab"
    )
    assert torch.equal(first.get("nll_per_token"), second.get("nll_per_token"))
    single = model.score(**sentences(), marginal="elbo", num_draws=1, log_partition=PARTITION)
    assert "nll_standard_error" not in single.to_dict()  # of one draw it is not known


def test_the_surprise_of_tokens_adds_up_to_the_likelihood() -> None:
    model, batch = tiny_model(), sentences()
    surprise = model.token_surprise(**batch, num_draws=1, generator=seeded())
    latents = model.posterior_draws(**batch, num_draws=1, generator=seeded())[0]
    with torch.no_grad():
        expected = -model.log_prob(**batch, latents=latents)
    torch.testing.assert_close(torch.stack([each.sum() for each in surprise]).float(), expected)
    lengths = batch["attention_mask"].sum(dim=1) - 1
    assert [len(each) for each in surprise] == lengths.tolist()
    assert all((each > 0).all() for each in surprise)
