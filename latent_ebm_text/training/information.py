"""The controller that sets the likelihood weight, so that the latent carries the information that was asked for."""

from __future__ import annotations

import math
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from latent_ebm_text.models.modeling_base import LatentEBMPreTrainedModel

#: Share of the training for which the weight stays where it starts, so that the encoder learns to tell something.
WARMUP = 0.15
#: The weight there. Under a low one the encoder learns to tell nothing, and never recovers.
INITIAL_WEIGHT = 50.0
#: Bounds of the weight.
WEIGHTS = (0.3, 200.0)
#: By how much the log of the weight can change over a whole training.
_GAIN = 40.0
#: Draws behind the estimate of log Z at a step.
_NUM_DRAWS = 256
#: Iterations of the bridge from them to the prior's own draws, of which a handful suffice.
_BRIDGE_ITERATIONS = 10


def step_size_under(weight: float, step_size: Any) -> Any:
    """The step size of posterior chains under a likelihood weight, in place of the one for a weight of 1 or less.

    The posterior's score grows with the weight, so that steps that suit a weight of 1 overshoot under one of 10: the
    energies of their ends lie 20 nats too high. Steps that are `1 / sqrt(weight)` as long are as stable as before.

    Args:
        weight: The likelihood weight.
        step_size: A number, or a schedule as the samplers take it.
    """
    if isinstance(step_size, dict):
        return {**step_size, **{end: step_size_under(weight, step_size[end]) for end in ("start", "end")}}
    if isinstance(step_size, list):
        return [step_size_under(weight, each) for each in step_size]
    return step_size / max(1.0, weight) ** 0.5


class InformationController:
    """Moves the likelihood weight `w` until the latent carries a target, whatever the corpus, decoder and tokens.

    The information that z carries is `I = E[log q(z | x) - log p(z)]` over data and draws of the encoder, in nats per
    example, under the learned prior; the encoder has no dropout there. After a first part with a constant weight,
    every step adds `40 / steps * log(target / I)` to `log w`, as ControlVAE (Shao et al., 2020) and GECO (Rezende and
    Viola, 2018) do for other quantities.

    log Z of the prior comes from a bridge (Bennett's acceptance ratio; Meng and Wong, 1996) between the prior's own
    draws and a Gaussian with their moments. Importance weights of the Gaussian alone, which bound log Z from below in
    the mean, miss a nat where the energy is far from quadratic; they are taken where they give more, since the bridge
    needs draws of the density itself and chains may lag behind. Draws of N(0, I) would miss more.

    All numbers stay on the device, where the loss takes the weight: no step of a training waits for them.

    Args:
        target: Nats per example.
        total: Number of steps of the training.
        latent_dim: Size of the latent.
        weight: The weight at the first step.
        state: What a checkpoint has stored.
        device: That of the training.

    Attributes:
        weight: The likelihood weight, a float64 scalar.
        information: The information, averaged over the last steps, a float64 scalar; 0 before the first measurement.
    """

    def __init__(
        self,
        target: float,
        total: int,
        latent_dim: int,
        weight: float,
        state: dict[str, Any] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.target, self.total = target, total
        identity = torch.eye(latent_dim, dtype=torch.float64)
        state = state or {
            "weight": weight, "information": 0.0, "measured": 0, "mean": [0.0] * latent_dim,
            "second_moments": identity.tolist(),
        }  # fmt: skip
        self.weight, self.information, self._measured, self._mean, self._second_moments = (
            torch.tensor(state[name], dtype=torch.float64, device=device)
            for name in ("weight", "information", "measured", "mean", "second_moments")
        )

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint stores."""
        return {
            "weight": float(self.weight),
            "information": float(self.information),
            "measured": int(self._measured),
            "mean": self._mean.tolist(),
            "second_moments": self._second_moments.tolist(),
        }

    def metrics(self) -> dict[str, float]:
        """Information and target, for the log."""
        return {"information": float(self.information), "information_target": self.target}

    @staticmethod
    def is_state(value: Any) -> bool:
        """Whether a value can be what `state` has returned."""
        try:
            numbers = torch.tensor([value[name] for name in ("weight", "information", "measured")])
            moments = torch.tensor([value["mean"], *value["second_moments"]])
        except (KeyError, TypeError, ValueError, RuntimeError):
            return False
        size = len(value["mean"])
        return bool(numbers.isfinite().all() and moments.isfinite().all()) and moments.shape == (size + 1, size)

    @torch.no_grad()
    def observe(
        self,
        step: int,
        model: LatentEBMPreTrainedModel,
        inputs: dict[str, Tensor],
        prior_latents: Tensor,
        generator: torch.Generator,
        accelerator: Accelerator,
    ) -> None:
        """Measures the information on a batch, and moves the weight.

        Args:
            step: The step.
            model: The model.
            inputs: The decoder's inputs.
            prior_latents: `(samples, latent_dim)`, draws from the prior.
            generator: Random number generator of the measurement, the same on every process.
            accelerator: Devices and processes; all of them call this.
        """
        assert model.encoder is not None
        keep = 1 - (1 / (self._measured + 1)).clamp(min=min(0.2, 100 / self.total))
        z = prior_latents.double()
        moments = torch.cat([z.mean(dim=0, keepdim=True), z.T @ z / len(z)])
        moments = accelerator.reduce(moments.float(), "mean").double()
        self._mean = keep * self._mean + (1 - keep) * moments[0]
        self._second_moments = keep * self._second_moments + (1 - keep) * moments[1:]

        proposal = model.encoder.propose(inputs)
        latents = proposal.sample(generator)
        energy = model.prior.energy(latents.to(model.decoder.latent_dtype))
        rate = (proposal.log_prob(latents) + energy.float()).mean() + 0.5 * latents.shape[1] * math.log(2 * math.pi)
        log_partition = self._log_partition(model, prior_latents, generator)
        measured = accelerator.reduce(rate.double() + log_partition, "mean")
        is_finite = measured.isfinite()  # where it is not, neither is the loss, which the training deals with
        averaged = keep * self.information + (1 - keep) * measured
        self.information = torch.where(is_finite, averaged, self.information)
        self._measured = self._measured + is_finite
        if step >= WARMUP * self.total:
            error = (self.target / self.information.clamp(min=1e-3 * self.target)).log().clamp(-1.0, 1.0)
            moved = (self.weight * (_GAIN / self.total * error).exp()).clamp(*WEIGHTS)
            self.weight = torch.where(is_finite, moved, self.weight)

    def _log_partition(
        self, model: LatentEBMPreTrainedModel, prior_latents: Tensor, generator: torch.Generator
    ) -> Tensor:
        covariance = self._second_moments - self._mean.outer(self._mean)
        covariance.diagonal().add_(1e-3)
        factor = torch.linalg.cholesky_ex(covariance).L  # without a check, for which the host would wait
        noise = torch.randn(_NUM_DRAWS, len(self._mean), generator=generator, device=generator.device).double()
        centred = (prior_latents.double() - self._mean).T
        own_noise = torch.linalg.solve_triangular(factor, centred, upper=False).T

        def log_ratio(latents: Tensor, noise: Tensor) -> Tensor:
            # exp(-E(z)) over the Gaussian's density; the normalisers of N(0, I) and of it share a power of 2 pi.
            energy = model.prior.energy(latents.to(model.decoder.latent_dtype)).double()
            return factor.diagonal().log().sum() + 0.5 * noise.square().sum(dim=1) - energy

        of_gaussian = log_ratio(self._mean + noise @ factor.T, noise)
        lower = of_gaussian.logsumexp(dim=0) - math.log(_NUM_DRAWS)
        return torch.maximum(lower, _bridge(of_gaussian, log_ratio(prior_latents, own_noise)))


def _bridge(of_reference: Tensor, of_prior: Tensor) -> Tensor:
    """The log of a ratio of normalisers by the best bridge between two densities, with a fixed number of iterations.

    Args:
        of_reference: `(n,)`, logs of the unnormalised density over the reference at draws of the reference.
        of_prior: `(m,)`, the same at draws of the density.

    Returns:
        The log of the density's normaliser, a scalar in nats (Meng and Wong, 1996).
    """
    number = len(of_prior) + len(of_reference)
    log_share = math.log(len(of_prior) / number)  # of the draws of the density among all
    log_rest = of_reference.new_full((), math.log(len(of_reference) / number))
    found = of_reference.logsumexp(dim=0) - math.log(len(of_reference))
    for _ in range(_BRIDGE_ITERATIONS):
        above = of_reference - torch.logaddexp(log_share + of_reference - found, log_rest)
        below = -torch.logaddexp(log_share + of_prior - found, log_rest)
        found = above.logsumexp(dim=0) - below.logsumexp(dim=0) + math.log(len(of_prior) / len(of_reference))
    return found
