"""Anomaly scores of data under a model of any modality, each in nats, higher for the more anomalous."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.mode import evaluation_mode
from latent_ebm_text.likelihood import LogIntegral, LogPartition, bracket_log_partition, posterior_log_weights
from latent_ebm_text.likelihood.weights import MIN_ESS
from latent_ebm_text.streams import stream

if TYPE_CHECKING:
    from latent_ebm_text.modeling_base import LatentEBMPreTrainedModel

ScoreName = Literal[
    "nll_per_token", "nll", "joint_energy_per_token", "joint_energy", "reconstruction_per_token", "reconstruction",
    "prior_energy",
]  # fmt: skip
SCORE_NAMES: tuple[str, ...] = get_args(ScoreName)
Marginal = Literal["importance", "ais", "none"]
#: Chains that estimate log Z, which shifts all of a model's scores alike.
_PARTITION_CHAINS = 256
#: An importance weight is a value of the density, a walk many of its gradients.
_DEFAULT_WEIGHTS: dict[Marginal, int] = {"importance": 32, "ais": 16, "none": 2}


@dataclass(frozen=True)
class AnomalyScores:
    """Scores of `n` data, float64 tensors of shape `(n,)`, in nats: higher is more anomalous.

    Attributes:
        nll: An estimate of `-log p(x)`, from above; `None` where it was not asked for.
        nll_standard_error: Of each, see [`~latent_ebm_text.likelihood.LogIntegral`]; that of log Z, which all share,
            is not a part of it.
        ess: Effective sample sizes of its weights; below 5 a value is a matter of a few lucky draws.
        joint_energy: `E(z) - log p(x | z)` with z drawn from the posterior, averaged over draws.
        reconstruction: `-log p(x | z)` at the same draws.
        prior_energy: `E(z)` at the same draws, up to log Z.
        num_tokens: Predicted tokens of each sentence, the end counted; `None` for data that are all of one size.
        log_partition: log Z, as it was subtracted.
    """

    joint_energy: Tensor
    reconstruction: Tensor
    prior_energy: Tensor
    nll: Tensor | None = None
    nll_standard_error: Tensor | None = None
    ess: Tensor | None = None
    num_tokens: Tensor | None = None
    log_partition: LogPartition | None = None

    def __len__(self) -> int:
        return len(self.joint_energy)

    def get(self, name: str) -> Tensor:
        """One score by its name, `(n,)`; `*_per_token` is the score divided by the sentence's predicted tokens.

        Raises:
            UsageError: If the name is unknown, or these data have no such score.
        """
        if name not in SCORE_NAMES:
            raise UsageError(f"unknown score {name!r}; known scores: {', '.join(SCORE_NAMES)}")
        score: Tensor | None = getattr(self, name.removesuffix("_per_token"))
        if score is None:
            raise UsageError(f"{name} was not estimated: ask for it with marginal='importance' or 'ais'")
        if not name.endswith("_per_token"):
            return score
        if self.num_tokens is None:
            raise UsageError(f"{name} needs data with tokens; use {name.removesuffix('_per_token')!r}")
        return score / self.num_tokens

    def names(self) -> list[str]:
        """The scores that these data have."""
        has_nll, has_tokens = self.nll is not None, self.num_tokens is not None
        return [
            name
            for name in SCORE_NAMES
            if (has_nll or not name.startswith("nll")) and (has_tokens or not name.endswith("_per_token"))
        ]

    def reordered(self, order: Tensor, num_tokens: Tensor | None = None) -> AnomalyScores:
        """The same data in another order, `(n,)` indices; with the tokens of each, in the new order."""
        moved: dict[str, Any] = {
            field.name: value[order]
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        tokens = moved.get("num_tokens") if num_tokens is None else num_tokens.double()
        moved["num_tokens"] = tokens
        return replace(self, **moved)

    @property
    def unreliable_share(self) -> float:
        """Part of the data whose `nll` has an effective sample size below 5; 0 where it was not asked for."""
        return 0.0 if self.ess is None else float((self.ess < MIN_ESS).double().mean())

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able lists, by the name of the score."""
        extra = {f.name: getattr(self, f.name) for f in fields(self) if f.name in ("nll_standard_error", "num_tokens")}
        extra |= {"ess": None if self.ess is None or bool(self.ess.isinf().any()) else self.ess}
        return {
            **{name: self.get(name).tolist() for name in self.names()},
            **{name: value.tolist() for name, value in extra.items() if value is not None},
        }


@torch.no_grad()
def score_data(
    model: LatentEBMPreTrainedModel,
    batches: Iterable[dict[str, Tensor]],
    *,
    marginal: Marginal = "importance",
    num_draws: int = 4,
    num_samples: int | None = None,
    num_levels: int = 30,
    log_partition: LogPartition | None = None,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> AnomalyScores:
    """Scores data under a model.

    Args:
        model: The model; dropout is off while this runs.
        batches: The inputs of the decoder, on the model's device.
        marginal: How `-log p(x)` is estimated: `"importance"` (cheap), `"ais"` (dearer, right where a posterior is no
            Gaussian), or `"none"` to leave it out, which makes scoring many times faster. A model without a latent has
            it exactly, at no cost.
        num_draws: Posterior draws that the other scores are averaged over.
        num_samples: Weights per datum of the estimate, at least 2; by default 32 importance weights, or 16 walks.
        num_levels: Levels of each annealed walk.
        log_partition: log Z of the prior; estimated where not given. It shifts all data alike.
        seed: Of all draws. A datum's draws also depend on its batch.
        on_batch: Called with the size of every finished batch, for a progress bar.

    Raises:
        UsageError: If there is no data, or an option is unknown or out of range.
    """
    if marginal not in get_args(Marginal):
        raise UsageError(f"marginal must be one of {', '.join(get_args(Marginal))}, got {marginal!r}")
    num_samples = _DEFAULT_WEIGHTS[marginal] if num_samples is None else num_samples
    if num_draws < 1 or num_samples < 2:
        raise UsageError(f"num_draws must be positive and num_samples at least 2, got {num_draws} and {num_samples}")
    has_latent = model.config.latent_dim > 0
    with evaluation_mode(model):
        if marginal != "none" and has_latent and log_partition is None:
            log_partition = model_log_partition(model, seed)
        energies, likelihoods, weights = [], [], []
        for number, inputs in enumerate(batches):
            generator = stream(seed, "anomaly scores", number, device=model.device)
            likelihood = model.decoder.likelihood(inputs)
            draws = [
                model.sample_posterior(inputs, generator=generator).latents
                for _ in range(num_draws if has_latent else 1)
            ]
            energies.append(torch.stack([model.prior.energy(z) for z in draws]).double().mean(dim=0).cpu())
            likelihoods.append(torch.stack([likelihood(z) for z in draws]).double().mean(dim=0).cpu())
            if marginal != "none" and has_latent:
                found = posterior_log_weights(
                    model.posterior(inputs, likelihood_weight=1.0), draws[0], method=marginal,
                    num_samples=num_samples, num_levels=num_levels, generator=generator,
                )  # fmt: skip
                weights.append(found.cpu())
            if on_batch is not None:
                on_batch(len(draws[0]))
    if not energies:
        raise UsageError("no data to score")
    energy, log_likelihood = torch.cat(energies), torch.cat(likelihoods)
    scores = AnomalyScores(energy - log_likelihood, -log_likelihood, energy)
    if not has_latent:
        exact = torch.zeros_like(energy), torch.full_like(energy, math.inf)
        return AnomalyScores(-log_likelihood, -log_likelihood, energy, -log_likelihood, *exact)
    if log_partition is None or not weights:
        return scores
    estimate = LogIntegral(torch.cat(weights, dim=1))
    constant = 0.5 * model.config.latent_dim * math.log(2 * math.pi)
    nll = log_partition.value + constant - estimate.value
    return AnomalyScores(
        energy - log_likelihood, -log_likelihood, energy, nll, estimate.standard_error, estimate.ess,
        log_partition=log_partition,
    )  # fmt: skip


def model_log_partition(model: LatentEBMPreTrainedModel, seed: int = 0) -> LogPartition:
    """log Z of a model's prior from as many chains as scores need."""
    generator = stream(seed, "log partition", device=model.device)
    first, second, third = (model.sample_reference(_PARTITION_CHAINS, generator) for _ in range(3))
    return bracket_log_partition(model.prior, (first, second, third), generator=generator)
