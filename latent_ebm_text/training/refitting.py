"""The end of a training: the prior is fitted once more, to posteriors that no longer move."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from torch import Tensor

from latent_ebm_text.data.batching import ordered_batches
from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents.prior import EnergyPrior
from latent_ebm_text.latents.prior_fitting import PriorFit, fit_prior
from latent_ebm_text.latents.rng import derived_generator, derived_seed, normal_
from latent_ebm_text.models.modeling_base import LatentEBMPreTrainedModel
from latent_ebm_text.models.sharing import share_out
from latent_ebm_text.training.arguments import TrainingArguments

#: Examples whose posteriors are fitted, at most; those held out of them, a share and at most.
_MAX_EXAMPLES, _HELD_OUT_SHARE, _MAX_HELD_OUT = 50_000, 0.1, 2000


def check_refitting(model: LatentEBMPreTrainedModel, args: TrainingArguments) -> None:
    """Raises a `UsageError` if the prior cannot be fitted once more."""
    if args.prior_refit_steps > 0 and model.config.latent_dim == 1 and isinstance(model.prior, EnergyPrior):
        raise UsageError("prior_refit_steps needs a latent of 2 dimensions or more: set it to 0, or raise latent_dim")


def refit_prior(
    model: LatentEBMPreTrainedModel, data: Any, args: TrainingArguments, accelerator: Accelerator
) -> PriorFit:
    """Fits the energy to posteriors of training examples, see [`~latent_ebm_text.latents.prior_fitting.fit_prior`].

    While decoder and encoder learn, the posteriors move, and an energy that follows them at a stable learning rate
    lags behind. Posteriors are the encoder's, or draws of the posterior's chains where there is no encoder. The
    processes of `accelerator` share the encoding; the first one fits, and all receive the same weights.

    Args:
        model: The model, whose prior receives the result.
        data: The [`~latent_ebm_text.training.step.TrainingData`].
        args: The settings.
        accelerator: Devices and processes, all of which call this.
    """
    rng = np.random.default_rng(derived_seed(args.seed, "refit"))
    examples = rng.permutation(len(data.batches.lengths))[:_MAX_EXAMPLES]
    batches = ordered_batches(np.asarray(data.batches.lengths)[examples], args.eval_batch_size)

    @torch.no_grad()
    def encode(number: int) -> Tensor:
        loaded = data.load(examples[batches[number]])
        inputs = {name: value.to(accelerator.device) for name, value in loaded.items()}
        if model.encoder is not None:
            proposal = model.encoder.propose(inputs)
            return torch.stack([proposal.mean.float(), proposal.log_std.float().exp()])
        generator = derived_generator(args.seed, "refit draws", number, device=accelerator.device)
        drawn = model.sample_posterior(inputs, generator=generator).latents.float()
        return torch.stack([drawn, torch.zeros_like(drawn)])

    def shown(numbers: range) -> Any:
        return tqdm(numbers, desc="encoding for the prior", unit="batch", dynamic_ncols=True)

    was_training = model.training
    model.eval()
    encoded = torch.cat(share_out(encode, len(batches), accelerator, progress=shown), dim=1)
    encoded = encoded[:, torch.from_numpy(rng.permutation(len(examples))).to(encoded.device)]

    def fit(_: int) -> tuple[PriorFit, dict[str, Tensor]]:
        generator = derived_generator(args.seed, "refit", device=encoded.device)
        num_held_out = max(1, min(_MAX_HELD_OUT, int(_HELD_OUT_SHARE * len(examples))))
        held_out, fitted = encoded[:, :num_held_out], encoded[:, num_held_out:]
        fitted = fitted if fitted.shape[1] else held_out

        def draw(number: int) -> Tensor:
            rows = torch.randint(fitted.shape[1], (number,), generator=generator, device=fitted.device)
            return _draw(fitted[:, rows], generator)

        assert isinstance(model.prior, EnergyPrior)
        found = fit_prior(
            model.prior, draw, _draw(held_out, generator), num_steps=args.prior_refit_steps, seed=args.seed,
            generator=generator, progress=lambda steps: tqdm(steps, desc="fitting the prior", dynamic_ncols=True),
        )  # fmt: skip
        return found, dict(model.prior.state_dict())

    ((found, weights),) = share_out(fit, 1, accelerator)
    model.prior.load_state_dict(weights)
    model.train(was_training)
    return found


def _draw(posteriors: Tensor, generator: torch.Generator) -> Tensor:
    """A draw of each Gaussian, from means and standard deviations `(2, n, latent_dim)`."""
    mean, std = posteriors
    return mean + std * normal_(torch.empty_like(mean), generator)
