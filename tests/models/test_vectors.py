"""The latent energy-based model of vectors: against the Gaussian that it is without an energy, and on clusters."""

import math

import pytest
import torch

from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents.density import autograd_value_and_score
from latent_ebm_text.models.vectors import LatentEBMOfVectors
from latent_ebm_text.networks.vectors import LinearGaussianDecoder
from tests.helpers import seeded


def gaussian_vectors(num: int = 500, width: int = 6) -> torch.Tensor:
    return torch.randn(num, width, generator=seeded(0)) @ torch.randn(width, width, generator=seeded(1)) + 1


def test_without_energy_it_is_a_gaussian() -> None:
    """`log p(e)` against the density of the Gaussian with covariance `W W' + s^2 I`."""
    vectors = gaussian_vectors()
    model = LatentEBMOfVectors(6, 3).fit(vectors, num_updates=0)
    decoder = model.decoder
    covariance = decoder.weight @ decoder.weight.T + decoder.noise_variance * torch.eye(6)
    expected = torch.distributions.MultivariateNormal(decoder.bias, covariance).log_prob(vectors)
    torch.testing.assert_close(model.log_prob(vectors).float(), expected, atol=1e-3, rtol=1e-4)
    assert float(model.log_partition) == pytest.approx(0.0, abs=1e-3)


def test_the_decoder_is_the_most_probable_one() -> None:
    """With the noise of the directions left out, the covariance keeps the total variance of the data."""
    vectors = gaussian_vectors()
    decoder = LinearGaussianDecoder(6, 3).fit(vectors)
    covariance = decoder.weight @ decoder.weight.T + decoder.noise_variance * torch.eye(6)
    assert float(covariance.trace()) == pytest.approx(float(vectors.var(dim=0, correction=0).sum()), rel=1e-4)
    torch.testing.assert_close(
        decoder.weight.T @ decoder.weight, torch.diag(decoder.weight.square().sum(dim=0)), atol=1e-4, rtol=1e-4
    )


def test_posterior_and_score_are_exact() -> None:
    vectors = gaussian_vectors(20)
    decoder = LinearGaussianDecoder(6, 3).fit(vectors)
    inputs = {"vectors": vectors}
    latents = torch.randn(20, 3, generator=seeded(2))
    value, score = decoder.likelihood(inputs).value_and_score(latents)
    expected_value, expected = autograd_value_and_score(lambda z: decoder.log_prob(inputs, z), latents)
    torch.testing.assert_close(value, expected_value)
    torch.testing.assert_close(score, expected, atol=1e-4, rtol=1e-4)
    posterior = decoder.posterior(inputs)  # Bayes' rule holds at any latent
    joint = value - 0.5 * (latents.square().sum(dim=1) + 3 * math.log(2 * math.pi))
    torch.testing.assert_close(joint - posterior.log_prob(latents), decoder.log_marginal(inputs), atol=1e-3, rtol=1e-4)


def test_the_energy_learns_clusters() -> None:
    """Two clusters far apart: between them a Gaussian has its mode, and the energy learns that nothing is there."""
    signs = torch.randint(2, (2000, 1), generator=seeded(3)) * 2.0 - 1
    vectors = torch.cat([4 * signs, torch.zeros(2000, 4)], dim=1) + torch.randn(2000, 5, generator=seeded(4)) * 0.3
    train, test = vectors[:1500], vectors[1500:]
    gaussian = LatentEBMOfVectors(5, 1).fit(train, num_updates=0)
    model = LatentEBMOfVectors(5, 1).fit(train, num_updates=300)
    middle = torch.zeros(1, 5)
    assert float((model.log_prob(test) - gaussian.log_prob(test)).mean()) > 0.3
    assert float(model.log_prob(middle)) < float(model.log_prob(test).quantile(0.05))
    assert float(gaussian.log_prob(middle)) > float(gaussian.log_prob(test).median())
    assert float(model.latent_energy(middle)) > float(model.latent_energy(test).max())


def test_the_same_seed_gives_the_same_model() -> None:
    vectors = gaussian_vectors(100)
    first, second = (LatentEBMOfVectors(6, 2).fit(vectors, num_updates=20, seed=5).log_prob(vectors) for _ in "ab")
    assert torch.equal(first, second)
    no_time = LatentEBMOfVectors(6, 2).fit(vectors, max_seconds=0.0)
    assert float(no_time.log_partition) == pytest.approx(0.0, abs=1e-3)
    with pytest.raises(UsageError, match="below the width of the vectors, 6: 6"):
        LatentEBMOfVectors(6, 6)
