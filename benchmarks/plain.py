"""The same model in plain PyTorch, the way published training scripts write it: the yardstick of the benchmarks.

Every Langevin step embeds the words and concatenates the latent to them, runs `nn.LSTM`, holds the logits of all
tokens at once, and calls autograd twice, with weights that require gradients.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latent_ebm_text import LatentEBMForTextGeneration
from latent_ebm_text.networks.lstm import LSTMDecoder


class PlainDecoder(nn.Module):
    """`-log p(x | z)` with autograd for everything, from the weights of `decoder`; `padding` is the id of padding."""

    def __init__(self, decoder: LSTMDecoder, padding: int = -100) -> None:
        super().__init__()
        self.padding = padding
        # Submodules in the order of `decoder`, so that the parameters of both correspond one to one.
        self.embedding = deepcopy(decoder.embedding)
        self.initial_hidden = deepcopy(decoder.initial_hidden)
        self.initial_cell = deepcopy(decoder.initial_cell)
        self.lstm = deepcopy(decoder.lstm)
        weight = decoder.output.weight
        self.output = nn.Linear(*(decoder.embedding.weight if weight is None else weight).shape[::-1])
        self.output.weight = self.embedding.weight if weight is None else deepcopy(weight)
        self.output.bias = deepcopy(decoder.output.bias)
        self.projection = deepcopy(decoder.output.projection)

    def nll(self, input_ids: Tensor, latents: Tensor) -> Tensor:
        """`-log p(x | z)` in nats, summed over the batch; padded places are computed like all others, not counted."""
        words = self.embedding(input_ids[:, :-1].t())  # (time, batch, embedding_size)
        features = torch.cat([words, latents.expand(len(words), *latents.shape)], dim=-1)
        state = self.initial_hidden(latents).unsqueeze(0), self.initial_cell(latents).unsqueeze(0)
        hidden, _ = self.lstm(features, state)
        logits = self.output(hidden if self.projection is None else self.projection(hidden))
        return F.cross_entropy(
            logits.flatten(0, 1), input_ids[:, 1:].t().flatten(), ignore_index=self.padding, reduction="sum"
        )


class PlainModel(nn.Module):
    """Prior, decoder and the two Langevin loops, from the weights of `model`; `padding` is the id of padding."""

    def __init__(self, model: LatentEBMForTextGeneration, padding: int = -100) -> None:
        super().__init__()
        layers = [part for layer in model.prior.hidden for part in (deepcopy(layer), nn.GELU())]
        self.tilt = nn.Sequential(*layers, deepcopy(model.prior.out))
        self.decoder, self.latent_dim = PlainDecoder(model.decoder, padding), model.config.latent_dim
        self.prior_sampler, self.posterior_sampler = model.config.prior_sampler, model.config.posterior_sampler

    def likelihood_gradient(self, input_ids: Tensor, latents: Tensor) -> Tensor:
        """`d log p(x | z) / d z`."""
        latents = latents.detach().requires_grad_(True)
        return -torch.autograd.grad(self.decoder.nll(input_ids, latents), latents)[0]

    def sample_prior(self, latents: Tensor) -> Tensor:
        """The prior's chain from `latents`; noise from torch's global stream."""
        sampler = self.prior_sampler
        for _ in range(sampler["num_steps"]):
            latents = latents.detach().requires_grad_(True)
            tilt_gradient = torch.autograd.grad(self.tilt(latents).sum(), latents)[0]
            latents = _langevin_step(sampler["step_size"], latents, latents - tilt_gradient)
        return latents.detach()

    def sample_posterior(self, input_ids: Tensor, latents: Tensor) -> Tensor:
        """The posterior's chain from `latents`; noise from torch's global stream."""
        sampler = self.posterior_sampler
        for _ in range(sampler["num_steps"]):
            latents = latents.detach().requires_grad_(True)
            nll_gradient = torch.autograd.grad(self.decoder.nll(input_ids, latents), latents)[0]
            tilt_gradient = torch.autograd.grad(self.tilt(latents).sum(), latents)[0]
            latents = _langevin_step(sampler["step_size"], latents, nll_gradient + latents - tilt_gradient)
        return latents.detach()


def _langevin_step(step_size: float, latents: Tensor, energy_gradient: Tensor) -> Tensor:
    return latents - 0.5 * step_size**2 * energy_gradient + step_size * torch.randn_like(latents)
