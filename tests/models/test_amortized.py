"""An encoder beside an energy prior: it proposes, Langevin dynamics corrects, each part learns its own gradient."""

from typing import Any

import pytest
import torch
from torch import Tensor

from latent_ebm_text import LangevinSampler, LatentEBMForTextGeneration
from latent_ebm_text.networks.base import GaussianPosterior
from tests.helpers import LATENT_DIM, seeded, tiny_batch, tiny_model


def model_with_encoder(**settings: Any) -> LatentEBMForTextGeneration:
    return tiny_model(encoder_hidden_size=10, **settings)


def sentences() -> dict[str, Tensor]:
    return {name: value for name, value in tiny_batch().items() if name != "labels"}


def gradients(model: LatentEBMForTextGeneration, part: str) -> dict[str, Tensor]:
    module = model.get_submodule(part)
    return {name: weight.grad.clone() for name, weight in module.named_parameters() if weight.grad is not None}


def prior_draws(model: LatentEBMForTextGeneration) -> Tensor:
    return model.sample_prior(4, generator=seeded(7)).latents


def test_log_prob_is_that_of_torch_distributions() -> None:
    posterior = GaussianPosterior(torch.randn(6, 3, generator=seeded(1)), torch.randn(6, 3, generator=seeded(2)))
    latents = torch.randn(6, 3, generator=seeded(3))
    law = torch.distributions.Normal(posterior.mean, posterior.log_std.exp())
    torch.testing.assert_close(posterior.log_prob(latents), law.log_prob(latents).sum(dim=1))


def test_chains_of_new_sentences_start_from_the_proposal() -> None:
    model, batch = model_with_encoder(), sentences()
    generator = seeded(3)
    start = model.encoder(batch).sample(generator).detach()
    expected = model.posterior_sampler.sample(start, model.posterior(batch), generator=generator).latents
    torch.testing.assert_close(model.encode(**batch, generator=seeded(3)), expected)


def test_an_encoder_learns_with_dropout_and_proposes_without() -> None:
    model, batch = model_with_encoder(embedding_dropout=0.5), sentences()
    exact = model.encoder(batch).mean
    model.train()
    noisy = [model.encoder(batch).mean for _ in range(2)]
    assert not torch.equal(noisy[0], exact)
    assert not torch.equal(noisy[0], noisy[1])
    torch.testing.assert_close(model.encoder.propose(batch).mean, exact.detach())
    assert model.encoder.training, "asking for a proposal leaves the mode alone"


@pytest.mark.parametrize("weight", [1.0, 4.0])
def test_the_variational_gradient_of_every_part(weight: float) -> None:
    """Prior: as in the paper, once. Encoder: the evidence lower bound's, by autograd through everything."""
    model, batch = model_with_encoder(energy_penalty=0.1), tiny_batch()
    negatives = prior_draws(model)
    torch.manual_seed(5)
    output = model(**batch, prior_latents=negatives, likelihood_weight=weight)
    output.loss.backward()
    found = {part: gradients(model, part) for part in ("prior", "encoder", "decoder")}

    model.zero_grad()
    model.objective(sentences(), output.latents, negatives).loss.backward()
    torch.testing.assert_close(found["prior"], gradients(model, "prior"))
    torch.testing.assert_close(found["decoder"], gradients(model, "decoder"))

    model.zero_grad()
    torch.manual_seed(5)
    proposal = model.encoder(sentences())
    latents = proposal.sample()
    law = torch.distributions.Normal(proposal.mean, proposal.log_std.exp())
    # KL(q || p) as log q - log p at the draw, its entropy part in closed form, as the gradient has it.
    divergence = -law.entropy().sum(dim=1) + 0.5 * (proposal.mean.square() + (2 * proposal.log_std).exp()).sum(dim=1)
    divergence = divergence - model.prior.tilt(latents)
    bound = model.decoder.log_prob(sentences(), latents) - divergence / weight
    (-bound.mean()).backward()
    torch.testing.assert_close(found["encoder"], gradients(model, "encoder"))


def test_an_encoder_learns_the_results_of_the_chains() -> None:
    model, batch = model_with_encoder(), tiny_batch()
    latents, negatives = torch.randn(4, LATENT_DIM, generator=seeded(1)), prior_draws(model)
    model(**batch, latents=latents, prior_latents=negatives).loss.backward()
    found = {part: gradients(model, part) for part in ("prior", "encoder", "decoder")}
    model.zero_grad()
    (-model.encoder(sentences()).log_prob(latents).mean()).backward()
    torch.testing.assert_close(found["encoder"], gradients(model, "encoder"))
    assert not gradients(model, "decoder"), "the chains' results carry no gradient"
    without = tiny_model()
    without.load_state_dict(model.state_dict(), strict=False)
    without(**batch, latents=latents, prior_latents=negatives).loss.backward()
    torch.testing.assert_close(found["decoder"], gradients(without, "decoder"))
    torch.testing.assert_close(found["prior"], gradients(without, "prior"))


def test_a_proposal_near_the_posterior_needs_fewer_steps() -> None:
    """An encoder fitted to long chains: five steps from it are nearer to the posterior than five from N(0, I)."""
    model, batch = model_with_encoder(), sentences()
    long_run = LangevinSampler(300, 0.1)
    optimizer = torch.optim.Adam(model.encoder.parameters(), lr=0.02)
    draws = [model.sample_posterior(batch, sampler=long_run, generator=seeded(s)).latents for s in range(20)]
    for _ in range(15):
        for latents in draws:
            optimizer.zero_grad()
            (-model.encoder(batch).log_prob(latents).mean()).backward()
            optimizer.step()
    few = LangevinSampler(5, 0.1)

    def target(latents: Tensor) -> Tensor:
        return model.posterior(batch)(latents).detach()

    def level(initial: Tensor | None) -> float:
        values = [
            target(model.sample_posterior(batch, initial_latents=initial, sampler=few, generator=seeded(s)).latents)
            for s in range(30)
        ]
        return float(torch.stack(values).mean())

    arrived = float(torch.stack([target(latents) for latents in draws]).mean())
    amortised, cold = level(None), level(model.sample_reference(4, seeded(9)))
    assert abs(amortised - arrived) < 0.5 * abs(cold - arrived)
