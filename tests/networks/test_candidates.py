"""The softmax over a part of the vocabulary: it is unbiased, and evaluation never uses it."""

import math

import pytest
import torch
from torch import Tensor

from latent_ebm_text import LatentEBMTextConfig
from latent_ebm_text.errors import UsageError
from latent_ebm_text.networks import placement
from latent_ebm_text.networks.softmax import CandidateTokens, SoftmaxOutput
from tests.helpers import seeded
from tests.networks.test_lstm import VOCAB, make_batch, make_decoder, make_latents

VOCAB_SIZE, ROWS = 60, 9


def layer() -> tuple[SoftmaxOutput, Tensor, Tensor]:
    """Returns a layer, hidden states and targets."""
    output = SoftmaxOutput(8, VOCAB_SIZE, 5)
    with torch.no_grad():
        for weight in output.parameters():
            weight.normal_(std=0.6, generator=seeded(1))
    return output, torch.randn(ROWS, 8, generator=seeded(2)), torch.randint(VOCAB_SIZE, (ROWS,), generator=seeded(3))


def draw(targets: Tensor, num_drawn: int, seed: int = 0) -> CandidateTokens:
    return CandidateTokens.draw(targets, torch.arange(10), VOCAB_SIZE, num_drawn, seeded(seed))


@pytest.fixture(params=[True, False], ids=["at_host", "elsewhere"])
def anywhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws as on a CPU, and as where the host does not see how many tokens are kept."""
    monkeypatch.setattr(placement, "is_at_host", lambda tensor: request.param)


@pytest.mark.usefixtures("anywhere")
def test_candidates_are_the_frequent_tokens_the_targets_and_some_others_each_once() -> None:
    _, _, targets = layer()
    found = draw(targets, 12)
    kept = set(range(10)) | set(targets.tolist())
    is_filling = found.log_weights == -math.inf
    tokens, log_weights = found.tokens[~is_filling], found.log_weights[~is_filling]
    assert len(set(tokens.tolist())) == len(tokens) == len(kept) + 12
    assert set(tokens[log_weights == 0].tolist()) == kept
    drawn = log_weights[log_weights > 0]
    assert drawn.tolist() == pytest.approx([math.log((VOCAB_SIZE - len(kept)) / 12)] * 12)
    assert torch.equal(found.tokens[found.positions[tokens]], tokens)
    assert (found.positions >= 0).sum() == len(tokens)


@pytest.mark.usefixtures("anywhere")
def test_few_different_numbers_of_candidates_occur_so_that_kernels_are_reused() -> None:
    numbers = {len(draw(torch.arange(10, 10 + kept), 12).tokens) for kept in range(1, 30)}
    assert numbers == {64}


@pytest.mark.usefixtures("anywhere")
def test_with_every_token_drawn_nothing_changes() -> None:
    output, hidden, targets = layer()
    expected, grads = output.log_prob(hidden, targets), []
    for candidates in (None, draw(targets, VOCAB_SIZE)):
        output.zero_grad()
        output.log_prob(hidden, targets, candidates=candidates).sum().backward()
        grads.append([weight.grad.clone() for weight in output.parameters()])
    torch.testing.assert_close(output.log_prob(hidden, targets, candidates=draw(targets, VOCAB_SIZE)), expected)
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.usefixtures("anywhere")
@torch.no_grad()
def test_the_normaliser_is_estimated_without_bias() -> None:
    output, hidden, targets = layer()
    score = output.logits(hidden).gather(1, targets[:, None]).squeeze(1)

    def normaliser(candidates: CandidateTokens | None) -> Tensor:
        return (score - output.log_prob(hidden, targets, candidates=candidates)).exp()

    estimates = torch.stack([normaliser(draw(targets, 15, seed)) for seed in range(400)])
    standard_error = estimates.std(dim=0) / 20
    assert bool((standard_error > 0).all())
    assert bool(((estimates.mean(dim=0) - normaliser(None)).abs() < 4 * standard_error).all())


def test_training_takes_the_candidates_in_loss_and_score_and_evaluation_never() -> None:
    batch, latents = make_batch(), make_latents()
    plain = make_decoder()
    some = make_decoder(frequent_tokens=3, drawn_tokens=2)
    torch.testing.assert_close(some.log_prob(batch, latents), plain.log_prob(batch, latents))
    torch.testing.assert_close(some.score(batch, latents), plain.score(batch, latents))
    some.train()
    torch.manual_seed(0)
    loss = some.log_prob(batch, latents)
    assert not torch.allclose(loss, plain.log_prob(batch, latents))
    torch.manual_seed(0)
    again = some.likelihood(batch)  # the same draw, since the targets are the same
    torch.testing.assert_close(again(latents), loss, rtol=0, atol=2e-5, check_dtype=False)
    latents.requires_grad_(True)
    torch.manual_seed(0)
    expected = torch.autograd.grad(some.log_prob(batch, latents).sum(), latents)[0]
    torch.testing.assert_close(again.score(latents.detach()), expected)
    every = make_decoder(frequent_tokens=3, drawn_tokens=VOCAB).train()
    torch.testing.assert_close(every.log_prob(batch, latents), plain.log_prob(batch, latents))


@pytest.mark.parametrize("settings", [{"frequent_tokens": 5}, {"drawn_tokens": 5}, {"frequent_tokens": -1}])
def test_the_two_numbers_go_together(settings: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="frequent_tokens and drawn_tokens go together"):
        LatentEBMTextConfig(vocab_size=20, **settings)
