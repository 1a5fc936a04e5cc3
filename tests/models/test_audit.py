"""The audit of a text model's likelihood, against quadrature over a latent of one dimension."""

import pytest
import torch

from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents.integrals import audit
from latent_ebm_text.models.audit import AuditedTextModel
from tests.helpers import EOS, seeded, tiny_batch, tiny_model, tiny_tokenizer


def test_the_audit_of_a_text_model_brackets_quadrature() -> None:
    model = tiny_model(latent_dim=1, likelihood_weight=3.0)
    with torch.no_grad():
        for weight in model.decoder.parameters():
            weight.mul_(0.3)
    batch = {name: value for name, value in tiny_batch().items() if name != "labels"}
    grid = torch.linspace(-8, 8, 801)[:, None]
    with torch.no_grad():
        prior = model.prior.log_prob(grid).double()
        likelihood = torch.stack([model.log_prob(**batch, latents=z.expand(4, 1)) for z in grid]).double()
    exact = torch.logsumexp(prior, 0) - torch.logsumexp(prior[:, None] + likelihood, 0)
    audited = AuditedTextModel(model, tiny_tokenizer(), seeded(1))
    found = audit(audited, [batch], num_walks=32, num_levels=20, num_simulated=32, generator=seeded())
    torch.testing.assert_close(found.nll, exact, atol=0.15, rtol=0)
    assert found.mean - found.resolution <= float(exact.mean()) + 0.03
    assert found.reliable


def test_simulated_sentences_end_and_belong_to_their_latents() -> None:
    """Under a decoder that follows z strongly, a sentence is more probable under its own latent than another's."""
    model = tiny_model()
    with torch.no_grad():
        for weight in model.decoder.parameters():
            weight.mul_(2.0)
        model.decoder.output.bias[EOS] = 8.0
    batch, latents = AuditedTextModel(model, tiny_tokenizer(), seeded(1)).simulate(64, seeded())
    assert latents.shape[0] == batch["input_ids"].shape[0] == 64
    ends = batch["attention_mask"].sum(dim=1) - 1
    assert bool((batch["input_ids"].gather(1, ends[:, None]) == EOS).all())
    own = model.log_prob(**batch, latents=latents)
    other = model.log_prob(**batch, latents=latents.roll(1, dims=0))
    assert float((own - other).detach().mean()) > 1


def test_a_model_without_a_latent_needs_no_audit() -> None:
    with pytest.raises(UsageError, match="exact likelihood"):
        AuditedTextModel(tiny_model(latent_dim=0, prior_type="gaussian"), tiny_tokenizer())


def test_a_model_whose_sentences_hardly_end_is_not_simulated() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.decoder.output.bias[EOS] = -1e4
    with pytest.raises(UsageError, match="of 20 times 4 sentences 0 ended: train the model first"):
        AuditedTextModel(model, tiny_tokenizer()).simulate(4, seeded())
