"""A density of vectors with a latent energy-based prior: `p(e) = ∫ p(z) p(e | z) dz` with a linear decoder."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor, nn

from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents.integrals import LogIntegral, bracket_log_partition
from latent_ebm_text.latents.prior import EnergyPrior
from latent_ebm_text.latents.rng import derived_generator, normal_
from latent_ebm_text.latents.samplers import LangevinSampler
from latent_ebm_text.networks.vectors import LinearGaussianDecoder

_BATCH_SIZE, _LEARNING_RATE, _PENALTY = 256, 5e-3, 0.01
#: Steps of the persistent prior chains for each update, the sampler of the text models' configurations but shorter.
_SAMPLER = LangevinSampler(num_steps=5, step_size=0.4, integrator="leimkuhler_matthews")
_CHECK_EVERY = 10  # updates between looks at the clock


class LatentEBMOfVectors(nn.Module):
    """A latent energy-based model of vectors, such as embeddings of sentences.

    The decoder is fitted first, in closed form, as if z ~ N(0, I): the model then is a Gaussian with a shrunk
    covariance. The energy learns what this Gaussian misses, such as clusters: `E(z+) - E(z-)` of draws from the
    posterior and from the prior (Pang et al., 2020, eq. 6), the former in closed form, the latter by persistent
    Langevin chains. So `log p(e)` is the Gaussian's own plus `log E[exp f(z)] - log Z` over its posterior.

    Args:
        width: Size of the vectors.
        latent_dim: Size of the latent, below `width`.

    Raises:
        UsageError: If `latent_dim` is not below `width`.
    """

    log_partition: Tensor

    def __init__(self, width: int, latent_dim: int = 32) -> None:
        super().__init__()
        if not 0 < latent_dim < width:
            raise UsageError(f"latent_dim must be positive and below the width of the vectors, {width}: {latent_dim}")
        self.decoder = LinearGaussianDecoder(width, latent_dim)
        self.prior = EnergyPrior(latent_dim)
        self.register_buffer("log_partition", torch.zeros(()))

    def fit(
        self, vectors: Tensor, *, num_updates: int = 300, max_seconds: float = math.inf, seed: int = 0
    ) -> LatentEBMOfVectors:
        """Fits decoder and energy, and estimates log Z; returns itself.

        Args:
            vectors: `(n, width)`, float32, more than one row.
            num_updates: Updates of the energy; 0 leaves the Gaussian as it is.
            max_seconds: Time after which no further update starts; results then depend on the machine's speed.
            seed: Seed of the initial weights and of all draws.
        """
        started = time.monotonic()
        generator = derived_generator(seed, "vectors")
        self.decoder.fit(vectors)
        with torch.no_grad():
            for layer in self.prior.hidden:
                assert isinstance(layer, nn.Linear)
                normal_(layer.weight, generator).div_(layer.in_features**0.5)
                layer.bias.zero_()
            self.prior.out.weight.zero_()  # the energy starts flat: the prior is N(0, I)
        optimizer = torch.optim.Adam(self.prior.parameters(), lr=_LEARNING_RATE)
        chains = self.prior.sample_reference(_BATCH_SIZE, generator)
        posterior = self.decoder.posterior({"vectors": vectors})
        for update in range(num_updates):
            if update % _CHECK_EVERY == 0 and time.monotonic() - started > max_seconds:
                break
            for group in optimizer.param_groups:
                group["lr"] = _LEARNING_RATE * (1 - update / num_updates)
            rows = torch.randint(len(vectors), (_BATCH_SIZE,), generator=generator)
            noise = normal_(torch.empty(_BATCH_SIZE, self.prior.latent_dim), generator)
            positive = posterior.mean[rows] + posterior.log_std[rows].exp() * noise
            chains = _SAMPLER.sample(chains, self.prior, generator=generator).latents
            tilts = self.prior.tilt(torch.cat([positive, chains]))
            positive_tilt, prior_tilt = tilts.split(_BATCH_SIZE)
            # E(z+) - E(z-) up to the Gaussian part, which no weight of the energy changes.
            loss = prior_tilt.mean() - positive_tilt.mean() + _PENALTY * tilts.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.eval().requires_grad_(False)
        starts = [self.prior.sample_reference(64, generator) for _ in range(3)]
        bracket = bracket_log_partition(
            self.prior, (starts[0], starts[1], starts[2]), num_levels=40, num_long_run_steps=40, generator=generator
        )
        self.log_partition.fill_(0.5 * (bracket.lower + bracket.upper))
        return self

    @torch.no_grad()
    def log_prob(self, vectors: Tensor, *, num_draws: int = 16, seed: int = 0) -> Tensor:
        """`log p(e)` in nats, `(n,)`, float64, estimated from draws of the posterior under z ~ N(0, I).

        Args:
            vectors: `(n, width)`.
            num_draws: Draws for each vector. Noise is shared by all vectors, so that equal vectors are scored alike.
            seed: Seed of the draws.
        """
        inputs = {"vectors": vectors}
        posterior = self.decoder.posterior(inputs)
        noise = normal_(torch.empty(num_draws, self.prior.latent_dim), derived_generator(seed, "draws"))
        tilts = torch.stack(
            [self.prior.tilt(posterior.mean + posterior.log_std.exp() * each).double() for each in noise]
        )
        gain = LogIntegral(tilts).value
        return self.decoder.log_marginal(inputs).double() + gain - self.log_partition.double()

    @torch.no_grad()
    def latent_energy(self, vectors: Tensor) -> Tensor:
        """`E(z) + log Z` in nats at the posterior mean, `(n,)`, float64: how improbable the latent itself is."""
        latents = self.decoder.posterior({"vectors": vectors}).mean
        return (self.prior.energy(latents) + self.log_partition).double()
