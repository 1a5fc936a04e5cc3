"""Sentences from causal language models: transformers' own loop and the plain one, with and without their cache."""

from typing import Any

import pytest
import torch
from torch import Tensor

from latent_ebm_text import LatentEBMForTextGeneration
from latent_ebm_text.errors import UsageError
from latent_ebm_text.models import text_generation
from latent_ebm_text.networks import generation
from latent_ebm_text.networks.causal_lm import CausalLMGenerator
from latent_ebm_text.networks.generation import TokenChoice
from tests.helpers import BOS, EOS, LATENT_DIM, PAD, VOCAB_SIZE, seeded
from tests.language_models import tiny_wrapped

Model = LatentEBMForTextGeneration
KINDS = [("gpt2", "prefix"), ("llama", "layers"), ("qwen3", "embedding"), ("qwen2", "layers"), ("gemma2", "prefix")]
KINDS += [("llama", "attention"), ("gemma2", "attention")]


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    kind, way = request.param
    return tiny_wrapped(kind, tmp_path_factory.mktemp(kind), latent_injection=way)


def draws(num: int) -> Tensor:
    return torch.randn(num, LATENT_DIM, generator=seeded(5))


def greedy_by_hand(model: Model, latents: Tensor, prompt: Tensor, num_tokens: int) -> Tensor:
    """Appends the most probable next token repeatedly, given the whole sentence; rows that ended are padded."""
    ids, ended = prompt, torch.zeros(len(prompt), dtype=torch.bool)
    with torch.no_grad():
        for _ in range(num_tokens):
            tokens = model.decoder.next_token_logits(ids, latents)[:, -1].argmax(dim=-1).masked_fill(ended, PAD)
            ids, ended = torch.cat([ids, tokens[:, None]], dim=1), ended | (tokens == EOS)
    return ids


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_decoding_is_the_loop_by_hand(model: Model, use_cache: bool) -> None:
    latents = draws(30)
    expected = greedy_by_hand(model, latents, torch.full((30, 1), BOS), 9)
    options = {"latents": latents, "do_sample": False, "max_new_tokens": 9}
    for ids in (model.generate(**options), model.generate(**options, use_cache=use_cache, repetition_penalty=1.0)):
        assert torch.equal(ids, expected[:, : ids.shape[1]])
    assert len(torch.unique(expected, dim=0)) > 5, "the tokens depend on the latents"


@pytest.mark.parametrize("options", [{}, {"num_return_sequences": 3}])
def test_beams_do_not_depend_on_the_cache_and_find_better_ones(model: Model, options: dict[str, Any]) -> None:
    latents = draws(8)
    fixed = {"latents": latents, "do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6}
    found = model.generate(**fixed, num_beams=4, **options)
    assert torch.equal(found, model.generate(**fixed, num_beams=4, **options, use_cache=False))
    with torch.no_grad():
        best = model.log_prob(found[:: options.get("num_return_sequences", 1)], latents=latents)
        greedy = model.log_prob(model.generate(**fixed), latents=latents)
    assert float((best - greedy).sum()) > -1e-3


def test_sequences_of_one_latent_stand_together(model: Model) -> None:
    latents = draws(3)
    expected = model.generate(latents=latents, do_sample=False).repeat_interleave(2, dim=0)
    for options in ({"temperature": 1e-5}, {"top_k": 1}):  # by the plain loop, and by that of transformers
        assert torch.equal(model.generate(latents=latents, num_return_sequences=2, **options), expected)


def test_prompts_are_continued(model: Model) -> None:
    prompt, latents = torch.tensor([[BOS, 7, 8], [BOS, 9, 7]]), draws(2)
    ids = model.generate(prompt, latents=latents, do_sample=False, max_new_tokens=6)
    assert torch.equal(ids, greedy_by_hand(model, latents, prompt, 6)[:, : ids.shape[1]])


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"use_cache": False}], ids=str)
def test_prompts_padded_on_the_left_give_what_each_gives_alone(model: Model, options: dict[str, Any]) -> None:
    prompts = [[BOS, 7, 8, 9], [BOS], [BOS, 5]]
    ids = torch.tensor([[PAD] * (4 - len(prompt)) + prompt for prompt in prompts])
    options = {**options, "do_sample": False, "max_new_tokens": 5, "min_new_tokens": 5}
    latents = draws(3)
    together = model.generate(ids, attention_mask=(ids != PAD).long(), latents=latents, **options)
    for row, prompt in enumerate(prompts):
        alone = model.generate(torch.tensor([prompt]), latents=latents[row : row + 1], **options)
        assert together[row, 4:].tolist() == alone[0, len(prompt) :].tolist()


def test_a_cache_carries_on_where_it_stopped(model: Model) -> None:
    ids, latents = torch.randint(3, VOCAB_SIZE, (2, 7), generator=seeded()), draws(2)
    with torch.no_grad():
        whole = model(ids, latents=latents)
        start = model(ids[:, :3], latents=latents, use_cache=True)
        assert start.past_key_values.get_seq_length() == 3
        rest = model(ids[:, 3:], latents=latents, past_key_values=start.past_key_values)
    torch.testing.assert_close(torch.cat([start.logits, rest.logits], dim=1), whole.logits, rtol=1e-4, atol=1e-4)
    assert rest.past_key_values.get_seq_length() == 7
    assert model(ids, latents=latents, logits_to_keep=2).logits.shape == (2, 2, VOCAB_SIZE)


def test_plain_draws_have_their_exact_probabilities(model: Model) -> None:
    """Pearson's chi-square of the second tokens, over all common first tokens."""
    latent, num = draws(1), 20_000
    ids = model.generate(latents=latent.expand(num, -1), max_new_tokens=2, generator=seeded(3))
    with torch.no_grad():
        start = torch.tensor([[BOS]])
        first = model(start, latents=latent).logits[0, -1].softmax(dim=-1)
        common = int(first.index_fill(0, torch.tensor([EOS]), 0.0).argmax())
        second = model(torch.tensor([[BOS, common]]), latents=latent).logits[0, -1].softmax(dim=-1)
    for drawn, exact in ((ids[:, 1], first), (ids[ids[:, 1] == common, 2], second)):
        kept = exact * len(drawn) > 5
        counts, expected = drawn.bincount(minlength=VOCAB_SIZE)[kept], exact[kept] * len(drawn)
        freedom = int(kept.sum()) - 1
        assert freedom >= 3
        excess = float(((counts - expected).square() / expected).sum()) - freedom
        assert excess < 5 * (2 * freedom) ** 0.5


def test_leaving_out_what_ended_changes_nothing(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    choice = TokenChoice(bos_token_id=BOS, eos_token_ids=(EOS, 9, 11), pad_token_id=PAD, max_new_tokens=12)
    sentences, drawn = CausalLMGenerator(model.decoder, choice), []
    for multiple in (10**6, 1, 16):  # the first one keeps all to the end
        monkeypatch.setattr(generation, "SIZE_MULTIPLE", multiple)
        drawn.append(sentences.generate(draws(100), seeded(4)))
    assert len({int((row == PAD).sum()) for row in drawn[0]}) > 3, "sentences end at several places"
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


def test_any_number_of_sentences_is_generated_in_small_batches(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, in_one_batch = [], CausalLMGenerator.generate

    def generate(self: CausalLMGenerator, latents: Tensor, generator: torch.Generator | None = None) -> Tensor:
        sizes.append(len(latents))
        return in_one_batch(self, latents, generator)

    monkeypatch.setattr(CausalLMGenerator, "generate", generate)
    monkeypatch.setattr(text_generation, "GENERATION_BATCH_SIZE", 3)
    output = model.generate(num_samples=8, generator=seeded(), return_dict_in_generate=True, temperature=1e-5)
    assert sizes == [3, 3, 2]
    expected = greedy_by_hand(model, output.latents, torch.full((8, 1), BOS), 12)
    assert torch.equal(output.sequences, expected[:, : output.sequences.shape[1]])


def test_what_generation_cannot_do_is_refused(model: Model) -> None:
    with pytest.raises(UsageError, match="cache_implementation 'static' is not supported, only 'dynamic' is"):
        model.generate(cache_implementation="static")
    name, weight = list(model.decoder.injection.named_parameters())[-1]
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[0] = float("nan")
    with pytest.raises(UsageError, match=rf"the decoder's weights hold nan or inf, first in injection\.{name}"):
        model.generate(latents=draws(1))
    with torch.no_grad():
        weight.copy_(kept)
