"""A model whose prior has been distilled: what it draws, keeps and refuses."""

from pathlib import Path

import pytest
import torch

from latent_ebm_text import LatentEBMForTextGeneration
from latent_ebm_text.commands import evaluate_text
from latent_ebm_text.errors import UsageError
from tests.helpers import seeded, tiny_model


@pytest.fixture(scope="module")
def distilled() -> LatentEBMForTextGeneration:
    model = tiny_model(prior_sampler={"name": "langevin", "num_steps": 40, "step_size": 0.4}).eval()
    quality = model.distil_prior(num_layers=2, num_steps=150, num_draws=4000)
    assert quality.num_draws == 2000
    assert quality.effective_share > 0.7
    assert quality.std_mismatch < 0.1
    return model


def test_draws_come_from_the_flow_and_are_those_of_the_chain(distilled: LatentEBMForTextGeneration) -> None:
    drawn = distilled.sample_prior(4000, generator=seeded())
    assert drawn.acceptance_rate is not None
    exact = distilled.sample_prior(4000, sampler=distilled.prior_sampler, generator=seeded())
    assert exact.acceptance_rate is None
    torch.testing.assert_close(drawn.latents.mean(dim=0), exact.latents.mean(dim=0), atol=0.1, rtol=0)
    torch.testing.assert_close(drawn.latents.std(dim=0), exact.latents.std(dim=0), atol=0.1, rtol=0)
    assert distilled.sample_prior(4, return_trace=True).trace is not None


def test_it_is_saved_with_the_model(distilled: LatentEBMForTextGeneration, tmp_path: Path) -> None:
    distilled.save_pretrained(tmp_path)
    loaded = LatentEBMForTextGeneration.from_pretrained(tmp_path).eval()
    one, other = (model.sample_prior(8, generator=seeded()).latents for model in (distilled, loaded))
    assert torch.equal(one, other)
    ids = [model.generate(num_samples=4, generator=seeded()) for model in (distilled, loaded)]
    assert torch.equal(*ids)


def test_a_prior_that_has_learned_on_is_drawn_from_by_its_chain(
    distilled: LatentEBMForTextGeneration, tmp_path: Path
) -> None:
    distilled.save_pretrained(tmp_path)
    changed = LatentEBMForTextGeneration.from_pretrained(tmp_path)
    assert changed.train().sample_prior(8).acceptance_rate is None, "training draws by the chain"
    assert changed.eval().sample_prior(8).acceptance_rate is not None
    with torch.no_grad():
        changed.prior.out.weight.add_(0.5)
    assert changed.sample_prior(8).acceptance_rate is None


def test_settings_of_a_chain_are_heard(distilled: LatentEBMForTextGeneration, tmp_path: Path) -> None:
    distilled.save_pretrained(tmp_path)
    model = LatentEBMForTextGeneration.from_pretrained(tmp_path).eval()
    assert "by the flow" in evaluate_text.describe_sampling(model, 1.0)
    args = evaluate_text.TextEvaluationArguments(model=str(tmp_path), prior_temperature=0.5)
    evaluate_text._change_prior_sampler(model, args)
    assert "temperature 0.5" in evaluate_text.describe_sampling(model, 1.0)
    assert model.sample_prior(8).acceptance_rate is None


def test_what_cannot_be_distilled_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing to distil"):
        tiny_model(prior_type="gaussian").distil_prior()
    with pytest.raises(UsageError, match="2 dimensions or more"):
        tiny_model(latent_dim=1).distil_prior(num_draws=100)
    with pytest.raises(UsageError, match="num_draws must be at least 100"):
        tiny_model().distil_prior(num_draws=99)
    with pytest.raises(UsageError, match="2 dimensions or more"):
        tiny_model(prior_flow_num_layers=2, prior_type="gaussian")
