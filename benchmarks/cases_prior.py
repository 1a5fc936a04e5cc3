"""The prior's Langevin chain against plain autograd, `torchebm`'s sampler and a flow distilled from the prior."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from cases_posterior import seeded
from plain import PlainModel
from products import prior_products
from sizes import Sizes
from timing import Case, comparison, in_turn, milliseconds, ratios, row, table
from torch import Tensor

from latent_ebm_text import EnergyPrior
from latent_ebm_text.latents.distillation import DistilledPrior


def prior_chains(sizes: Sizes, repeats: int) -> Iterator[str]:
    """The prior's chain from N(0, I), against plain autograd and against `LangevinDynamics` of torchebm.

    All draw their noise from torch's global stream, one normal of the latents' shape a step: started from the same
    seed they walk the same path, and it is the ends of the whole chains that are compared.
    """
    cases = [partial(plain_chain, sizes, batch) for batch in sizes.prior_batches]
    has_torchebm = importlib.util.find_spec("torchebm") is not None
    if has_torchebm:
        cases += [partial(torchebm_chain, sizes, batch) for batch in sizes.prior_batches]
    yield from comparison(cases, repeats)
    if not has_torchebm:
        yield ""
        yield "Not compared with torchebm, which is not installed: `pip install -c constraints.txt -e '.[bench]'`."


def distilled_priors(sizes: Sizes, repeats: int) -> Iterator[str]:
    """Draws of the flow that a prior is distilled into, each corrected once by the energy, against the prior's chain.

    The time of a flow does not depend on its weights, which are random here; how well a fitted one stands for the
    prior is what `distil_prior` returns.
    """
    yield from table(("draws", "chain, ms (min / median)", "flow, ms (min / median)", "chain / flow (min / median)"))
    model = sizes.model(tied=True).eval()
    chain = model.prior_sampler
    flow = DistilledPrior(sizes.latent, num_layers=6).to(sizes.device).flow
    for batch in sizes.prior_batches:
        by_chain = partial(model.sample_prior, batch, sampler=chain)
        by_flow = partial(flow.sample, batch, model.prior)
        by_chain(), by_flow()  # the warm-up
        slow, fast = in_turn(by_chain, by_flow, repeats=repeats)
        yield row([f"{batch:,}", milliseconds(slow), milliseconds(fast), ratios(slow, fast)])


def plain_chain(sizes: Sizes, batch: int) -> Case:
    """Our chain and a loop over `torch.autograd.grad`."""
    model = sizes.model(tied=True)
    plain, start = PlainModel(model), torch.randn(batch, sizes.latent, device=sizes.device)
    return Case(
        f"prior-chain, {sizes.prior_steps} steps, batch {batch}, against plain autograd",
        seeded(lambda: [model.sample_prior(batch, initial_latents=start).latents]),
        seeded(lambda: [plain.sample_prior(start)]),
        prior_products(sizes, batch, sizes.prior_steps),
    )


def torchebm_chain(sizes: Sizes, batch: int) -> Case:
    """Our chain and torchebm's, whose step size `eta` is our `s^2 / 2`."""
    model = sizes.model(tied=True)
    start, step_size = torch.randn(batch, sizes.latent, device=sizes.device), model.config.prior_sampler["step_size"]
    sampler = _torchebm_sampler(model.prior, step_size**2 / 2, sizes.device)

    def theirs() -> Sequence[Tensor]:
        return [sampler.sample(x=start, n_steps=sizes.prior_steps)]

    return Case(
        f"prior-chain, {sizes.prior_steps} steps, batch {batch}, against torchebm",
        seeded(lambda: [model.sample_prior(batch, initial_latents=start).latents]),
        seeded(theirs),
        prior_products(sizes, batch, sizes.prior_steps),
    )


def _torchebm_sampler(prior: EnergyPrior, step_size: float, device: str):  # type: ignore[no-untyped-def]
    from torchebm.core import BaseModel  # type: ignore[import-not-found]
    from torchebm.samplers import LangevinDynamics  # type: ignore[import-not-found]

    class Energy(BaseModel):  # type: ignore[misc]
        """The same weights, with the gradient that torchebm takes of any energy."""

        def __init__(self) -> None:
            super().__init__(device=device)
            self.prior = prior

        def forward(self, x: Tensor) -> Tensor:
            return self.prior.energy(x)

    return LangevinDynamics(Energy(), step_size=step_size, noise_scale=1.0, device=device)
