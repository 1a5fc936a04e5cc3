"""A text model as an audit of its likelihood needs to know it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents.integrals import GaussianProposal, LogPartition, laplace_approximation, long_run_draws
from latent_ebm_text.latents.posterior import LatentPosterior
from latent_ebm_text.models.modeling_text import LatentEBMForTextGeneration
from latent_ebm_text.models.scoring import estimate_log_partition
from latent_ebm_text.models.sentences import SentenceRows


@dataclass
class AuditedTextModel:
    """A [`LatentEBMForTextGeneration`] as an audit knows it.

    See [`~latent_ebm_text.latents.integrals.bidirectional.AuditedModel`]. Batches are dictionaries of the decoder's
    inputs. Proposals are Laplace approximations, slightly widened.

    Args:
        model: The model, in evaluation mode, with a latent.
        tokenizer: Its tokenizer.
        generator: Source of the noise in log Z and in starting points; torch's global one by default.

    Raises:
        UsageError: If the model has no latent; its likelihood is exact.
    """

    model: LatentEBMForTextGeneration
    tokenizer: PreTrainedTokenizerBase
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if self.model.config.latent_dim == 0:
            raise UsageError("a model without a latent has an exact likelihood, which needs no audit: see log_prob")

    def log_partition(self) -> LogPartition:
        """log Z, with the constant of N(0, I) that `E(z)` leaves out."""
        constant = 0.5 * self.model.config.latent_dim * math.log(2 * math.pi)
        found = estimate_log_partition(self.model, num_chains=1024, generator=self.generator)
        return replace(found, lower=found.lower + constant, upper=found.upper + constant)

    def proposal(self, batch: dict[str, Tensor]) -> GaussianProposal:
        """Laplace approximations of the posteriors, from posterior draws on."""
        start = self.model.sample_posterior(batch, generator=self.generator).latents
        return laplace_approximation(self.log_joint(batch), start).widened(1.1)

    def log_joint(self, batch: dict[str, Tensor]) -> LatentPosterior:
        """`-E(z) + log p(x | z)`."""
        return self.model.posterior(batch, likelihood_weight=1.0)

    @torch.no_grad()
    def simulate(self, num_samples: int, generator: torch.Generator | None) -> tuple[dict[str, Tensor], Tensor]:
        """Sentences drawn token by token from latents that long Metropolis-corrected chains drew from the prior.

        Sentences that did not end within the model's longest are drawn again, with new latents: that choice looks at
        the sentence alone, so that each latent is still an exact draw from the posterior of its sentence.

        Raises:
            UsageError: If hardly any sentence ends.
        """
        config = self.model.config
        rows: list[list[int]] = []
        kept: list[Tensor] = []
        for _ in range(20):
            reference = self.model.sample_reference(num_samples, generator)
            latents = long_run_draws(self.model.prior, reference, generator=generator)
            ids = self.model.generate(
                latents=latents, generator=generator, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                max_new_tokens=config.max_sequence_length,
            )  # fmt: skip
            for row, latent in zip(ids.tolist(), latents, strict=True):
                if config.eos_token_id in row:
                    rows.append(row[: row.index(config.eos_token_id) + 1])
                    kept.append(latent)
            if len(rows) >= num_samples:
                break
        else:
            raise UsageError(f"of 20 times {num_samples} sentences {len(rows)} ended: train the model first")
        chosen = self.model._embedded(SentenceRows(rows[:num_samples]), self.tokenizer)
        return self.model._collate(chosen, torch.arange(num_samples)), torch.stack(kept[:num_samples])
