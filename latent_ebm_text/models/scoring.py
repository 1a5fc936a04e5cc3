"""Anomaly scores of text and images: one function, one class, one orientation. Higher is more anomalous."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from accelerate import Accelerator
from torch import Tensor

from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents.integrals import LogIntegral, LogPartition, bracket_log_partition, posterior_log_weights
from latent_ebm_text.latents.integrals.weights import MIN_ESS
from latent_ebm_text.latents.rng import batch_generators
from latent_ebm_text.latents.samplers import Sampler
from latent_ebm_text.models.inference import LatentInferenceModel
from latent_ebm_text.models.sharing import share_out
from latent_ebm_text.networks.base import GaussianPosterior
from latent_ebm_text.networks.dropout import evaluation_mode

ScoreName = Literal[
    "nll_per_token", "nll", "joint_energy_per_token", "joint_energy", "reconstruction_per_token", "reconstruction",
    "prior_energy", "squared_error",
]  # fmt: skip
SCORE_NAMES: tuple[str, ...] = get_args(ScoreName)
Marginal = Literal["elbo", "importance", "ais", "none"]
#: Weights per example by default. An importance weight costs one value of the density, a walk many of its gradients.
_NUM_SAMPLES: dict[Marginal, int] = {"elbo": 4, "importance": 32, "ais": 16, "none": 2}
#: Share of the data whose effective sample size may be too low before all estimates together count as unreliable.
MAX_UNRELIABLE_SHARE = 0.05


@dataclass(frozen=True)
class AnomalyScores:
    """How anomalous each of `n` sentences or images is under a model. A higher score means more anomalous.

    Every score is a float64 tensor of shape `(n,)` on the CPU, in the order of the data and in nats unless noted.

    - `nll`, the negative log-likelihood `-log p(x)`, is the model's own answer. The integral over z is estimated, so
      it costs the most and comes with a standard error.
    - `joint_energy`, the score of the paper's anomaly detection (section 4.4), needs only posterior draws of z. It is
      the sum of `reconstruction` and `prior_energy`, which tell two kinds of anomalies apart: data that the decoder
      cannot explain, and data whose latents are improbable under the prior.

    For text, `nll`, `joint_energy` and `reconstruction` add up over tokens, so a long sentence scores high whatever it
    says. Compare sentences of different lengths by a score per token, such as `scores.get("nll_per_token")`.

    Attributes:
        joint_energy: `E(z) - log p(x | z)`, averaged over posterior draws of z. This is `-log p(x, z)` up to a
            constant that all data share.
        reconstruction: `-log p(x | z)`, averaged over the same draws.
        prior_energy: `E(z)`, averaged over the same draws.
        latents: `(num_draws, n, latent_dim)`, the draws.
        nll: An estimate of `-log p(x)`, too high on average by at most about half its squared standard error; `None`
            if it was not asked for. It is exact for a model without a latent.
        nll_standard_error: The standard error of each `nll`, see [`~latent_ebm_text.latents.integrals.LogIntegral`].
            The error of log Z, which shifts all data alike, is not part of it. Of the evidence lower bound it is the
            standard error of its mean over the draws, and does not cover the gap of the bound.
        ess: Effective sample size of the weights behind each `nll`. Below 5, the estimate rests on a few lucky draws.
        log_partition: log Z of the prior, which `nll` includes.
        num_tokens: Number of predicted tokens of each sentence, including the end token; `None` for images.
        squared_error: Squared error per pixel of the reconstruction, for pixels in [-1, 1], averaged over the same
            draws (the paper's MSE); `None` for text.
    """

    joint_energy: Tensor
    reconstruction: Tensor
    prior_energy: Tensor
    latents: Tensor
    nll: Tensor | None = None
    nll_standard_error: Tensor | None = None
    ess: Tensor | None = None
    log_partition: LogPartition | None = None
    num_tokens: Tensor | None = None
    squared_error: Tensor | None = None

    def __len__(self) -> int:
        return len(self.joint_energy)

    def get(self, name: str) -> Tensor:
        """One score by its name, `(n,)`; `*_per_token` is the score divided by the number of predicted tokens.

        Raises:
            UsageError: If the name is unknown, or these data have no such score.
        """
        if name not in SCORE_NAMES:
            raise UsageError(f"unknown score {name!r}; known scores: {', '.join(SCORE_NAMES)}")
        total = name.removesuffix("_per_token")
        score: Tensor | None = getattr(self, total)
        if score is None and total == "nll":
            raise UsageError(f"{name} was not estimated: ask for it with marginal='elbo', 'importance' or 'ais'")
        divisor = 1.0 if name == total else self.num_tokens
        if score is None or divisor is None:
            raise UsageError(f"these data have no {name}; their scores: {', '.join(self.names())}")
        return score / divisor

    def names(self) -> list[str]:
        """The names of the scores that these data have."""
        totals = [name.removesuffix("_per_token") for name in SCORE_NAMES]
        return [
            name
            for name, total in zip(SCORE_NAMES, totals, strict=True)
            if getattr(self, total) is not None and (name == total or self.num_tokens is not None)
        ]

    @property
    def unreliable_share(self) -> float:
        """Share of the data whose `nll` has an effective sample size below 5; 0 if `nll` was not asked for."""
        return 0.0 if self.ess is None else float((self.ess < MIN_ESS).double().mean())

    @property
    def reliable(self) -> bool:
        """Whether at most 5 % of the data have too small an effective sample size, and log Z is known to a nat."""
        is_partition_known = self.log_partition is None or self.log_partition.reliable
        return self.unreliable_share <= MAX_UNRELIABLE_SHARE and is_partition_known

    def to_dict(self) -> dict[str, Any]:
        """The scores by name, with `nll_standard_error`, `ess` and `num_tokens`, as JSON-able lists."""
        columns = {name: self.get(name) for name in self.names()}
        for name in ("nll_standard_error", "ess", "num_tokens"):
            column: Tensor | None = getattr(self, name)
            if column is not None and bool(column.isfinite().all()):  # JSON has no infinity, the size of exact values
                columns[name] = column
        return {name: column.tolist() for name, column in columns.items()}


@torch.no_grad()
def score_data(
    model: LatentInferenceModel,
    data: Any,
    *,
    latents: Tensor | None = None,
    marginal: Marginal = "importance",
    num_draws: int = 4,
    num_samples: int | None = None,
    num_levels: int = 30,
    num_fit_steps: int | None = None,
    log_partition: LogPartition | None = None,
    batch_size: int = 128,
    sampler: Sampler | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
    accelerator: Accelerator | None = None,
) -> AnomalyScores:
    """Scores data under a model of any modality; the `score` methods of the models call it.

    `-log p(x) = -log ∫ p(z) p(x | z) dz` is that of the likelihood itself, whatever weight training gave it. Its
    estimates start from a Laplace approximation of every posterior, slightly widened:

    - `marginal="elbo"` is the evidence lower bound of a few draws from the encoder's proposal, tempered to the
      posterior of the likelihood itself, see [`tempered_proposal`]. No chain runs, so it is a hundred times as fast,
      for models with an encoder. With `num_fit_steps` the proposal is fitted further to each posterior, from N(0, I)
      where there is no encoder; the draws that measure the bound are others than those of the fit. It is some nats
      too high, by more for some data than for others: compare it with itself only.
    - `marginal="importance"` weights draws from the approximation (the importance-weighted bound of Burda et al.,
      2016). It is cheap, but where a posterior has several modes it may miss some of them, and then its standard
      error is too small as well.
    - `marginal="ais"` anneals from the approximation to the posterior (annealed importance sampling; Neal, 2001). It
      is more expensive, and accurate for posteriors that are not Gaussian, too.
    - `marginal="none"` leaves `nll` out, which makes scoring many times faster.

    A model without a latent (`latent_dim` 0) has an exact `nll` at no cost. Dropout is off.

    Args:
        model: The model.
        data: Sentences or images, as `posterior_draws` of this model takes them.
        latents: `(n, latent_dim)`, the latent at which each example is scored; by default posterior draws.
        marginal: How `-log p(x)` is estimated.
        num_draws: Posterior draws that the other scores are averaged over; under `"elbo"`, draws of the proposal.
        num_samples: Weights per example of the estimate, at least 2; by default 32 importance weights or 16 walks.
        num_levels: Levels of each annealed walk.
        num_fit_steps: Under `"elbo"`, steps of the fit, by default those of the model's configuration.
        log_partition: log Z of the prior, see [`estimate_log_partition`]; estimated if it is needed and not given.
        batch_size: Examples per batch.
        sampler: A sampler of the posterior draws in place of the model's own.
        generator: Random number generator of all draws, on the model's device; torch's global one by default. The
            posterior draws come first, so that they are the same whether or not `nll` is estimated.
        progress: Whether to show a progress bar.
        accelerator: The processes that share the batches, all of which call this; this one alone by default. The
            scores are those of one process.

    Raises:
        UsageError: If an option is unknown or out of range, or `latents` do not fit.
    """
    if marginal not in get_args(Marginal):
        raise UsageError(f"marginal must be one of {', '.join(get_args(Marginal))}, got {marginal!r}")
    num_samples = _NUM_SAMPLES[marginal] if num_samples is None else num_samples
    if num_draws < 1 or num_samples < 2:
        raise UsageError(f"num_draws must be positive and num_samples at least 2, got {num_draws} and {num_samples}")
    has_latent = model.config.latent_dim > 0
    if not has_latent:
        marginal, num_draws = "none", 1
    data = model._read(data)
    if marginal == "elbo":
        if latents is not None or sampler is not None:
            raise UsageError("marginal='elbo' draws latents from the encoder: leave latents and sampler out")
        fit_steps = model.config.num_fit_steps if num_fit_steps is None else num_fit_steps
        return _elbo_scores(
            model, data, num_draws, fit_steps, log_partition, batch_size, generator, progress, accelerator
        )
    if num_fit_steps is not None:
        raise UsageError(f"num_fit_steps is for marginal='elbo', got marginal={marginal!r}: leave it out")
    if latents is None:
        draws = model.posterior_draws(
            data, num_draws=num_draws, batch_size=batch_size, sampler=sampler, generator=generator, progress=progress,
            accelerator=accelerator,
        )  # fmt: skip
    else:
        draws = model.check_latents(latents, len(data))[None].float().cpu()
    generators: list[torch.Generator | None] = []
    if marginal != "none":
        generators = batch_generators(generator, -(-len(data) // batch_size), model.device)
        if log_partition is None:
            estimates = share_out(lambda _: estimate_log_partition(model, generator=generator), 1, accelerator)
            log_partition = estimates[0]

    def score(indices: Tensor, inputs: dict[str, Tensor], generator: torch.Generator | None) -> tuple[Tensor, ...]:
        batch_draws = draws[:, indices].to(model.device, model.decoder.latent_dtype)
        energy = torch.stack([model.prior.energy(z) for z in batch_draws])
        log_likelihood = torch.stack([model.decoder.log_prob(inputs, z) for z in batch_draws])
        if marginal == "none":
            return energy, log_likelihood
        posterior = model.posterior(inputs, likelihood_weight=1.0)
        return energy, log_likelihood, posterior_log_weights(
            posterior, batch_draws[0], method=marginal, num_samples=num_samples, num_levels=num_levels,
            generator=generator,
        )  # fmt: skip

    energies, log_likelihoods = torch.empty(2, *draws.shape[:2], dtype=torch.float64)
    log_weights = torch.empty(num_samples, len(data), dtype=torch.float64)
    options: dict[str, Any] = {"progress": progress, "accelerator": accelerator}
    with evaluation_mode(model):
        scored = model.map_batches(score, data, batch_size, generators, description="scoring", **options)
    for indices, found in scored:
        for all_values, values in zip((energies, log_likelihoods, log_weights), found, strict=False):
            all_values[:, indices] = values.double().cpu()

    energy, reconstruction = energies.mean(dim=0), -log_likelihoods.mean(dim=0)
    nll: dict[str, Any] = {}
    if not has_latent:
        no_error, all_weights = torch.zeros_like(energy), torch.full_like(energy, math.inf)
        nll = {"nll": reconstruction, "nll_standard_error": no_error, "ess": all_weights}
    elif marginal != "none":
        assert log_partition is not None
        estimate = LogIntegral(log_weights)
        constant = 0.5 * model.config.latent_dim * math.log(2 * math.pi)  # of N(0, I), which E(z) leaves out
        nll = {
            "nll": log_partition.value + constant - estimate.value,
            "nll_standard_error": estimate.standard_error,
            "ess": estimate.ess,
            "log_partition": log_partition,
        }
    return AnomalyScores(energy + reconstruction, reconstruction, energy, draws, **nll)


def _elbo_scores(
    model: LatentInferenceModel,
    data: Any,
    num_draws: int,
    num_fit_steps: int,
    log_partition: LogPartition | None,
    batch_size: int,
    generator: torch.Generator | None,
    progress: bool,
    accelerator: Accelerator | None,
) -> AnomalyScores:
    """The scores of data that were read at draws of a proposal, `nll` being minus the lower bound."""
    if model.encoder is None and num_fit_steps == 0:
        raise UsageError("marginal='elbo' needs a model with an encoder, or num_fit_steps: take marginal='importance'")
    encoder, weight = model.encoder, model.config.likelihood_weight
    generators = batch_generators(generator, -(-len(data) // batch_size), model.device)
    if log_partition is None:
        estimates = share_out(lambda _: estimate_log_partition(model, generator=generator), 1, accelerator)
        log_partition = estimates[0]
    reference = prior_moments(model, generator=generator)

    def score(indices: Tensor, inputs: dict[str, Tensor], generator: torch.Generator | None) -> tuple[Tensor, ...]:
        initial = None if encoder is None else tempered_proposal(encoder.propose(inputs), reference, weight)
        proposal = model.fit_posterior(
            inputs, num_steps=num_fit_steps, initial=initial, likelihood_weight=1.0, generator=generator
        )
        batch_draws = torch.stack([proposal.sample(generator) for _ in range(num_draws)])
        latents = batch_draws.to(model.decoder.latent_dtype)
        energy = torch.stack([model.prior.energy(z) for z in latents])
        likelihood = model.decoder.likelihood(inputs)  # what does not depend on z is computed once
        log_likelihood = torch.stack([likelihood(z) for z in latents])
        return energy, log_likelihood, torch.stack([proposal.log_prob(z) for z in batch_draws]), batch_draws

    draws = torch.empty(num_draws, len(data), model.config.latent_dim)
    energies, log_likelihoods, log_proposals = torch.empty(3, num_draws, len(data), dtype=torch.float64)
    options: dict[str, Any] = {"progress": progress, "accelerator": accelerator}
    with evaluation_mode(model):
        scored = model.map_batches(score, data, batch_size, generators, description="scoring", **options)
    for indices, found in scored:
        for all_values, values in zip((energies, log_likelihoods, log_proposals, draws), found, strict=True):
            all_values[:, indices] = values.to(all_values.dtype).cpu()
    constant = log_partition.value + 0.5 * model.config.latent_dim * math.log(2 * math.pi)
    bounds = energies - log_likelihoods + log_proposals + constant
    error = bounds.std(dim=0) / num_draws**0.5 if num_draws > 1 else torch.full_like(bounds[0], math.inf)
    energy, reconstruction = energies.mean(dim=0), -log_likelihoods.mean(dim=0)
    return AnomalyScores(
        energy + reconstruction, reconstruction, energy, draws, nll=bounds.mean(dim=0), nll_standard_error=error,
        log_partition=log_partition,
    )  # fmt: skip


def prior_moments(
    model: LatentInferenceModel, *, num_draws: int = 1000, generator: torch.Generator | None = None
) -> GaussianPosterior:
    """The mean and the log standard deviation of every dimension under the prior, from draws; each `(latent_dim,)`.

    Args:
        model: The model.
        num_draws: Number of prior draws.
        generator: Random number generator of the chains.
    """
    draws = model.sample_prior(num_draws, generator=generator).latents.float()
    return GaussianPosterior(draws.mean(dim=0), draws.std(dim=0).log())


def tempered_proposal(
    proposal: GaussianPosterior, prior: GaussianPosterior, likelihood_weight: float
) -> GaussianPosterior:
    """A proposal of the posterior `p(z) p(x | z)`, from one that was trained for `p(z) p(x | z)^w`.

    A posterior at a weight w above 1 is too narrow at 1. If prior and posterior are Gaussians with the precisions l0
    and lw, the likelihood has the precision `(lw - l0) / w`, so that at weight 1 the precision is
    `lw / w + (1 - 1 / w) l0`; likewise for precision times mean.

    Args:
        proposal: The encoder's proposal, `(batch, latent_dim)`.
        prior: The moments of the prior, see [`prior_moments`].
        likelihood_weight: `w`, the weight at the end of training.
    """
    prior_precision, precision = (-2 * prior.log_std).exp(), (-2 * proposal.log_std).exp()
    share = 1 / likelihood_weight
    # Below a weight of 1 the prior is taken off; what is left keeps at least a tenth of its precision.
    tempered = (share * precision + (1 - share) * prior_precision).clamp(min=0.1 * prior_precision)
    mean = (share * precision * proposal.mean + (1 - share) * prior_precision * prior.mean) / tempered
    return GaussianPosterior(mean, -0.5 * tempered.log())


def estimate_log_partition(
    model: LatentInferenceModel,
    *,
    num_chains: int = 256,
    num_levels: int = 100,
    num_long_run_steps: int = 300,
    generator: torch.Generator | None = None,
) -> LogPartition:
    """log Z of a model's prior by annealed importance sampling from N(0, I), with a lower and an upper bound.

    See [`~latent_ebm_text.latents.integrals.bracket_log_partition`]; a flat tilt has log Z = 0. All data share log Z,
    so an error in it shifts every `nll` of a model alike and changes no ranking.

    Args:
        model: The model.
        num_chains: Walks in each direction.
        num_levels: Levels of each walk.
        num_long_run_steps: Hamiltonian steps of the chains whose ends start the reverse walks.
        generator: Random number generator of all draws, on the model's device; torch's global one by default.
    """
    first, second, third = (model.sample_reference(num_chains, generator) for _ in range(3))
    return bracket_log_partition(
        model.prior, (first, second, third), num_levels=num_levels, num_long_run_steps=num_long_run_steps,
        generator=generator,
    )  # fmt: skip
