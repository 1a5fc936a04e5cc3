"""A decoder p(e | z) of vectors, such as embeddings of sentences: linear, with Gaussian noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latent_ebm_text.networks.base import FrozenLikelihood, GaussianPosterior, LatentDecoder


class LinearGaussianDecoder(LatentDecoder):
    """`p(e | z) = N(e; W z + b, s^2 I)`: probabilistic principal components (Tipping and Bishop, 1999).

    The columns of W are orthogonal, so that the posterior under z ~ N(0, I) is a Gaussian with independent
    dimensions, in closed form. `inputs` is a dictionary with `vectors` of shape `(batch, width)`.

    Args:
        width: Size of the vectors.
        latent_dim: Size of the latent, below `width`.
    """

    weight: Tensor
    bias: Tensor
    noise_variance: Tensor

    def __init__(self, width: int, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(width, latent_dim))
        self.register_buffer("bias", torch.zeros(width))
        self.register_buffer("noise_variance", torch.ones(()))

    def fit(self, vectors: Tensor) -> LinearGaussianDecoder:
        """Takes the most probable parameters under z ~ N(0, I), in closed form; returns itself.

        Args:
            vectors: `(n, width)`, more than one row.
        """
        width, latent_dim = self.weight.shape
        bias = vectors.mean(dim=0)
        covariance = torch.cov(vectors.double().T, correction=0)
        values, directions = torch.linalg.eigh(covariance)  # ascending
        # No direction is taken to be exact: a hundredth of the mean variance is left to the noise.
        least = (0.01 * values.mean()).clamp(min=1e-12)
        noise = torch.maximum(values[: width - latent_dim].mean(), least)
        scales = (values[width - latent_dim :] - noise).clamp(min=1e-3 * noise).sqrt()
        self.bias.copy_(bias)
        self.weight.copy_(directions[:, width - latent_dim :] * scales)
        self.noise_variance.copy_(noise)
        return self

    @property
    def latent_dtype(self) -> torch.dtype:
        """The precision of the latents."""
        return self.weight.dtype

    def log_prob(self, inputs: dict[str, Tensor], latents: Tensor) -> Tensor:
        """`log p(e | z)` in nats, `(batch,)`."""
        error = (inputs["vectors"] - self.bias - latents @ self.weight.T).square().sum(dim=-1)
        return -0.5 * (error / self.noise_variance + len(self.bias) * (2 * math.pi * self.noise_variance).log())

    def likelihood(self, inputs: dict[str, Tensor]) -> LinearGaussianLikelihood:
        """`log p(e | z)` as a function of z alone, with its score."""
        return LinearGaussianLikelihood(self, inputs)

    def posterior(self, inputs: dict[str, Tensor]) -> GaussianPosterior:
        """The posterior of z under z ~ N(0, I), exactly, mean and log standard deviation `(batch, latent_dim)`."""
        precision = 1 + self.weight.square().sum(dim=0) / self.noise_variance
        mean = ((inputs["vectors"] - self.bias) @ self.weight) / self.noise_variance / precision
        return GaussianPosterior(mean, (-0.5 * precision.log()).expand_as(mean))

    def log_marginal(self, inputs: dict[str, Tensor]) -> Tensor:
        """`log p(e)` under z ~ N(0, I), exactly, in nats, `(batch,)`."""
        posterior = self.posterior(inputs)
        latents = posterior.mean
        gaussian = -0.5 * (latents.square().sum(dim=-1) + latents.shape[1] * math.log(2 * math.pi))
        return self.log_prob(inputs, latents) + gaussian - posterior.log_prob(latents)


class LinearGaussianLikelihood(FrozenLikelihood):
    """`log p(e | z)` of a batch of vectors as a function of z, with its score in closed form.

    Args:
        decoder: The decoder.
        inputs: The batch.
    """

    def __init__(self, decoder: LinearGaussianDecoder, inputs: dict[str, Tensor]) -> None:
        self._decoder, self._inputs = decoder, inputs

    def _value(self, latents: Tensor) -> Tensor:
        return self._decoder.log_prob(self._inputs, latents)

    def _evaluate(self, latents: Tensor, with_value: bool) -> tuple[Tensor | None, Tensor]:
        decoder = self._decoder
        error = self._inputs["vectors"] - decoder.bias - latents @ decoder.weight.T
        score = error @ decoder.weight / decoder.noise_variance
        return (self._value(latents) if with_value else None), score
