"""log p(x) of data under a model, and log Z of its prior, with error bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.estimates import Estimate
from latent_ebm_text.likelihood import LogIntegral, LogPartition, bracket_log_partition, posterior_log_weights
from latent_ebm_text.modeling_base import LatentEBMPreTrainedModel
from latent_ebm_text.streams import stream

#: Part of the data whose effective sample size may be too low before the whole figure is called unreliable.
MAX_UNRELIABLE_SHARE = 0.05


def estimate_log_partition(
    model: LatentEBMPreTrainedModel,
    *,
    num_chains: int = 1024,
    num_levels: int = 100,
    num_long_run_steps: int = 300,
    seed: int = 0,
) -> LogPartition:
    """log Z of a model's prior by annealed importance sampling from N(0, I).

    The prior's own log-density is `-E(z)`, whose Gaussian part lacks its constant; that is accounted for here, so a
    flat tilt has log Z = 0.

    Args:
        model: The model.
        num_chains: Walks in each direction.
        num_levels: Levels of each walk.
        num_long_run_steps: Hamiltonian steps of the chains whose ends start the reverse walks.
        seed: Of all draws.
    """
    generator = stream(seed, "log partition", device=model.device)
    first, second, third = (model.sample_reference(num_chains, generator) for _ in range(3))
    return bracket_log_partition(
        model.prior,
        (first, second, third),
        num_levels=num_levels,
        num_long_run_steps=num_long_run_steps,
        generator=generator,
    )


@dataclass(frozen=True)
class MarginalLikelihood:
    """log p(x) of every datum.

    Attributes:
        log_prob: `(n,)`, in nats: given log Z a stochastic lower bound, too low by at most about half the squared
            standard error.
        standard_error: `(n,)`, of each, from its weights, see [`~latent_ebm_text.likelihood.LogIntegral`]; that of
            log Z, which all data share, is not a part of it.
        ess: `(n,)`, effective sample sizes of the weights.
        num_samples: Weights per datum.
        method: How it was estimated.
        log_partition: Of the prior, already subtracted.
        unreliable_share: Part of the data with an effective sample size below
            [`~latent_ebm_text.likelihood.weights.MIN_ESS`].
    """

    log_prob: Tensor
    standard_error: Tensor
    ess: Tensor
    num_samples: int
    method: str
    log_partition: LogPartition
    unreliable_share: float

    @property
    def reliable(self) -> bool:
        """Whether at most 5 % of the data have too low an effective sample size, and log Z is known to a nat."""
        return self.unreliable_share <= MAX_UNRELIABLE_SHARE and (
            self.method == "exact" or self.log_partition.reliable
        )

    def to_dict(self) -> dict[str, Any]:
        """Mean NLL with its error over the data, and how far to believe it, as JSON-able values."""
        return {
            "nll": Estimate.of_mean(-self.log_prob).to_dict(),
            "mean_standard_error_per_datum": float(self.standard_error.mean()),
            "median_ess": None if self.method == "exact" else float(self.ess.median()),
            "num_samples": self.num_samples,
            "unreliable_share": self.unreliable_share,
            "reliable": self.reliable,
            "method": self.method,
            "log_partition": None if self.method == "exact" else self.log_partition.to_dict(),
        }


def estimate_log_likelihood(
    model: LatentEBMPreTrainedModel,
    batches: Iterable[dict[str, Tensor]],
    *,
    method: Literal["ais", "importance"] = "ais",
    num_samples: int = 16,
    num_levels: int = 30,
    log_partition: LogPartition | None = None,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> MarginalLikelihood:
    """log p(x) of data: `log ∫ p(z) p(x | z) dz` with the likelihood as it is, whatever weight training gave it.

    Both methods begin with a Laplace approximation of every posterior, slightly widened.

    - `"importance"`: importance weights of its draws (the importance-weighted bound of Burda et al., 2016); cheap,
      forward evaluations only. Where a posterior has several modes it misses some, and its error bars with them.
    - `"ais"`: annealed importance sampling from it to the posterior; dearer, and right where the posterior is no
      Gaussian.

    A model without a latent (`latent_dim` 0) needs neither: its figure is exact.

    Args:
        model: The model; put it into evaluation mode first, dropout is not a part of p(x).
        batches: The inputs of the decoder, on the model's device.
        method: `"ais"` or `"importance"`.
        num_samples: Weights per datum: walks, or importance draws.
        num_levels: Levels of each walk.
        log_partition: Of the prior; estimated where not given.
        seed: Of all draws.
        on_batch: Called with the size of every finished batch, for a progress bar.

    Raises:
        UsageError: If the method is unknown, or there is no data.
    """
    if model.config.latent_dim == 0:
        return _exact(model, batches, on_batch)
    if method not in ("ais", "importance"):
        raise UsageError(f"method must be 'ais' or 'importance', got {method!r}")
    log_partition = log_partition or estimate_log_partition(model, seed=seed)
    parts = []
    for number, inputs in enumerate(batches):
        generator = stream(seed, "marginal likelihood", number, device=model.device)
        posterior = model.posterior(inputs, likelihood_weight=1.0)
        start = model.sample_posterior(inputs, likelihood_weight=1.0, generator=generator).latents
        weights = posterior_log_weights(
            posterior, start, method=method, num_samples=num_samples, num_levels=num_levels, generator=generator
        )
        parts.append(weights.cpu())
        if on_batch is not None:
            on_batch(len(start))
    if not parts:
        raise UsageError("no data to estimate the likelihood of")
    estimate = LogIntegral(torch.cat(parts, dim=1))
    constant = 0.5 * model.config.latent_dim * math.log(2 * math.pi)
    return MarginalLikelihood(
        log_prob=estimate.value - constant - log_partition.value,
        standard_error=estimate.standard_error,
        ess=estimate.ess,
        num_samples=num_samples,
        method=f"{method}, {num_samples} weights" + (f" over {num_levels} levels" if method == "ais" else ""),
        log_partition=log_partition,
        unreliable_share=float((~estimate.reliable).double().mean()),
    )


def _exact(
    model: LatentEBMPreTrainedModel, batches: Iterable[dict[str, Tensor]], on_batch: Callable[[int], None] | None
) -> MarginalLikelihood:
    """Of a model without a latent: log p(x) itself."""
    parts = []
    for inputs in batches:
        parts.append(model.decoder.log_prob(inputs, model.sample_posterior(inputs).latents).detach().double().cpu())
        if on_batch is not None:
            on_batch(len(parts[-1]))
    if not parts:
        raise UsageError("no data to evaluate the likelihood of")
    log_prob = torch.cat(parts)
    return MarginalLikelihood(
        log_prob=log_prob,
        standard_error=torch.zeros_like(log_prob),
        ess=torch.full_like(log_prob, math.inf),
        num_samples=1,
        method="exact",
        log_partition=LogPartition(0.0, 0.0, 0.0, math.inf, 0),
        unreliable_share=0.0,
    )
