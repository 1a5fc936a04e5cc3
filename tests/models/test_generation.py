"""Generation: every option of transformers on top of latents, the model's own sampling, pipelines and the Hub."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
    TextStreamer,
    pipeline,
)
from transformers.generation.streamers import BaseStreamer

from latent_ebm_text import LatentEBMForTextGeneration
from latent_ebm_text.errors import UsageError
from latent_ebm_text.models import text_generation
from latent_ebm_text.networks.lstm import LSTMGenerator
from tests.helpers import BOS, EOS, LATENT_DIM, PAD, VOCAB_SIZE, seeded

Model = LatentEBMForTextGeneration


def greedy_by_hand(model: Model, latents: Tensor, prompt: Tensor, num_words: int) -> Tensor:
    """The most probable next word, again and again; rows that ended are padded."""
    ids, state, words = prompt, None, prompt
    ended = torch.zeros(len(prompt), dtype=torch.bool)
    with torch.no_grad():
        for _ in range(num_words):
            hidden, state = model.decoder.hidden_states(words, latents, state)
            words = model.decoder.logits(hidden[-1]).argmax(dim=-1, keepdim=True).masked_fill(ended[:, None], PAD)
            ids = torch.cat([ids, words], dim=1)
            ended |= words[:, 0] == EOS
    return ids


def many_latents(num: int = 8) -> Tensor:
    return torch.randn(num, LATENT_DIM, generator=seeded(5))


def beginning(num: int) -> Tensor:
    return torch.full((num, 1), BOS)


# How many sentences


def test_num_samples_says_how_many(model: Model) -> None:
    ids = model.generate(num_samples=5, generator=seeded())
    assert ids.shape[0] == 5
    assert ids.dtype == torch.long
    assert bool((ids[:, 0] == BOS).all())
    assert len(model.generate()) == 1
    assert len(torch.unique(ids, dim=0)) > 1, "every sentence has a latent of its own"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_samples": 3, "latents": torch.zeros(2, LATENT_DIM)}, r"{'num_samples': 3, 'latents': 2}"),
        ({"num_samples": 3, "inputs": beginning(2)}, r"{'num_samples': 3, 'input_ids': 2}"),
        ({"latents": torch.zeros(3, LATENT_DIM), "input_ids": beginning(2)}, r"{'latents': 3, 'input_ids': 2}"),
    ],
)
def test_contradicting_numbers_are_refused(model: Model, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"contradicting numbers of sentences: {message}"):
        model.generate(**given)


# Decoding of given latents


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_decoding_is_the_loop_by_hand(model: Model, use_cache: bool) -> None:
    latents = many_latents()
    ids = model.generate(latents=latents, do_sample=False, max_new_tokens=9, use_cache=use_cache)
    expected = greedy_by_hand(model, latents, beginning(8), 9)
    assert torch.equal(ids, expected[:, : ids.shape[1]])
    assert len(torch.unique(ids, dim=0)) > 1, "the words depend on the latents"


@pytest.mark.parametrize(
    "options", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}, {"min_p": 1.0}, {"typical_p": 1.0, "top_k": 1}]
)
def test_the_narrowest_sampling_is_greedy(model: Model, options: dict[str, Any]) -> None:
    latents = many_latents()
    expected = model.generate(latents=latents, do_sample=False)
    assert torch.equal(model.generate(latents=latents, **options), expected)


def test_repetition_penalty_keeps_words_from_coming_twice(model: Model) -> None:
    fixed = {"latents": many_latents(), "do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}
    with_penalty = model.generate(**fixed, repetition_penalty=1e6)
    assert all(len(row.unique()) == 9 for row in with_penalty)
    assert not all(len(row.unique()) == 9 for row in model.generate(**fixed))


@pytest.mark.parametrize("options", [{}, {"num_return_sequences": 3}, {"length_penalty": 0.0, "early_stopping": True}])
def test_beams_do_not_depend_on_the_cache(model: Model, options: dict[str, Any]) -> None:
    fixed = {"latents": many_latents(), "do_sample": False, "num_beams": 4, **options}
    assert torch.equal(model.generate(**fixed), model.generate(**fixed, use_cache=False))


def test_beams_find_what_is_more_probable(model: Model) -> None:
    """As many beams as words find the best of all sentences of two words."""
    latents = many_latents(12)
    fixed = {"latents": latents, "do_sample": False, "max_new_tokens": 2, "min_new_tokens": 2}
    found = model.generate(**fixed, num_beams=VOCAB_SIZE)
    pairs = torch.cartesian_prod(torch.arange(VOCAB_SIZE), torch.arange(VOCAB_SIZE))
    pairs = pairs[(pairs != EOS).all(dim=1)]
    everything = torch.cat([torch.full((len(pairs), 1), BOS), pairs], dim=1)
    with torch.no_grad():
        for row, ids in enumerate(found):
            scores = model.log_prob(everything, latents=latents[row].expand(len(everything), -1))
            assert ids.tolist() == everything[scores.argmax()].tolist()
        greedy = model.generate(**fixed)
        gain = model.log_prob(found, latents=latents) - model.log_prob(greedy, latents=latents)
    assert bool((gain > -1e-5).all())
    assert bool((gain > 0.01).any())


def test_sequences_of_one_latent_stand_together(model: Model) -> None:
    latents = many_latents(3)
    expected = model.generate(latents=latents, do_sample=False).repeat_interleave(2, dim=0)
    assert torch.equal(model.generate(latents=latents, top_k=1, num_return_sequences=2), expected)


def test_lengths(model: Model) -> None:
    model.generation_config.eos_token_id = None  # so that every sentence is as long as it may be
    assert model.generate(num_samples=2).shape == (2, 1 + model.config.max_sequence_length)
    assert model.generate(num_samples=2, max_new_tokens=4).shape == (2, 5)
    assert model.generate(num_samples=2, max_length=4).shape == (2, 4)
    assert model.generate(torch.tensor([[BOS, 5, 6]]), max_length=4).shape == (1, 4)


def test_rows_that_ended_are_padded(model: Model) -> None:
    ids = model.generate(num_samples=200, generator=seeded())
    ends = (ids == EOS).int()
    after = (ends.cumsum(dim=1) - ends).bool()
    assert after.any()
    assert not after.all(dim=1).any()
    assert bool((ids[after] == PAD).all())


# Where the noise comes from


def test_a_generator_repeats_and_leaves_the_global_stream_alone(model: Model) -> None:
    state = torch.get_rng_state()
    first = model.generate(num_samples=6, generator=seeded(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model.generate(num_samples=6, generator=seeded(1)), first)
    assert not torch.equal(model.generate(num_samples=6, generator=seeded(2)), first)
    generator = seeded(1)
    model.generate(num_samples=6, generator=generator)
    assert not torch.equal(model.generate(num_samples=6, generator=generator), first), "a generator moves on"


def test_a_generator_draws_the_words_of_given_latents(model: Model) -> None:
    latents = many_latents()
    first, again, other = (model.generate(latents=latents, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_global_seed_repeats_too(model: Model) -> None:
    torch.manual_seed(0)
    first = model.generate(num_samples=6)
    assert not torch.equal(model.generate(num_samples=6), first)
    torch.manual_seed(0)
    assert torch.equal(model.generate(num_samples=6), first)


def test_the_default_draws_from_the_models_own_distribution(model: Model) -> None:
    assert (model.generation_config.do_sample, model.generation_config.top_k) == (True, 0)
    latent, draws = many_latents(1), 20_000
    words = model.generate(latents=latent.expand(draws, -1), max_new_tokens=1, generator=seeded())[:, 1]
    expected = model(beginning(1), latents=latent).logits[0, -1].detach().softmax(dim=-1)
    frequencies = words.bincount(minlength=VOCAB_SIZE) / draws
    errors = (expected * (1 - expected) / draws).sqrt()
    assert float(((frequencies - expected).abs() / errors).max()) < 4.5  # of 60 words; about 2.7 on average
    assert int((frequencies > 0).sum()) > 50, "no word is cut off"


# What else generate() takes and gives


def test_output_as_a_dictionary_holds_latents_and_energies(model: Model) -> None:
    latents = many_latents(3)
    output = model.generate(latents=latents, return_dict_in_generate=True, output_logits=True, generator=seeded())
    assert torch.equal(output.latents, latents)
    torch.testing.assert_close(output.energies, model.prior.energy(latents).detach())
    torch.testing.assert_close(output.logits[0], model(beginning(3), latents=latents).logits[:, -1].detach())
    plain = model.generate(latents=latents, return_dict_in_generate=True, generator=seeded())
    assert torch.equal(plain.sequences, model.generate(latents=latents, generator=seeded()))
    assert torch.equal(plain.latents, latents)
    torch.testing.assert_close(plain.energies, output.energies)
    drawn = model.generate(num_samples=2, num_return_sequences=2, return_dict_in_generate=True)
    assert (len(drawn.sequences), drawn.latents.shape, drawn.energies.shape) == (4, (2, LATENT_DIM), (2,))


def test_streamers_hear_every_word(
    model: Model, tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    class Listener(BaseStreamer):
        def __init__(self) -> None:
            self.heard: list[Tensor] = []
            self.ended = False

        def put(self, value: Tensor) -> None:
            self.heard.append(value.reshape(len(latents), -1))

        def end(self) -> None:
            self.ended = True

    latents, listener = many_latents(3), Listener()
    ids = model.generate(latents=latents, streamer=listener)
    assert listener.ended
    assert torch.equal(torch.cat(listener.heard, dim=1), ids)

    latents = many_latents(1)
    model.generate(latents=latents, do_sample=False, streamer=TextStreamer(tokenizer, skip_special_tokens=True))
    expected = tokenizer.decode(model.generate(latents=latents, do_sample=False)[0], skip_special_tokens=True)
    assert capsys.readouterr().out.strip() == expected


def test_stopping_criteria_and_logits_processors(model: Model) -> None:
    class AtLength(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
            return torch.full((len(input_ids),), input_ids.shape[1] >= 4)

    class Only(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            return torch.full_like(scores, float("-inf")).index_fill(1, torch.tensor([9]), 0.0)

    ids = model.generate(
        num_samples=2,
        stopping_criteria=StoppingCriteriaList([AtLength()]),
        logits_processor=LogitsProcessorList([Only()]),
    )
    assert ids.tolist() == [[BOS, 9, 9, 9]] * 2


def test_a_generation_config_is_obeyed(model: Model) -> None:
    latents = many_latents()
    config = GenerationConfig(do_sample=False, max_new_tokens=3, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
    expected = model.generate(latents=latents, do_sample=False, max_new_tokens=3)
    assert torch.equal(model.generate(latents=latents, generation_config=config), expected)


def test_key_value_caches_and_misspelt_options_are_refused(model: Model) -> None:
    with pytest.raises(UsageError, match="cache_implementation is for key-value caches"):
        model.generate(cache_implementation="static")
    with pytest.raises(ValueError, match="max_new_token'"):
        model.generate(max_new_token=3)
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        model.generate(prompt_lookup_num_tokens=2)


# Plain sampling, which leaves the machinery of transformers out


class TransformersLoop(Exception):
    """Raised in place of the loop of transformers."""


@pytest.fixture
def watched(model: Model, monkeypatch: pytest.MonkeyPatch) -> Model:
    """The model, with the loop of transformers replaced by an exception."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise TransformersLoop

    monkeypatch.setattr(GenerationMixin, "generate", refuse)
    return model


PLAIN = [
    {}, {"do_sample": False}, {"temperature": 0.7}, {"num_return_sequences": 2}, {"max_new_tokens": 3},
    {"max_length": 4}, {"min_new_tokens": 2}, {"eos_token_id": [EOS, 5]}, {"eos_token_id": None}, {"pad_token_id": 3},
    {"return_dict_in_generate": True}, {"top_p": 1.0, "num_beams": 1, "streamer": None, "output_logits": False},
]  # fmt: skip
NOT_PLAIN = [
    {"top_k": 5}, {"top_k": None}, {"top_p": 0.9}, {"min_p": 0.1}, {"typical_p": 0.5}, {"repetition_penalty": 2.0},
    {"num_beams": 2}, {"do_sample": False, "num_return_sequences": 2}, {"do_sample": False, "temperature": 0.7},
    {"temperature": 0.0}, {"max_new_tokens": 0}, {"max_new_tokens": None},
    {"min_new_tokens": 5, "max_new_tokens": 3}, {"min_length": 3}, {"pad_token_id": None}, {"output_logits": True},
    {"output_scores": True}, {"use_cache": False}, {"generation_config": GenerationConfig(do_sample=False)},
    {"inputs": torch.tensor([[BOS]])}, {"input_ids": torch.tensor([[BOS]])}, {"attention_mask": torch.ones(1, 1)},
    {"streamer": BaseStreamer()}, {"logits_processor": LogitsProcessorList()}, {"no_such_option": 1},
    {"stopping_criteria": StoppingCriteriaList()}, {"bad_words_ids": [[5]]}, {"stop_strings": "a"}, {"max_time": 9.0},
]  # fmt: skip


@pytest.mark.parametrize("options", PLAIN, ids=str)
def test_plain_sampling_leaves_transformers_out(watched: Model, tmp_path: Path, options: dict[str, Any]) -> None:
    watched.generate(**options)
    watched.save_pretrained(tmp_path)
    Model.from_pretrained(tmp_path).generate(**options)


@pytest.mark.parametrize("options", NOT_PLAIN, ids=lambda options: ",".join(options))
def test_whatever_else_is_asked_for_is_left_to_transformers(watched: Model, options: dict[str, Any]) -> None:
    with pytest.raises(TransformersLoop):
        watched.generate(**options)


def test_what_the_model_itself_asks_for_is_left_to_transformers(watched: Model) -> None:
    with pytest.raises(TransformersLoop):
        watched.train().generate()
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TransformersLoop):
        watched.eval().generate()
    watched.generation_config.top_p = 0.9
    with pytest.raises(TransformersLoop):
        watched.generate()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"min_new_tokens": 6},
        {"max_length": 5},
        {"eos_token_id": [EOS, 5, 9]},
        {"eos_token_id": None},
        {"pad_token_id": 3},
    ],
    ids=str,
)
def test_both_loops_decode_alike(model: Model, options: dict[str, Any]) -> None:
    fixed = {"latents": many_latents(200), "do_sample": False, **options}
    expected = model.generate(**fixed, use_cache=False)  # which only the loop of transformers does
    assert torch.equal(model.generate(**fixed), expected)


@pytest.mark.parametrize("sequences", [1, 2, 5])
def test_any_number_of_sentences_is_generated_in_small_batches(
    model: Model, monkeypatch: pytest.MonkeyPatch, sequences: int
) -> None:
    sizes = []

    def generate(self: LSTMGenerator, latents: Tensor, generator: torch.Generator | None = None) -> Tensor:
        sizes.append(len(latents))
        return in_one_batch(self, latents, generator)

    in_one_batch = LSTMGenerator.generate
    monkeypatch.setattr(LSTMGenerator, "generate", generate)
    monkeypatch.setattr(text_generation, "GENERATION_BATCH_SIZE", 3)
    options = {"num_return_sequences": sequences, "temperature": 1e-4, "return_dict_in_generate": True}
    output = model.generate(num_samples=8, generator=seeded(), **options)
    assert max(sizes) <= 3
    assert len(torch.unique(output.latents, dim=0)) == 8
    expected = model.generate(latents=output.latents, do_sample=False, use_cache=False)
    assert torch.equal(output.sequences, expected.repeat_interleave(sequences, dim=0))
    torch.testing.assert_close(output.energies, model.prior.energy(output.latents).detach())
    again = model.generate(num_samples=8, generator=seeded(), num_return_sequences=sequences, temperature=1e-4)
    assert torch.equal(again, output.sequences)


def test_no_sentences_are_refused(model: Model) -> None:
    with pytest.raises(UsageError, match="num_samples must be a positive integer, got 0"):
        model.generate(num_samples=0)
    with pytest.raises(UsageError, match="num_samples must be a positive integer, got '3'"):
        model.generate(num_samples="3")


# Prompts


def test_prompts_are_continued(model: Model) -> None:
    prompt, latents = torch.tensor([[BOS, 7, 8], [BOS, 9, 7]]), many_latents(2)
    ids = model.generate(prompt, latents=latents, do_sample=False, max_new_tokens=6)
    assert torch.equal(ids, greedy_by_hand(model, latents, prompt, 6)[:, : ids.shape[1]])
    alone = model.generate(prompt[0], latents=latents[:1], do_sample=False, max_new_tokens=6)
    assert torch.equal(alone, ids[:1, : alone.shape[1]])


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"use_cache": False}])
def test_prompts_padded_on_the_left_give_what_each_gives_alone(model: Model, options: dict[str, Any]) -> None:
    prompts = [[BOS, 7, 8, 9], [BOS], [BOS, 5]]
    ids = torch.tensor([[PAD] * (4 - len(prompt)) + prompt for prompt in prompts])
    options = {**options, "do_sample": False, "max_new_tokens": 5, "min_new_tokens": 5}
    latents = many_latents(3)
    together = model.generate(ids, attention_mask=(ids != PAD).long(), latents=latents, **options)
    for row, prompt in enumerate(prompts):
        alone = model.generate(torch.tensor([prompt]), latents=latents[row : row + 1], **options)
        assert together[row, 4:].tolist() == alone[0, len(prompt) :].tolist()


def test_the_end_token_of_a_tokenized_prompt_is_left_out(model: Model, tokenizer: PreTrainedTokenizerFast) -> None:
    prompts, latents = ["w03 w04", "w05"], many_latents(2)
    tokenized = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
    open_ended = torch.tensor([[BOS, 7, 8], [PAD, BOS, 9]])
    options = {"latents": latents, "do_sample": False, "max_new_tokens": 4, "min_new_tokens": 4}
    expected = model.generate(open_ended, attention_mask=(open_ended != PAD).long(), **options)
    ids = model.generate(**tokenized, **options)
    assert ids[:, :4].tolist() == [[PAD, BOS, 7, 8], [PAD, PAD, BOS, 9]]
    assert torch.equal(ids[:, 4:], expected[:, 3:])
    assert tokenized["input_ids"][:, -1].tolist() == [EOS, EOS], "the caller's tensor is left alone"


def test_pipeline(model: Model, tokenizer: PreTrainedTokenizerFast) -> None:
    generate = pipeline("text-generation", model=model, tokenizer=tokenizer)
    latents = many_latents(1)
    options = {"latents": latents, "do_sample": False, "max_new_tokens": 5, "return_full_text": False}
    (result,) = generate("w03 w04", **options)
    ids = model.generate(torch.tensor([[BOS, 7, 8]]), latents=latents, do_sample=False, max_new_tokens=5)
    assert result["generated_text"] == tokenizer.decode(ids[0, 3:], skip_special_tokens=True)
    several = generate(["w03", ""], max_new_tokens=3)
    assert several[0][0]["generated_text"].startswith("w03")
    assert several[1][0]["generated_text"] != ""
