"""Chains of the prior that go on from step to step of a training."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor

from latent_ebm_text.latents.rng import BatchGenerator, derived_seed
from latent_ebm_text.latents.samplers import sampler_from_dict
from latent_ebm_text.models.modeling_base import LatentEBMPreTrainedModel
from latent_ebm_text.training.arguments import TrainingArguments

#: Chains for each row of a batch: they are cheap beside the decoder, and more of them make a calmer gradient.
_CHAINS_PER_ROW = 2


class PriorChains:
    """The prior's chains of persistent contrastive divergence (Tieleman, 2008), in place of short runs from N(0, I).

    A chain makes a few steps at each step of the training, and stays near equilibrium while the energy changes slowly.
    So the energy learns the density of the posteriors itself, where a short run teaches it what a short run needs: it
    mixes better, and can learn six times as fast without running away.

    Every row of a batch has its chains, on the process that has the row, and their noise belongs to them and not to
    the process. A batch that is shorter than others leaves the chains of the rows that it lacks where they are.

    Args:
        model: The model whose prior is sampled.
        args: The settings of the training.
        accelerator: Devices and processes.
    """

    def __init__(self, model: LatentEBMPreTrainedModel, args: TrainingArguments, accelerator: Accelerator) -> None:
        self._accelerator, self._seed, self._batch_size = accelerator, args.seed, args.train_batch_size
        self._sampler = sampler_from_dict({**model.config.prior_sampler, "num_steps": args.prior_chain_num_steps})
        self._rows = torch.arange(accelerator.process_index, args.train_batch_size, accelerator.num_processes)
        noise = self._noise("prior chain start", 0, self._rows, self._batch_size)
        start = model.sample_reference(_CHAINS_PER_ROW * len(self._rows), noise)
        self._latents = start.unflatten(0, (-1, _CHAINS_PER_ROW))  # (rows of this process, chains, latent_dim)

    @staticmethod
    def shape(args: TrainingArguments, latent_dim: int) -> tuple[int, int, int]:
        """Of what `whole` returns."""
        return args.train_batch_size, _CHAINS_PER_ROW, latent_dim

    def advanced(self, model: LatentEBMPreTrainedModel, rows: Tensor, batch_size: int, step: int) -> Tensor:
        """Where chains are after their steps at a step of the training; they stay where they are until `move`.

        Args:
            model: The model.
            rows: `(share,)`, the rows of the batch that this process has.
            batch_size: Rows of the whole batch.
            step: The step of the training.

        Returns:
            `(chains of these rows, latent_dim)`.
        """
        start = self._latents[: len(rows)].flatten(0, 1)
        generator = self._noise("prior", step, rows, batch_size)
        found: Tensor = model.sample_prior(
            len(start), initial_latents=start, sampler=self._sampler, generator=generator
        ).latents
        return found

    def move(self, latents: Tensor) -> None:
        """Puts the chains where `advanced` has found them to be."""
        moved = latents.unflatten(0, (-1, _CHAINS_PER_ROW))
        self._latents = torch.cat([moved, self._latents[len(moved) :]])

    def whole(self) -> Tensor:
        """The chains of all processes, `(train_batch_size, chains of a row, latent_dim)`; all of them call this."""
        padded = self._accelerator.pad_across_processes(self._latents)
        parts = self._accelerator.gather(padded).unflatten(0, (self._accelerator.num_processes, -1))
        return parts.transpose(0, 1).flatten(0, 1)[: self._batch_size].cpu()

    def restore(self, latents: Tensor) -> None:
        """Takes its own of the chains of all processes."""
        self._latents = latents[self._rows].to(self._latents)

    def _noise(self, purpose: str, step: int, rows: Tensor, batch_size: int) -> BatchGenerator:
        chains = (_CHAINS_PER_ROW * rows[:, None] + torch.arange(_CHAINS_PER_ROW)).flatten()
        seed = derived_seed(self._seed, purpose, step)
        return BatchGenerator(seed, chains, _CHAINS_PER_ROW * batch_size, self._accelerator.device)
