"""The interface of a decoder p(x | z): the only thing, beside a collator, that a new modality writes."""

from __future__ import annotations

from torch import Tensor, nn

from latent_ebm_text.samplers.base import ScoredLogDensity


class LatentDecoder(nn.Module):
    """A conditional density of data given latents. It knows nothing of priors and samplers."""

    def log_prob(self, inputs: dict[str, Tensor], latents: Tensor) -> Tensor:
        """`log p(x | z)` in nats, summed over tokens or pixels, shape `(batch,)`; differentiable in the weights."""
        raise NotImplementedError

    def likelihood(self, inputs: dict[str, Tensor]) -> ScoredLogDensity:
        """`log p(x | z)` as a function of z alone, with its score.

        Computes once whatever does not depend on z; weights are frozen and dropout is off. Made once per chain, it
        is what the inner loop of posterior sampling calls.
        """
        raise NotImplementedError

    def score(self, inputs: dict[str, Tensor], latents: Tensor) -> Tensor:
        """`d log p(x | z) / d z` of shape `(batch, latent_dim)`, with frozen weights and without dropout."""
        return self.likelihood(inputs).score(latents)
