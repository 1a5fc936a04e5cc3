"""A normalising flow distilled from a prior: draws in one pass, whose exact density the energy corrects."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latent_ebm_text.errors import DivergenceError, UsageError
from latent_ebm_text.latents.density import LogDensity
from latent_ebm_text.latents.rng import normal_, uniform_
from latent_ebm_text.latents.samplers.base import SamplerOutput

_LEARNING_RATE, _CLIP_NORM = 1e-3, 1.0
#: Share of `KL(target || flow)` in the loss: enough to keep every mode, too little to fit the noise of the draws.
_FORWARD_SHARE = 0.1


class LatentFlow(nn.Module):
    """A flow of affine coupling layers (Dinh et al., 2017): noise to latents, with the density of what comes out.

    Every layer shuffles the dimensions and then shifts and scales one half of them by amounts that a small network
    reads from the other half. At first the flow is the identity, up to the order of the dimensions.

    Args:
        latent_dim: Size of the latent.
        hidden_size: Width of the networks.
        num_layers: Number of layers.

    Raises:
        UsageError: If a size is not positive, or the latent has fewer than 2 dimensions.
    """

    def __init__(self, latent_dim: int, hidden_size: int = 64, num_layers: int = 6) -> None:
        super().__init__()
        if latent_dim < 2 or min(hidden_size, num_layers) < 1:
            raise UsageError(
                "a flow needs a latent of 2 dimensions or more and positive sizes, got "
                f"latent_dim={latent_dim}, hidden_size={hidden_size}, num_layers={num_layers}"
            )
        self.latent_dim = latent_dim
        self.layers = nn.ModuleList(_Coupling(latent_dim, hidden_size, number) for number in range(num_layers))

    def forward(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Noise `(batch, latent_dim)` to latents of that shape and their log-density `(batch,)` in nats."""
        latents, change = noise, noise.new_zeros(len(noise))
        for layer in self.layers:
            latents, log_scale = layer(latents)
            change = change + log_scale
        return latents, _log_normal(noise) - change

    def log_prob(self, latents: Tensor) -> Tensor:
        """The log-density of latents in nats; `(batch, latent_dim)` to `(batch,)`, differentiable."""
        noise, change = latents, latents.new_zeros(len(latents))
        for layer in reversed(self.layers):
            assert isinstance(layer, _Coupling)
            noise, log_scale = layer.inverse(noise)
            change = change + log_scale
        return _log_normal(noise) - change

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        target: LogDensity,
        *,
        num_corrections: int = 1,
        generator: torch.Generator | None = None,
    ) -> SamplerOutput:
        """Draws by the flow, each replaced by another one as often as the target prefers that.

        A correction is a step of an independence sampler (Tierney, 1994): a fresh draw is accepted with probability
        `min(1, w' / w)`, where `w` is the density under the target over that under the flow. Any number of steps
        keeps the target; from draws of the flow, each step takes away what is left of its error in the proportion of
        the largest weight.

        Args:
            num_samples: Number of draws.
            target: The log-density that the flow was fitted to, unnormalised.
            num_corrections: Number of steps; 0 for the flow's own draws.
            generator: Random number generator.

        Returns:
            Latents `(num_samples, latent_dim)`, and the acceptance rate where there are corrections.
        """
        like = next(self.parameters())
        noise = normal_(like.new_empty((1 + num_corrections) * num_samples, self.latent_dim), generator)
        drawn, log_prob = self(noise)
        weights = (target(drawn) - log_prob).split(num_samples)
        (latents, *proposals), (weight, *proposed_weights) = drawn.split(num_samples), weights
        rates = []
        for proposal, proposed_weight in zip(proposals, proposed_weights, strict=True):
            log_rate = (proposed_weight - weight).nan_to_num(nan=-math.inf)
            accepted = uniform_(like.new_empty(num_samples), generator).log() < log_rate
            latents = torch.where(accepted[:, None], proposal, latents)
            weight = torch.where(accepted, proposed_weight, weight)
            rates.append(log_rate.clamp(max=0).exp())
        return SamplerOutput(latents, acceptance_rate=torch.stack(rates).mean(dim=0) if rates else None)


class _Coupling(nn.Module):
    order: Tensor
    inverse_order: Tensor

    def __init__(self, latent_dim: int, hidden_size: int, number: int) -> None:
        super().__init__()
        self.moved = latent_dim // 2
        self.network = nn.Sequential(
            nn.Linear(latent_dim - self.moved, hidden_size),
            nn.GELU(),
            nn.Linear(hidden_size, hidden_size),
            nn.GELU(),
            nn.Linear(hidden_size, 2 * self.moved),
        )
        for weight in self.network[-1].parameters():
            nn.init.zeros_(weight)
        order = torch.randperm(latent_dim, generator=torch.Generator().manual_seed(number))
        self.register_buffer("order", order)
        self.register_buffer("inverse_order", order.argsort())

    def _change(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self.network(kept).chunk(2, dim=1)
        return torch.tanh(log_scale), shift  # at most a factor e a layer, so that none runs away

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Changed latents, and the log of the volume that they take, `(batch,)`."""
        moved, kept = latents.index_select(1, self.order).tensor_split([self.moved], dim=1)
        log_scale, shift = self._change(kept)
        return torch.cat([torch.addcmul(shift, moved, log_scale.exp()), kept], dim=1), log_scale.sum(dim=1)

    def inverse(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """What the latents were before, and the log of the volume that this step took, `(batch,)`."""
        moved, kept = latents.tensor_split([self.moved], dim=1)
        log_scale, shift = self._change(kept)
        before = torch.cat([(moved - shift) * (-log_scale).exp(), kept], dim=1)
        return before.index_select(1, self.inverse_order), log_scale.sum(dim=1)


@dataclass(frozen=True)
class FlowQuality:
    """How well a flow stands for the density it was fitted to, from fresh draws of both.

    Attributes:
        effective_share: The effective sample size of importance weights of the flow's draws over their number, from
            0 to 1.
        acceptance_rate: Mean acceptance rate of the corrections.
        std_mismatch: Mean over dimensions of |standard deviation of corrected draws / that of the chain's - 1|.
        mean_distance: Mean over dimensions of |mean of corrected draws - that of the chain's| in the chain's standard
            deviations.
        chance_mismatch: What `std_mismatch` is between two halves of the chain's draws, times `2 ** -0.5`: sampling
            noise alone.
        num_draws: Draws of each.
    """

    effective_share: float
    acceptance_rate: float
    std_mismatch: float
    mean_distance: float
    chance_mismatch: float
    num_draws: int


def fit_flow(
    flow: LatentFlow,
    target: LogDensity,
    draws: Tensor,
    *,
    num_steps: int = 2000,
    batch_size: int = 512,
    generator: torch.Generator | None = None,
    progress: Callable[[range], Any] = iter,
) -> None:
    """Fits a flow to an unnormalised density by `0.9 KL(flow || target) + 0.1 KL(target || flow)`.

    The first needs the density alone, but may leave out a mode of it; the second needs draws, and does not. Adam with
    a learning rate that decays to zero.

    Args:
        flow: The flow, in which the result is written.
        target: The log-density, differentiable in the latents.
        draws: `(n, latent_dim)`, draws from it.
        num_steps: Number of steps.
        batch_size: Draws a step, of each kind.
        generator: Random number generator.
        progress: Wraps the range of steps, to show progress.

    Raises:
        DivergenceError: If the loss is not finite.
    """
    optimizer = torch.optim.Adam(flow.parameters(), lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for step in progress(range(num_steps)):
        rows = torch.randint(len(draws), (batch_size,), generator=generator, device=draws.device)
        noise = normal_(draws.new_empty(batch_size, flow.latent_dim), generator)
        with torch.enable_grad():
            latents, log_prob = flow(noise)
            reverse, forward = log_prob - target(latents), -flow.log_prob(draws[rows])
            loss = torch.lerp(reverse, forward, _FORWARD_SHARE).mean()
            optimizer.zero_grad()
            loss.backward()
        if (step % 100 == 0 or step == num_steps - 1) and not bool(loss.isfinite()):
            raise DivergenceError(
                f"the flow's loss is {float(loss.detach())} at step {step}: look at the prior's chains first"
            )
        nn.utils.clip_grad_norm_(flow.parameters(), _CLIP_NORM)
        optimizer.step()
        schedule.step()


@torch.no_grad()
def flow_quality(
    flow: LatentFlow, target: LogDensity, draws: Tensor, *, generator: torch.Generator | None = None
) -> FlowQuality:
    """Compares a flow with draws of its target that it was not fitted to, `(n, latent_dim)`; see [`FlowQuality`]."""
    latents, log_prob = flow(normal_(draws.new_empty(len(draws), flow.latent_dim), generator))
    weights = (target(latents) - log_prob).double().softmax(dim=0)
    corrected = flow.sample(len(draws), target, generator=generator)
    assert corrected.acceptance_rate is not None
    spread = draws.std(dim=0)

    def mismatch(first: Tensor, second: Tensor) -> float:
        return float((first.std(dim=0) / second.std(dim=0) - 1).abs().mean())

    first, second = draws.tensor_split(2)
    return FlowQuality(
        effective_share=float(1 / weights.square().sum()) / len(draws),
        acceptance_rate=float(corrected.acceptance_rate.mean()),
        std_mismatch=mismatch(corrected.latents, draws),
        mean_distance=float(((corrected.latents.mean(dim=0) - draws.mean(dim=0)).abs() / spread).mean()),
        chance_mismatch=mismatch(first, second) * 0.5**0.5,
        num_draws=len(draws),
    )


def _log_normal(noise: Tensor) -> Tensor:
    return -0.5 * noise.square().sum(dim=-1) - 0.5 * math.log(2 * math.pi) * noise.shape[-1]
