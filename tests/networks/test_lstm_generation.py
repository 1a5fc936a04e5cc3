"""The loop of plain sampling: its draws against exact probabilities, and invariances."""

from typing import Any

import pytest
import torch
from torch import Tensor

from latent_ebm_text import LatentEBMForTextGeneration
from latent_ebm_text.errors import UsageError
from latent_ebm_text.networks import generation
from latent_ebm_text.networks.generation import BLOCK_TOKENS, TokenChoice, draw_tokens
from latent_ebm_text.networks.lstm import LSTMGenerator
from tests.helpers import BOS, EOS, LATENT_DIM, PAD, seeded, tiny_model

Model = LatentEBMForTextGeneration


def generator_of(model: Model, *, num_sentences: int = 1, **choice: Any) -> LSTMGenerator:
    defaults = {"bos_token_id": BOS, "eos_token_ids": (EOS,), "pad_token_id": PAD, "max_new_tokens": 12}
    return LSTMGenerator(model.decoder, TokenChoice(**{**defaults, **choice}), num_sentences)


def many_latents(num: int) -> Tensor:
    return torch.randn(num, LATENT_DIM, generator=seeded(5))


def deviation(drawn: Tensor, probs: Tensor) -> float:
    """Pearson's chi-square of drawn indices against their probabilities, in standard deviations from its mean."""
    expected = probs.double() * len(drawn)
    assert int(drawn.bincount(minlength=len(probs))[expected == 0].sum()) == 0, "a draw of probability zero"
    expected, counts = expected[expected > 0], drawn.bincount(minlength=len(probs))[expected > 0]
    freedom = len(expected) - 1
    return (float(((counts - expected).square() / expected).sum()) - freedom) / (2 * freedom) ** 0.5


# One draw


def test_draws_have_their_probabilities() -> None:
    draws, num_tokens = 400_000, 3 * BLOCK_TOKENS
    probs = torch.randn(num_tokens, generator=seeded(1)).exp()
    probs[::3] = 0
    probs[BLOCK_TOKENS : 2 * BLOCK_TOKENS] = 0  # a block without any
    probs /= probs.sum()
    drawn = torch.cat(
        [draw_tokens(probs.expand(1000, -1), torch.rand(1000, 2, generator=seeded(n))) for n in range(draws // 1000)]
    )
    assert deviation(drawn, probs) < 4


@pytest.mark.parametrize("scale", [1.0, 3.7, 1e-30])
def test_the_outermost_uniforms_draw_tokens_that_have_a_probability(scale: float) -> None:
    rows = 2000
    probs = torch.rand(rows, 2 * BLOCK_TOKENS, generator=seeded()) * scale
    probs[:, :5] = probs[:, BLOCK_TOKENS - 9 : BLOCK_TOKENS + 9] = probs[:, -7:] = 0
    lowest, highest = torch.zeros(rows, 2), torch.full((rows, 2), 1 - 2**-24)  # all that `torch.rand` can give
    assert bool((draw_tokens(probs, lowest) == 5).all())
    assert bool((draw_tokens(probs, highest) == 2 * BLOCK_TOKENS - 8).all())


# Sentences


@pytest.mark.parametrize("options", [{}, {"temperature": 0.6}, {"temperature": 1.7}], ids=str)
def test_sentences_have_their_exact_probabilities(options: dict[str, float]) -> None:
    """Enumerates sentences of up to two tokens, whose probabilities are the softmax of their logits."""
    model, draws, size = tiny_model(vocab_size=8), 40_000, 8
    latents = many_latents(1)
    ids = generator_of(model, max_new_tokens=2, **options).generate(latents.expand(draws, -1), seeded(3))
    with torch.no_grad():
        prefixes = torch.stack([torch.full((size,), BOS), torch.arange(size)], dim=1)
        logits = model(prefixes, latents=latents.expand(size, -1)).logits / options.get("temperature", 1.0)
    first, second = logits[0, 0].softmax(dim=-1), logits[:, 1].softmax(dim=-1)
    second[EOS] = torch.eye(size)[PAD]
    exact = (first[:, None] * second).flatten()
    exact = exact.where(exact * draws > 1e-3, 0)  # the approximation by a chi-square ends well before
    drawn = ids[:, 1] * size + ids[:, 2]
    assert deviation(drawn, exact) < 4


def test_mean_log_probability_of_draws_is_minus_their_entropy(model: Model) -> None:
    """The entropy is that of the first token, summed over the vocabulary."""
    latents = many_latents(1).expand(20_000, -1)
    ids = generator_of(model, max_new_tokens=1).generate(latents, seeded(1))
    with torch.no_grad():
        log_probs = model.log_prob(ids, latents=latents)
        exact = model(ids[:1, :1], latents=latents[:1]).logits[0, -1].log_softmax(dim=-1)
    entropy = -float((exact.exp() * exact).sum())
    assert -float(log_probs.mean()) == pytest.approx(entropy, abs=4 * float(log_probs.std()) / 20_000**0.5)


def test_vocabularies_of_several_blocks() -> None:
    model, draws = tiny_model(vocab_size=2 * BLOCK_TOKENS + 37), 50_000
    latents = many_latents(1)
    tokens = generator_of(model, max_new_tokens=1).generate(latents.expand(draws, -1), seeded(2))[:, 1]
    with torch.no_grad():
        exact = model(torch.tensor([[BOS]]), latents=latents).logits[0, -1].softmax(dim=-1)
    common = exact > 20 / draws
    assert deviation(common.long().cumsum(0).sub(1)[tokens[common[tokens]]], exact[common] / exact[common].sum()) < 4
    assert float((~common[tokens]).double().mean()) == pytest.approx(float(exact[~common].sum()), abs=0.005)


def test_the_smallest_length_forbids_only_the_end(model: Model) -> None:
    latents = many_latents(1).expand(20_000, -1)
    tokens = generator_of(model, max_new_tokens=1, min_new_tokens=1).generate(latents, seeded(2))[:, 1]
    with torch.no_grad():
        logits = model(torch.tensor([[BOS]]), latents=latents[:1]).logits[0, -1]
    logits[EOS] = float("-inf")
    probs = logits.softmax(dim=-1)
    assert deviation(tokens, probs.where(probs > 1e-7, 0)) < 4


@pytest.mark.parametrize("num_sentences", [1, 100_000])  # the second one is worth a table of the tokens' projections
@pytest.mark.parametrize("settings", [{"tie_word_embeddings": True}, {"output_rank": 5}, {}], ids=str)
def test_every_kind_of_output_layer_decodes_as_transformers_does(settings: dict[str, Any], num_sentences: int) -> None:
    model, latents = tiny_model(**settings), many_latents(100)
    expected = model.generate(latents=latents, do_sample=False, use_cache=False)
    sentences = generator_of(model, do_sample=False, num_sentences=num_sentences)
    assert torch.equal(sentences.generate(latents), expected)


# What must not change the draws


@pytest.mark.parametrize("min_new_tokens", [0, 3])
@pytest.mark.parametrize("do_sample", [True, False])
def test_leaving_out_ended_sentences_changes_nothing(
    model: Model, monkeypatch: pytest.MonkeyPatch, do_sample: bool, min_new_tokens: int
) -> None:
    latents = many_latents(300)
    sentences = generator_of(model, do_sample=do_sample, min_new_tokens=min_new_tokens, max_new_tokens=30)
    drawn = []
    for multiple, steps_per_check in ((10**6, 1), (1, 1), (64, 1), (16, 7)):  # the first one keeps all to the end
        monkeypatch.setattr(generation, "SIZE_MULTIPLE", multiple)
        monkeypatch.setitem(generation.STEPS_PER_CHECK, "cpu", steps_per_check)
        drawn.append(sentences.generate(latents, seeded(4)))
    lengths = (drawn[0] == EOS).int().argmax(dim=1)
    assert len(lengths.unique()) > 5, "sentences end at many places"
    assert all(torch.equal(drawn[0], other) for other in drawn[1:])


def test_sentences_end_together_and_the_batch_with_the_longest(model: Model) -> None:
    with torch.no_grad():
        model.decoder.output.bias[EOS] = 1e4
    ids = generator_of(model).generate(many_latents(5), seeded())
    assert ids.tolist() == [[BOS, EOS]] * 5
    ids = generator_of(model, min_new_tokens=3).generate(many_latents(5), seeded())
    assert ids.shape == (5, 5)
    assert bool((ids[:, 4] == EOS).all())
    assert not bool((ids[:, 1:4] == EOS).any())


def test_weights_that_are_nan_are_refused(model: Model) -> None:
    with torch.no_grad():
        model.decoder.output.bias[5] = float("nan")
    with pytest.raises(UsageError, match=r"the decoder's weights hold nan or inf, first in output\.bias"):
        generator_of(model)


def test_tokens_ruled_out_by_their_bias_are_never_drawn(model: Model) -> None:
    with torch.no_grad():
        model.decoder.output.bias[[PAD, BOS, 7]] = float("-inf")
    ids = generator_of(model, eos_token_ids=(), max_new_tokens=20).generate(many_latents(500), seeded())
    assert not bool(torch.isin(ids[:, 1:], torch.tensor([PAD, BOS, 7])).any())
