"""Attribute control: densities p(z) p(c | z)^w that impose what heads read from a latent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents.density import ScoredLogDensity, frozen_log_density
from latent_ebm_text.latents.heads import LatentHead


@dataclass(frozen=True)
class Control:
    """One requirement on an attribute: a factor `p(c | z)^w`, or `(1 - p(c | z))^w`, of a controlled density.

    Args:
        head: Reads the attribute: a [`~latent_ebm_text.latents.heads.LatentClassifier`], or a
            [`~latent_ebm_text.latents.heads.LatentRegressor`] where the attribute is a number.
        value: The class or number to impose, or the class to avoid if `negated`.
        weight: `w`, positive; 1 is Bayes' rule, and a larger weight imposes the attribute more strongly.
        negated: Whether the attribute must not have this value.

    Raises:
        UsageError: If the head does not know the value, or the weight is not positive and finite.
    """

    head: LatentHead
    value: str | float
    weight: float = 1.0
    negated: bool = False

    def __post_init__(self) -> None:
        self.head.check_value(self.value, negated=self.negated)
        if not 0 < self.weight < math.inf:
            raise UsageError(
                f"the weight of {self.head.attribute}={self.value} must be positive and finite, got "
                f"{self.weight}; negated=True asks for the opposite"
            )

    def to(self, device: torch.device, dtype: torch.dtype) -> Control:
        """Returns this control on another device and in another precision, with a head of its own."""
        weight = self.head.hidden.weight
        if (weight.device, weight.dtype) == (device, dtype):
            return self
        return replace(self, head=deepcopy(self.head).to(device, dtype))

    def value_and_score(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """The factor's log, `w log p(c | z)` unless negated, `(batch,)`, and its gradient `(batch, latent_dim)`."""
        value, score = self.head.value_and_score(latents, self.value, negated=self.negated)
        return self.weight * value, self.weight * score


class ControlledDensity:
    """`log p(z) + sum of w_i log p(c_i | z)` up to a constant: a product of experts (Hinton, 2002) over latents.

    Like a prior it is a [`~latent_ebm_text.latents.density.ScoredLogDensity`], which any sampler accepts. The first
    factor may be a posterior as well: the density is then that of edits of its data.

    Args:
        density: Log-density of a prior or a posterior with its score.
        controls: One or more requirements.

    Raises:
        UsageError: If there is no control, or a head reads latents of another size than the prior's.
    """

    def __init__(self, density: ScoredLogDensity, controls: Sequence[Control]) -> None:
        if not controls:
            raise UsageError("a controlled density needs at least one control; without any it is the prior")
        latent_dim = getattr(density, "latent_dim", None)
        for control in controls:
            size = control.head.hidden.in_features
            if latent_dim is not None and size != latent_dim:
                raise UsageError(
                    f"the classifier of {control.head.attribute!r} reads latents of {size} dimensions, but the "
                    f"prior's have {latent_dim}: fit it on latents of this model"
                )
        self.density, self.controls = density, tuple(controls)

    def __call__(self, latents: Tensor) -> Tensor:
        """The log-density in nats; `(batch, latent_dim)` to `(batch,)`. It is not differentiable; use `score`."""
        return self.value_and_score(latents)[0]

    def frozen(self) -> ControlledDensity:
        """Returns the same log-density for one chain, with the prior's weights frozen."""
        return ControlledDensity(frozen_log_density(self.density), self.controls)

    @torch.no_grad()
    def score(self, latents: Tensor) -> Tensor:
        """The score of shape `(batch, latent_dim)`."""
        score = self.density.score(latents)
        for control in self.controls:
            score = score + control.value_and_score(latents)[1]
        return score

    @torch.no_grad()
    def value_and_score(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Log-density `(batch,)` and score `(batch, latent_dim)`."""
        value, score = self.density.value_and_score(latents)
        for control in self.controls:
            more = control.value_and_score(latents)
            value, score = value + more[0], score + more[1]
        return value, score
