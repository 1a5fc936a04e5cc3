"""Unnormalised log-densities over latents, and their scores in closed form or by automatic differentiation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor


class LogDensity(Protocol):
    """An unnormalised log-density: latents of shape `(batch, latent_dim)` to nats of shape `(batch,)`."""

    def __call__(self, latents: Tensor, /) -> Tensor: ...


@runtime_checkable
class ScoredLogDensity(LogDensity, Protocol):
    """A log-density that also has its score, the gradient of the log-density in the latents, in closed form."""

    def score(self, latents: Tensor, /) -> Tensor:
        """The score, of shape `(batch, latent_dim)`."""
        ...

    def value_and_score(self, latents: Tensor, /) -> tuple[Tensor, Tensor]:
        """The log-density of shape `(batch,)` and the score of shape `(batch, latent_dim)`."""
        ...


@runtime_checkable
class FreezableLogDensity(ScoredLogDensity, Protocol):
    """A log-density with weights that can be frozen for the length of a chain."""

    def frozen(self) -> ScoredLogDensity:
        """Returns the same log-density, with whatever does not depend on the latents computed once."""
        ...


AnyLogDensity = TypeVar("AnyLogDensity", bound=LogDensity)


def frozen_log_density(logdensity: AnyLogDensity) -> AnyLogDensity:
    """Returns the log-density frozen for one chain if it can be frozen, and else unchanged."""
    return logdensity.frozen() if isinstance(logdensity, FreezableLogDensity) else logdensity  # type: ignore


def score_function(logdensity: LogDensity) -> Callable[[Tensor], Tensor]:
    """Returns the score of a log-density for one chain: its closed form if it has one, else by autograd."""
    logdensity = frozen_log_density(logdensity)
    if isinstance(logdensity, ScoredLogDensity):
        return logdensity.score
    return lambda latents: autograd_value_and_score(logdensity, latents)[1]


def value_and_score_function(logdensity: LogDensity) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Returns log-density and score together for one chain: the closed form if there is one, else by autograd."""
    logdensity = frozen_log_density(logdensity)
    if isinstance(logdensity, ScoredLogDensity):
        return logdensity.value_and_score
    return lambda latents: autograd_value_and_score(logdensity, latents)


def autograd_value_and_score(logdensity: LogDensity, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Computes log-density `(batch,)` and score `(batch, latent_dim)` by automatic differentiation.

    Works inside `torch.no_grad()` and `torch.inference_mode()`. Rows must not depend on each other.
    """
    with torch.inference_mode(False), torch.enable_grad():
        position = latents.detach().clone().requires_grad_(True)
        value = logdensity(position)
        (score,) = torch.autograd.grad(value.sum(), position)
    return value.detach(), score
