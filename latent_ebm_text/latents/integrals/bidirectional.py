"""An audit of log p(x): bounds from both sides by bidirectional Monte Carlo, with noise that nothing was fitted to.

Grosse, Ancha and Roy, "Measuring the reliability of MCMC inference with bidirectional Monte Carlo", NeurIPS 2016.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents.density import LogDensity
from latent_ebm_text.latents.integrals.ais import AnnealedImportanceSampler
from latent_ebm_text.latents.integrals.gaussian import GaussianProposal, WhitenedDensity
from latent_ebm_text.latents.integrals.partition import LogPartition
from latent_ebm_text.latents.integrals.weights import MIN_ESS, LogIntegral

#: An audit that leaves more open than this, in nats an example, does not call its result reliable.
MAX_RESOLUTION = 1.0


class AuditedModel(Protocol):
    """What an audit must know of a model `p(x, z) = p(z) p(x | z)`; a batch is whatever the model takes.

    It suits any model with a latent vector: an energy-based prior, a VAE, a posterior fitted to every text.
    """

    def log_partition(self) -> LogPartition:
        """log Z of the prior, bracketed; `LogPartition.known()` of a normalised one."""
        ...

    def proposal(self, batch: Any) -> GaussianProposal:
        """Where the posterior of each example lies. It may be wrong: that costs precision, not honesty."""
        ...

    def log_joint(self, batch: Any) -> LogDensity:
        """`log p(z) + log p(x | z)` as a function of z, one row per example, with `p(z)` up to log Z."""
        ...

    def simulate(self, num_samples: int, generator: torch.Generator | None) -> tuple[Any, Tensor]:
        """A batch drawn from the model, and the latents `(num_samples, latent_dim)` that it was drawn from."""
        ...


@dataclass(frozen=True)
class Audit:
    """What is known of the negative log-likelihood of data after an audit, in nats an example.

    Attributes:
        nll: `(n,)` estimates of `-log p(x)` that err upwards: forward walks, and the upper end of log Z.
        ess: `(n,)` effective sample sizes of their weights.
        gap: `(num_simulated,)` upper minus lower bound of `log p(x)` on data that the model itself has drawn, whose
            latents are exact draws from their posteriors.
        simulated_ess: `(num_simulated,)` effective sample sizes of the forward weights of these data.
        log_partition: log Z of the prior.
    """

    nll: Tensor
    ess: Tensor
    gap: Tensor
    simulated_ess: Tensor
    log_partition: LogPartition

    @property
    def mean(self) -> float:
        """The mean of `nll`: the model's NLL is at most this, up to the noise of the walks."""
        return float(self.nll.mean())

    @property
    def resolution(self) -> float:
        """How far the mean may lie above the truth: the mean gap with two standard errors, and the bracket of log Z.

        It holds for data whose posteriors are no harder than those of simulated data; `reliable` compares the
        effective sample sizes of the two.
        """
        gap = self.gap.mean() + 2 * self.gap.std() / len(self.gap) ** 0.5
        return max(0.0, float(gap)) + max(0.0, self.log_partition.upper - self.log_partition.lower)

    @property
    def reliable(self) -> bool:
        """Whether the resolution is at most a nat and no more data than simulated ones, by 5 %, have a low ESS."""
        low, simulated_low = ((each < MIN_ESS).double().mean() for each in (self.ess, self.simulated_ess))
        return self.resolution <= MAX_RESOLUTION and float(low - simulated_low) <= 0.05

    def rejects(self, claimed: Tensor) -> bool:
        """Whether another estimate of the same data's NLL is too low to be true.

        Args:
            claimed: `(n,)`, in nats.

        Raises:
            UsageError: If it has another shape.
        """
        if claimed.shape != self.nll.shape:
            raise UsageError(f"the claim is about {tuple(claimed.shape)} examples, the audit {tuple(self.nll.shape)}")
        below = self.nll - claimed.to(self.nll)
        return float(below.mean() - 2 * below.std() / len(below) ** 0.5) > self.resolution

    def verdict(self) -> str:
        """One sentence for people."""
        if self.reliable:
            low = self.mean - self.resolution
            return f"reliable within {self.resolution:.2f} nats: {low:.2f} to {self.mean:.2f}"
        return f"not reliable: {self.mean:.2f} is a bound from above, and {self.resolution:.2f} nats or more are open"


def audit(
    model: AuditedModel,
    batches: Sequence[Any],
    *,
    num_walks: int = 16,
    num_levels: int = 30,
    num_simulated: int = 64,
    generator: torch.Generator | None = None,
    progress: Callable[[Sequence[Any]], Any] = iter,
) -> Audit:
    """Bounds `-log p(x)` of data from above, and measures on simulated data how far below the truth may lie.

    Every example is annealed from its proposal to its posterior, with noise that is drawn here and nowhere else. That
    is a lower bound of `log p(x)` on average. Of data that the model itself has drawn an exact draw from the posterior
    is known, the latent that they were drawn from, and reverse walks from it give an upper bound.

    Args:
        model: The model.
        batches: The data.
        num_walks: Walks per example, at least 2.
        num_levels: Levels of each walk.
        num_simulated: Examples that are simulated.
        generator: Source of the noise.
        progress: Wraps the batches, to show progress.

    Raises:
        UsageError: If a number is too small.
    """
    if num_walks < 2 or num_simulated < 2:
        raise UsageError(f"num_walks and num_simulated must be at least 2, got {num_walks} and {num_simulated}")
    sampler, partition = AnnealedImportanceSampler(num_levels), model.log_partition()
    forward = [_walks(sampler, model, batch, num_walks, generator)[0] for batch in progress(batches)]
    drawn, latents = model.simulate(num_simulated, generator)
    lower, upper = _walks(sampler, model, drawn, num_walks, generator, latents)
    assert upper is not None
    values = [LogIntegral(each) for each in forward]
    return Audit(
        nll=partition.upper - torch.cat([each.value for each in values]).cpu(),
        ess=torch.cat([each.ess for each in values]).cpu(),
        gap=(-LogIntegral(-upper).value - LogIntegral(lower).value).cpu(),
        simulated_ess=LogIntegral(lower).ess.cpu(),
        log_partition=partition,
    )


def _walks(
    sampler: AnnealedImportanceSampler,
    model: AuditedModel,
    batch: Any,
    num_walks: int,
    generator: torch.Generator | None,
    exact: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log weights `(num_walks, batch)` of walks to the posterior, and of walks back from exact draws if there are."""
    proposal = model.proposal(batch)
    target = WhitenedDensity(model.log_joint(batch), proposal)

    def noise() -> Tensor:
        return torch.empty_like(proposal.mean).normal_(generator=generator)

    sizes = sampler.tune(target, noise(), generator=generator)
    forward = [sampler.log_weights(target, noise(), sizes, generator=generator)[0] for _ in range(num_walks)]
    if exact is None:
        return torch.stack(forward), None
    start = target.whitened(exact)
    back = [sampler.reverse_log_weights(target, start, sizes, generator=generator) for _ in range(num_walks)]
    return torch.stack(forward), torch.stack(back)
