"""How well a model explains data through their latents, whether it uses the latent, and whether the prior fits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.bootstrap import Floats, percentile_interval, resampled_sums
from latent_ebm_text.evaluation.estimates import Estimate
from latent_ebm_text.models.sharing import share_out

#: Variance of the posterior mean above which a dimension counts as active (Burda et al., 2016, appendix C).
ACTIVE_VARIANCE = 0.01
#: Latents of other data over which the decoder's prediction is averaged, so that it knows nothing of its datum.
NUM_OTHERS = 8
#: The metrics of this module by their keys in `results.json`, with the names that reports and cards give them.
NAMES = {
    "mse": "reconstruction MSE",
    "reconstruction_nll": "reconstruction NLL",
    "prior_nll": "prior NLL",
    "other_nll": "NLL with z of another datum",
    "averaged_nll": "NLL with z averaged out",
    "latent_gain": "latent gain",
    "information": "information",
    "active_units": "active units",
    "posterior_std": "posterior standard deviation",
    "prior_std": "prior standard deviation",
    "std_mismatch": "posterior-prior mismatch",
    "energy_gap": "energy gap",
}
_LATENT_KEYS = ("active_units", "posterior_std", "prior_std", "std_mismatch", "energy_gap")


@dataclass(frozen=True)
class LatentDraws:
    """Posterior and prior draws for `n` data, and the NLL of the data given each.

    Attributes:
        first: `(n, latent_dim)`, one latent per datum from the model's own posterior sampler.
        second: `(n, latent_dim)`, the same from independent chains.
        prior: `(n, latent_dim)`, from the model's own prior sampler.
        posterior_energy: `(n,)`, energies of `first` under the prior.
        prior_energy: `(n,)`, energies of `prior`.
        reconstruction_nll: `(n,)`, `-log p(x | z)` in nats, averaged over `first` and `second`.
        prior_nll: `(n,)`, `-log p(x | z)` in nats with z from `prior`.
        other_nll: `(n,)`, `-log p(x | z)` in nats with z from the posterior of another datum.
        averaged_nll: `(n,)`, `-log p(x)` in nats with the decoder's prediction averaged over latents of other data.
    """

    first: Tensor
    second: Tensor
    prior: Tensor
    posterior_energy: Tensor
    prior_energy: Tensor
    reconstruction_nll: Tensor
    prior_nll: Tensor
    other_nll: Tensor
    averaged_nll: Tensor


def latents_of_others(latents: Tensor) -> Tensor:
    """For every datum, the latents of a few others; `(n, latent_dim)` to `(others, n, latent_dim)`.

    They lie evenly between all data, which may be ordered by length, and each latent is used as often.
    """
    number = min(NUM_OTHERS, max(1, len(latents) - 1))
    shifts = [len(latents) * other // (number + 1) for other in range(1, number + 1)]
    return torch.stack([latents.roll(-shift, dims=0) for shift in shifts])


def draw_metrics(draws: LatentDraws, unit: str) -> dict[str, Estimate]:
    """The metrics that follow from posterior and prior draws, by the keys of [`NAMES`].

    Those of the latents are left out where there is none.

    Args:
        draws: The draws.
        unit: What a datum is, for the definitions, such as `"image"`.
    """
    metrics = {
        "reconstruction_nll": Estimate.of_mean(
            draws.reconstruction_nll,
            f"-log p(x | z) in nats per {unit}, with z from the model's own posterior sampler, averaged over two "
            "chains",
        ),
        "prior_nll": Estimate.of_mean(
            draws.prior_nll,
            f"-log p(x | z) in nats per {unit}, with z from the model's prior sampler",
        ),
    }
    if draws.first.shape[1] == 0:
        return metrics
    metrics["other_nll"] = Estimate.of_mean(
        draws.other_nll,
        f"-log p(x | z) in nats per {unit}, with z drawn from the posterior of another {unit.split()[0]}",
    )
    metrics["averaged_nll"] = Estimate.of_mean(
        draws.averaged_nll,
        f"-log p(x) in nats per {unit}, with the decoder's prediction averaged over the latents of {NUM_OTHERS} other "
        "data: what the decoder achieves if the latent tells nothing",
    )
    metrics["latent_gain"] = Estimate.of_mean(
        draws.averaged_nll - draws.reconstruction_nll,
        f"what the latent tells, in nats per {unit}: how far the reconstruction NLL lies below the NLL with z "
        "averaged out, datum by datum",
    )
    return metrics | latent_metrics(draws)


def latent_metrics(draws: LatentDraws, *, num_resamples: int = 1000, seed: int = 0) -> dict[str, Estimate]:
    """How posterior and prior draws compare, for a latent of one dimension or more.

    The intervals of `active_units`, of the standard deviations and of their mismatch come from resampling the data and
    the prior draws. They are widened where needed to hold the value itself, which is an extreme of its resamples where
    noise can only add to it.

    Args:
        draws: The draws.
        num_resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.
    """
    posterior_std, prior_std = torch.cat([draws.first, draws.second]).std(dim=0), draws.prior.std(dim=0)
    mismatch = (posterior_std / prior_std - 1).abs()
    values: dict[str, tuple[float, str]] = {
        "active_units": (
            active_units(draws.first, draws.second),
            f"of {len(mismatch)} dimensions, those whose posterior mean varies over the data with a variance above "
            f"{ACTIVE_VARIANCE}, by two standard errors",
        ),
        "posterior_std": (
            float(posterior_std.mean()),
            "mean over dimensions of the standard deviation of posterior draws over the data",
        ),
        "prior_std": (float(prior_std.mean()), "mean over dimensions of the standard deviation of prior draws"),
        "std_mismatch": (
            float(mismatch.mean()),
            "mean over dimensions of |posterior standard deviation / prior standard deviation - 1|",
        ),
    }
    resampled = _resample(draws, num_resamples, seed)
    metrics = {}
    for key, (value, definition) in values.items():
        low, high = percentile_interval(resampled[key])
        metrics[key] = Estimate(
            value,
            (min(low, value), max(high, value)),
            len(draws.first),
            f"{definition}; percentile interval of {num_resamples} bootstrap resamples of data and prior draws",
        )
    variances = [energy.double().var() / len(energy) for energy in (draws.posterior_energy, draws.prior_energy)]
    metrics["energy_gap"] = Estimate.of_normal(
        float(draws.posterior_energy.mean() - draws.prior_energy.mean()),
        float(sum(variances)) ** 0.5,
        len(draws.first),
        "mean energy of posterior draws minus that of prior draws, in nats",
    )
    return metrics


def active_units(first: Tensor, second: Tensor) -> int:
    """Number of dimensions of the latent that depend on the data.

    A dimension is active if the variance over x of its posterior mean exceeds 0.01. The covariance over x of two
    independent posterior draws is an unbiased estimate of that variance; a dimension is counted only if the estimate
    exceeds 0.01 by two of its standard errors, so that noise alone activates a dimension in one case of fifty or less.

    Args:
        first: `(n, latent_dim)` posterior draws, one per data point.
        second: `(n, latent_dim)` draws for the same data points from independent chains.
    """
    products = (first - first.mean(0)) * (second - second.mean(0))  # (n, latent_dim)
    variance = products.sum(0) / (len(first) - 1)
    standard_error = products.std(0) / len(first) ** 0.5
    return int((variance - 2 * standard_error > ACTIVE_VARIANCE).sum())


def _resample(draws: LatentDraws, num_resamples: int, seed: int) -> dict[str, Floats]:
    """Statistics of bootstrap resamples of the latents, `(num_resamples,)` each, from sums of powers and products."""
    n, centre = len(draws.first), torch.cat([draws.first, draws.second]).mean(dim=0)
    x, y, z = (
        (part - middle).double().cpu().numpy()
        for part, middle in ((draws.first, centre), (draws.second, centre), (draws.prior, draws.prior.mean(dim=0)))
    )
    data, prior = np.stack([x, y, x * y, (x * y) ** 2, x**2, y**2], axis=1), np.stack([z, z**2], axis=1)
    means = [
        resampled_sums(part.reshape(n, -1), num_resamples, seed + number).reshape(num_resamples, part.shape[1], -1) / n
        for number, part in enumerate((data, prior))
    ]
    x, y, xy, xy_squared, x_squared, y_squared = means[0].swapaxes(0, 1)
    z, z_squared = means[1].swapaxes(0, 1)
    variance, standard_error = xy - x * y, np.sqrt(np.maximum(xy_squared - xy**2, 0) / n)
    posterior_std = np.sqrt(np.maximum((x_squared + y_squared) / 2 - ((x + y) / 2) ** 2, 0))
    prior_std = np.sqrt(np.maximum(z_squared - z**2, 0))
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample of very few draws may hold but one of them
        mismatch = np.abs(posterior_std / prior_std - 1)
    return {
        "active_units": (variance - 2 * standard_error > ACTIVE_VARIANCE).sum(axis=1),
        "posterior_std": posterior_std.mean(axis=1),
        "prior_std": prior_std.mean(axis=1),
        "std_mismatch": mismatch.mean(axis=1),
    }


def split_results(metrics: Mapping[str, Estimate], n: int) -> dict[str, Any]:
    """Metrics of one split as `results.json` holds them: each with its name and definition, by its key.

    Args:
        metrics: The metrics by the keys of [`NAMES`].
        n: Number of data.

    Returns:
        JSON-able values, with the plain numbers that describe the latents under `latents`; they are zero for a model
        without a latent.
    """
    latents = {key: metrics[key].value if key in metrics else 0 for key in _LATENT_KEYS}
    return {
        **{key: {"name": NAMES[key], **metric.to_dict()} for key, metric in metrics.items()},
        "latents": {**latents, "n": n},
    }


def plain_numbers(results: Mapping[str, Any]) -> dict[str, float]:
    """The values of what [`split_results`] returns, by key, without intervals and definitions."""
    values = {key: results[key]["value"] for key in NAMES if key in results}
    return {**values, **results["latents"]}


@torch.no_grad()
def mutual_information(
    log_likelihood: Callable[[Tensor], Tensor],
    latents: Tensor,
    *,
    likelihood_weight: float = 1.0,
    accelerator: Accelerator | None = None,
) -> Estimate:
    """A lower bound of I(x; z) between data and their posterior draws, in nats.

    The noise-contrastive bound (van den Oord et al., 2018; Poole et al., 2019, section 2.3) is
    `I >= mean_i [ c(x_i, z_i) - log mean_j exp c(x_i, z_j) ]` for any critic `c`; here it is `w log p(x | z)`, the
    best one there is up to a function of x alone, which cancels. The estimate cannot exceed `log n`, its detail
    `limit`. Within half a nat of that limit the information may be any larger, and a `warning` among the details says
    so.

    Args:
        log_likelihood: Latents `(n, latent_dim)` to `log p(x_i | z_i)`, `(n,)`, for the same n data at every call.
        latents: `(n, latent_dim)` posterior draws, one per datum.
        likelihood_weight: `w` of the posterior that they are drawn from.
        accelerator: The processes that share the n pairings of data and latents, all of which call this with the same
            latents; this one alone by default.

    Raises:
        UsageError: If there are fewer than 2 data.
    """
    size = len(latents)
    if size < 2:
        raise UsageError(f"mutual information needs at least 2 data, got {size}")

    def critic(shift: int) -> Tensor:
        return likelihood_weight * log_likelihood(latents.roll(shift, dims=0)).double()

    critics = share_out(critic, size, accelerator)
    total = torch.full_like(critics[0], -math.inf)
    for values in critics:
        total = torch.logaddexp(total, values)
    bounds, limit = critics[0] - total + math.log(size), math.log(size)
    saturated = float(bounds.mean()) > limit - 0.5
    return Estimate.of_mean(
        bounds,
        "noise-contrastive lower bound of I(x; z) in nats between data and their posterior draws; biased downwards, "
        f"at most log n = {limit:.2f}",
        limit=limit,
        warning=f"at least this: the estimator cannot exceed {limit:.1f}" if saturated else None,
    )
