"""Fits a prior to latents that stand still, such as the posteriors of a trained encoder, by maximum likelihood."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latent_ebm_text.errors import DivergenceError, UsageError
from latent_ebm_text.latents.flow import LatentFlow, fit_flow
from latent_ebm_text.latents.integrals.weights import standard_normal
from latent_ebm_text.latents.prior import EnergyPrior
from latent_ebm_text.latents.rng import derived_seed, normal_

_BATCH_SIZE, _NUM_PROPOSALS, _LEARNING_RATE, _CLIP_NORM = 256, 1024, 3e-3, 1.0
#: Share of the proposals that come from N(0, I), where chains start: no mass that an energy has there goes unseen.
_GAUSSIAN_SHARE = 0.1
#: Looks at the held-out latents while fitting, and the proposals behind log Z at each.
_NUM_LOOKS, _PROPOSALS_OF_LOOK = 10, 16_384


@dataclass(frozen=True)
class PriorFit:
    """What a fit of a prior has come to.

    Attributes:
        log_prob_before: Mean `log p(z)` of the held-out latents before, in nats.
        log_prob: The same now. The best of ten looks is kept, that before the fit included.
        log_partition: log Z of the prior now.
        effective_share: The effective sample size of the importance weights behind it, over their number.
    """

    log_prob_before: float
    log_prob: float
    log_partition: float
    effective_share: float


class _Proposals:
    """Draws that cover a set of latents and N(0, I), each with its log-density: a flow fitted to the former, mixed."""

    def __init__(self, flow: LatentFlow, generator: torch.Generator | None) -> None:
        self.flow, self.generator, self.like = flow, generator, next(flow.parameters())

    @torch.no_grad()
    def draw(self, number: int) -> tuple[Tensor, Tensor]:
        """Draws `(number, latent_dim)` and their log-densities `(number,)`."""
        noise = normal_(self.like.new_empty(number, self.flow.latent_dim), self.generator)
        broad, narrow = noise.tensor_split([round(_GAUSSIAN_SHARE * number)])
        drawn, log_prob = self.flow(narrow)
        latents = torch.cat([broad, drawn])
        log_flow = torch.cat([self.flow.log_prob(broad), log_prob])
        log_gaussian = standard_normal(latents)[0]
        return latents, torch.logaddexp(
            log_flow + math.log(1 - _GAUSSIAN_SHARE), log_gaussian + math.log(_GAUSSIAN_SHARE)
        )


def fit_prior(
    prior: EnergyPrior,
    draw: Callable[[int], Tensor],
    held_out: Tensor,
    *,
    num_steps: int = 2000,
    max_seconds: float = math.inf,
    seed: int = 0,
    generator: torch.Generator | None = None,
    progress: Callable[[range], Any] = iter,
) -> PriorFit:
    """Fits the energy to latents by maximum likelihood (paper, eq. 6), with importance weights in place of chains.

    The gradient of log Z is the mean gradient under the prior. Here it is that of proposals, weighted by the prior's
    density over theirs. They come from a flow that is fitted to the latents first. A step costs no chain, and the
    weights give log Z itself. This is for latents that stand still: a flow would lag behind those of a training.

    Args:
        prior: The prior, which receives the result.
        draw: Gives a number of the latents to fit, `(n, latent_dim)`.
        held_out: `(n, latent_dim)`, latents that `draw` does not give: they decide when the energy was best.
        num_steps: Steps of the flow, and of the energy.
        max_seconds: Time for both; results then depend on the speed of the machine.
        seed: Seed of the flow's first weights.
        generator: Random number generator of all draws.
        progress: Wraps the range of steps, to show progress.

    Raises:
        UsageError: If the latent has one dimension, no latents are held out, or a number is not positive.
        DivergenceError: If a loss is not finite.
    """
    if prior.latent_dim < 2 or num_steps < 1 or len(held_out) == 0:
        raise UsageError(
            "a prior is fitted to latents of 2 dimensions or more, some of them held out, in 1 step or more; got "
            f"latent_dim={prior.latent_dim}, {len(held_out)} held out and num_steps={num_steps}"
        )
    started = time.monotonic()

    def within(share: float, steps: range) -> Any:
        for step in progress(steps):
            if time.monotonic() - started > share * max_seconds:
                return
            yield step

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "flow"))
        flow = LatentFlow(prior.latent_dim).to(held_out)
    fit_flow(flow, draw, num_steps=num_steps, generator=generator, progress=lambda steps: within(0.5, steps))
    proposals = _Proposals(flow.requires_grad_(False), generator)

    before = best = _look(prior, proposals, held_out)
    kept = copy.deepcopy(prior.state_dict())

    def look() -> None:
        nonlocal best, kept
        found = _look(prior, proposals, held_out)
        if not math.isfinite(found[0]):
            raise DivergenceError(
                f"log p(z) of the held-out latents is {found[0]} while the prior is fitted to others"
            )
        if found[0] > best[0]:
            best, kept = found, copy.deepcopy(prior.state_dict())

    optimizer = torch.optim.Adam(prior.parameters(), lr=_LEARNING_RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for step in within(1.0, range(num_steps)):
        if step % max(1, num_steps // _NUM_LOOKS) == 0 and step:
            look()
        proposed, log_proposal = proposals.draw(_NUM_PROPOSALS)
        with torch.enable_grad():
            log_density = prior(torch.cat([draw(_BATCH_SIZE), proposed]))
            positive, negative = log_density.tensor_split([_BATCH_SIZE])
            weights = (negative.detach() - log_proposal).softmax(dim=0)
            loss = (weights * negative).sum() - positive.mean()
            optimizer.zero_grad()
            loss.backward()
        nn.utils.clip_grad_norm_(prior.parameters(), _CLIP_NORM)
        optimizer.step()
        schedule.step()
    look()
    prior.load_state_dict(kept)
    return PriorFit(before[0], *best)


@torch.no_grad()
def _look(prior: EnergyPrior, proposals: _Proposals, held_out: Tensor) -> tuple[float, float, float]:
    """Mean `log p(z)` of latents, log Z, and the effective share of the weights behind it."""
    latents, log_proposal = proposals.draw(_PROPOSALS_OF_LOOK)
    log_weights = (prior.log_prob(latents) - log_proposal).double()
    log_partition = float(log_weights.logsumexp(dim=0)) - math.log(len(log_weights))
    share = float(1 / log_weights.softmax(dim=0).square().sum()) / len(log_weights)
    return float(prior.log_prob(held_out).double().mean()) - log_partition, log_partition, share
