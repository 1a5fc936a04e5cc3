"""Gaussians that are fitted to posteriors, one per example, by stochastic variational inference."""

from __future__ import annotations

import torch
from torch import Tensor

from latent_ebm_text.errors import DivergenceError, UsageError, require_positive
from latent_ebm_text.latents.density import LogDensity, score_function
from latent_ebm_text.latents.rng import normal_
from latent_ebm_text.latents.samplers.base import FiniteCheck

#: Decay rates of Adam's averages of the gradient and of its square. A fit has a few dozen steps.
_BETAS = (0.9, 0.99)
#: Gradients in nats per standard deviation below which steps shrink with them. Adam's usual 1e-8 makes steps of full
#: length out of any gradient, however small, and a fit that starts at its end would walk away from it.
_EPSILON = 1.0


@torch.no_grad()
def fit_gaussian(
    logdensity: LogDensity,
    mean: Tensor,
    log_std: Tensor,
    *,
    num_steps: int,
    learning_rate: float = 0.3,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Climbs the evidence lower bound of diagonal Gaussians, row by row, by Adam with reparametrised draws.

    The bound of a row is `E[log p(z)] + H(q)` for `z = mean + std * noise`. Every step draws noise anew, so that a fit
    cannot exploit its noise, and the bound that is measured afterwards on other draws is one. The gradient is that of
    the path alone, `std * score(z) + noise` in the mean, in units of the standard deviation, and `noise` times that in
    the log standard deviation ("sticking the landing", Roeder et al., 2017): where the Gaussian is the posterior
    itself, it is zero for every draw, so that a fit ends there exactly, and does not leave it. A step moves the mean
    by at most about `learning_rate` standard deviations, and a learning rate that falls linearly to zero averages the
    noise out.

    Stochastic variational inference is Hoffman et al. (2013); started from an encoder it is the semi-amortised one of
    Kim et al. (2018), and Latent Thought Models (Kong et al., ICML 2025) fit each text so, by 16 to 64 steps of Adam.

    Args:
        logdensity: The unnormalised log-density of the target, in nats; it may differ from row to row. Its closed-form
            `score` is used if it has one.
        mean: `(batch, latent_dim)`, where the fit starts; not modified.
        log_std: `(batch, latent_dim)`, the log of the standard deviations; not modified.
        num_steps: Number of steps, each with one score.
        learning_rate: First learning rate, in standard deviations of each Gaussian.
        generator: Source of the noise.

    Returns:
        The fitted mean and log standard deviation, both `(batch, latent_dim)`.

    Raises:
        UsageError: If `num_steps` is negative or the learning rate not positive.
        DivergenceError: If a row is not finite; `rows` names it.
    """
    if num_steps < 0:
        raise UsageError(f"num_steps of a fit must be zero or positive, got {num_steps}")
    require_positive("learning_rate", learning_rate)
    score_of = score_function(logdensity)
    fitted = torch.stack([mean, log_std])
    average, square = torch.zeros_like(fitted), torch.zeros_like(fitted)
    for step in range(num_steps):
        std, noise = fitted[1].exp(), normal_(torch.empty_like(mean), generator)
        gradient = std * score_of(fitted[0] + std * noise) + noise
        gradient = torch.stack([gradient, gradient * noise])
        average.lerp_(gradient, 1 - _BETAS[0])
        square.lerp_(gradient.square(), 1 - _BETAS[1])
        corrected = (average / (1 - _BETAS[0] ** (step + 1)), square / (1 - _BETAS[1] ** (step + 1)))
        moved = learning_rate * (1 - step / num_steps) * corrected[0] / (corrected[1].sqrt() + _EPSILON)
        fitted += moved * torch.stack([std, torch.ones_like(std)])

    def require_finite(is_finite: int) -> None:
        if not is_finite:
            rows = (~fitted.isfinite()).any(dim=0).any(dim=-1).nonzero().flatten().tolist()
            raise DivergenceError(
                f"the fit of {len(rows)} of {len(mean)} posteriors is not finite: lower fit_learning_rate (now "
                f"{learning_rate:g}); if it persists, lower prior_learning_rate or raise energy_penalty",
                rows,
            )

    FiniteCheck(fitted.isfinite().all(), require_finite).now_or_later()
    return fitted[0], fitted[1]
