"""What transformers, peft and torch expect of any model: it works, or an error names the argument."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn

from latent_ebm_text import LatentEBMForTextGeneration as Model
from latent_ebm_text.data.tokenizers import train_bpe_tokenizer, train_unigram_tokenizer
from latent_ebm_text.errors import DataError, UsageError
from latent_ebm_text.models.pretrained import load_language_model
from tests.helpers import BOS, LATENT_DIM, VOCAB_SIZE, seeded, tiny_batch, tiny_config, tiny_model, tiny_tokenizer
from tests.language_models import tiny_language_model, tiny_wrapped

# peft asks transformers by an old name whether activations are checkpointed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TRANSFORMER = {"decoder_type": "transformer", "num_hidden_layers": 2, "num_attention_heads": 2}
LATENTS = torch.linspace(-1, 1, 4 * LATENT_DIM).view(4, LATENT_DIM)


@pytest.fixture(params=["lstm", "transformer", "prefix", "embedding", "attention"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Model:
    if request.param == "lstm":
        return tiny_model()
    if request.param == "transformer":
        return tiny_model(**TRANSFORMER)
    return tiny_wrapped("gpt2", tmp_path / "gpt2", latent_injection=request.param)


@pytest.fixture
def batch() -> dict[str, Tensor]:
    return tiny_batch()


# -------- arguments of forward


@pytest.mark.parametrize(
    "argument",
    [
        lambda ids, mask: {"position_ids": torch.arange(ids.shape[1]).expand_as(ids)},
        lambda ids, mask: {"position_ids": (mask.cumsum(1) - 1).masked_fill(mask == 0, 1)},  # as GPT-2 makes them
        lambda ids, mask: {"token_type_ids": torch.zeros_like(ids)},
        lambda ids, mask: {"cache_position": torch.arange(ids.shape[1])},
        lambda ids, mask: {"inputs_embeds": None, "num_items_in_batch": None, "output_attentions": None},
    ],
    ids=["positions", "padded positions", "token types", "cache positions", "not given"],
)
def test_arguments_that_change_nothing_are_accepted(
    model: Model, batch: dict[str, Tensor], argument: Callable[[Tensor, Tensor], dict[str, Any]]
) -> None:
    ids, mask = batch["input_ids"], batch["attention_mask"]
    given = {"input_ids": ids, "attention_mask": mask, "latents": LATENTS}
    assert torch.equal(model(**given, **argument(ids, mask)).logits, model(**given).logits)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"inputs_embeds": torch.zeros(4, 7, 8)}, "takes no inputs_embeds: p.* give input_ids"),
        ({"num_items_in_batch": torch.tensor(16)}, "takes no num_items_in_batch: the loss is a mean over sentences"),
        (
            {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2, 3]] * 4)},
            "position_ids must count the tokens",
        ),
        ({"position_ids": torch.arange(3)[None]}, "position_ids must count the tokens"),
        ({"token_type_ids": torch.ones(4, 7).long()}, "leave token_type_ids out"),
        ({"shift_labels": torch.zeros(4, 7)}, "no argument 'shift_labels'"),
        ({"input_ids": None}, "needs input_ids"),
        ({"past_key_values": object()}, "past_key_values is the state that forward.. itself returned"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_that_would_change_the_result_are_refused(
    batch: dict[str, Tensor], argument: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        tiny_model()(**{"input_ids": batch["input_ids"], "latents": LATENTS, **argument})


def test_positions_continue_after_those_in_the_cache(model: Model, batch: dict[str, Tensor]) -> None:
    ids, mask = batch["input_ids"], torch.ones_like(batch["input_ids"])
    start = model(ids[:, :3], latents=LATENTS, use_cache=True)
    rest = {"latents": LATENTS, "past_key_values": start.past_key_values}
    with pytest.raises(UsageError, match="position_ids"):
        model(ids[:, 3:], **rest, position_ids=torch.arange(ids.shape[1] - 3)[None])
    positions = (mask.cumsum(1) - 1)[:, 3:]
    logits = model(ids[:, 3:], **rest, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(logits, model(ids, latents=LATENTS).logits[:, 3:])


def test_hidden_states_lead_to_the_logits(model: Model, batch: dict[str, Tensor]) -> None:
    ids = batch["input_ids"]
    output = model(ids, latents=LATENTS, output_hidden_states=True)
    assert output.hidden_states[0].shape[:2] == output.hidden_states[-1].shape[:2] == ids.shape
    torch.testing.assert_close(model.decoder.logits(output.hidden_states[-1]), output.logits)
    last = model(ids, latents=LATENTS, output_hidden_states=[-1])
    assert torch.equal(last.hidden_states[-1], output.hidden_states[-1])
    assert last.hidden_states[0] is None
    assert model(ids, latents=LATENTS).hidden_states is None
    model.config.output_hidden_states = True
    assert model(ids, latents=LATENTS).hidden_states is not None
    with pytest.raises(UsageError, match="output_hidden_states is for logits"):
        model.train()(**batch)


def test_attentions_need_an_attention_that_returns_them(batch: dict[str, Tensor], tmp_path: Path) -> None:
    ids = batch["input_ids"]
    wanted = {"latents": LATENTS, "output_attentions": True}
    with pytest.raises(UsageError, match="a recurrent decoder has no attention"):
        tiny_model()(ids, **wanted)
    tiny_wrapped("gpt2", tmp_path / "gpt2").save_pretrained(tmp_path / "model")
    with pytest.raises(UsageError, match="only the attention of attn_implementation='eager'"):
        Model.from_pretrained(tmp_path / "model", attn_implementation="sdpa")(ids, **wanted)
    model = Model.from_pretrained(tmp_path / "model", attn_implementation="eager")
    attentions = model(ids, **wanted).attentions
    assert attentions[0].shape == (4, 2, ids.shape[1], ids.shape[1] + model.config.prefix_length)
    torch.testing.assert_close(attentions[0].sum(dim=-1), torch.ones(4, 2, ids.shape[1]))


def test_the_configuration_may_ask_for_tuples(model: Model, batch: dict[str, Tensor]) -> None:
    model.config.return_dict = False
    assert isinstance(model(batch["input_ids"], latents=LATENTS), tuple)


def test_labels_give_loss_and_logits_in_evaluation(model: Model, batch: dict[str, Tensor]) -> None:
    output = model(**batch, generator=seeded())
    expected = model(batch["input_ids"], attention_mask=batch["attention_mask"], latents=output.latents).logits
    assert torch.equal(output.logits, expected)
    assert model.train()(**batch).logits is None


def test_logits_of_prior_draws_are_announced(batch: dict[str, Tensor], caplog: pytest.LogCaptureFixture) -> None:
    tiny_model()(batch["input_ids"])
    tiny_model()(batch["input_ids"], latents=LATENTS)
    assert caplog.text.count("no measure of their likelihood") == 1
    caplog.clear()
    tiny_model(latent_dim=0, prior_type="gaussian")(batch["input_ids"])
    assert caplog.text == ""


# -------- generation


@pytest.mark.parametrize("train", [train_bpe_tokenizer, train_unigram_tokenizer])
def test_strings_stop_sentences(train: Callable[..., Any]) -> None:
    tokenizer = train(["the bank recovers slowly", "a fox runs home", "the fox recovers"] * 30, vocab_size=300)
    model = tiny_model(vocab_size=len(tokenizer))
    ids = model.generate(num_samples=50, stop_strings=["a"], tokenizer=tokenizer, generator=seeded())
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    stopped = [text for text in texts if "a" in text]
    assert stopped
    for text in stopped:
        *before, last = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert "a" not in tokenizer.decode(before)
        assert "a" in tokenizer.decode([last])


def test_strings_cannot_stop_words() -> None:
    with pytest.raises(UsageError, match="stop_strings needs a tokenizer that can spell any string"):
        tiny_model().generate(stop_strings=["w01"], tokenizer=tiny_tokenizer())


def test_a_seed_is_refused_with_what_to_give_in_its_place() -> None:
    with pytest.raises(UsageError, match=r"torch.Generator\(\).manual_seed\(seed\)"):
        tiny_model().generate(num_samples=2, seed=0)


def test_a_prompt_longer_than_max_length_is_refused_by_that_name(model: Model) -> None:
    prompt = torch.tensor([[BOS, 5, 6, 7]])
    with pytest.raises(UsageError, match="max_length=3 leaves no room after the prompt of 4 tokens: give more than 4"):
        model.generate(prompt, max_length=3)
    with pytest.raises(UsageError, match="max_length=1 leaves no room after the beginning token"):
        model.generate(max_length=1)
    with pytest.raises(UsageError, match="give input_ids in place of inputs_embeds"):
        model.generate(inputs_embeds=torch.zeros(1, 3, 8))


# -------- embeddings


@pytest.mark.parametrize("size", [VOCAB_SIZE + 9, VOCAB_SIZE - 9])
@pytest.mark.parametrize("mean_resizing", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"output_rank": 5},
        {"tie_word_embeddings": True},
        {"encoder_hidden_size": 8, "frequent_tokens": 55, "drawn_tokens": 3},
        {**TRANSFORMER, "encoder_hidden_size": 8},
        {**TRANSFORMER, "tie_word_embeddings": True},
        {"wrapped": "gpt2"},
        {"wrapped": "qwen2", "decoder_training": "frozen"},
        {"wrapped": "gpt2", "decoder_training": "lora"},
    ],
    ids=str,
)
def test_everything_follows_the_number_of_tokens(
    settings: dict[str, Any], size: int, mean_resizing: bool, tmp_path: Path
) -> None:
    settings = dict(settings)
    kind = settings.pop("wrapped", None)
    model = tiny_wrapped(kind, tmp_path / "lm", **settings) if kind else tiny_model(**settings)
    ids, kept = torch.tensor([[1, 7, 8, 9, 2]] * 4), min(size, VOCAB_SIZE)
    with torch.no_grad():
        before = model(ids, latents=LATENTS).logits
    learning = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert len(model.resize_token_embeddings(size, mean_resizing=mean_resizing).weight) == size
    assert model.config.vocab_size == model.vocab_size == size
    with torch.no_grad():
        logits = model(ids, latents=LATENTS).logits
    assert logits.shape[-1] == size
    torch.testing.assert_close(logits[..., :kept], before[..., :kept])
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == learning
    if mean_resizing:  # so that new tokens are about as probable as the others
        assert bool((logits[..., kept:] - before.mean(dim=-1, keepdim=True)).abs().lt(0.05).all())

    last = torch.tensor([[BOS, size - 1, 8, 9, 2]] * 4)
    model.train()(last, labels=last).loss.backward()
    model.eval().generate(num_samples=3)
    assert torch.isfinite(model.score(last, marginal="none").joint_energy).all()
    model.save_pretrained(tmp_path / "model")
    loaded = Model.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded(last, latents=LATENTS).logits, model(last, latents=LATENTS).logits)


def test_resizing_as_transformers_has_it() -> None:
    model = tiny_model()
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    assert len(model.resize_token_embeddings(pad_to_multiple_of=64).weight) == model.config.vocab_size == 64
    with pytest.raises(UsageError, match="new_num_tokens=2 would cut off the special token 2"):
        model.resize_token_embeddings(2)


@pytest.mark.parametrize("settings", [{}, {"tie_word_embeddings": True}, {**TRANSFORMER, "tie_word_embeddings": True}])
def test_an_embedding_of_the_same_shape_can_be_put_in(settings: dict[str, Any], batch: dict[str, Tensor]) -> None:
    model, ids = tiny_model(**settings), batch["input_ids"]
    embedding = nn.Embedding.from_pretrained(model.get_input_embeddings().weight.detach().flip(0), freeze=False)
    before = model(ids, latents=LATENTS).logits
    model.set_input_embeddings(embedding)
    assert model.get_input_embeddings() is embedding
    logits = model(VOCAB_SIZE - 1 - ids, latents=LATENTS).logits
    if model.config.tie_word_embeddings:
        bias = model.decoder.output.bias if settings == {"tie_word_embeddings": True} else torch.zeros(VOCAB_SIZE)
        logits, before = (logits - bias).flip(-1), before - bias
    torch.testing.assert_close(logits, before)
    with pytest.raises(UsageError, match=r"takes an embedding of shape .*; the number of tokens is changed by resize"):
        model.set_input_embeddings(nn.Embedding(10, 10))


# -------- loading


def test_the_attention_asked_for_is_that_of_the_language_model(batch: dict[str, Tensor], tmp_path: Path) -> None:
    ids = batch["input_ids"]
    tiny_wrapped("gpt2", tmp_path / "lm").save_pretrained(tmp_path / "gpt2")
    tiny_model(**TRANSFORMER).save_pretrained(tmp_path / "llama")
    for name in ("gpt2", "llama"):
        eager, other = (Model.from_pretrained(tmp_path / name, attn_implementation=way) for way in ("eager", "sdpa"))
        for model, way in ((eager, "eager"), (other, "sdpa")):
            assert model.decoder.lm.config._attn_implementation == model.config._attn_implementation == way
        torch.testing.assert_close(eager(ids, latents=LATENTS).logits, other(ids, latents=LATENTS).logits)
        eager.set_attn_implementation("sdpa")
        assert eager.decoder.lm.config._attn_implementation == "sdpa"
    made = Model.from_decoder_pretrained(tmp_path / "lm", attn_implementation="eager", max_sequence_length=12)
    assert made.decoder.lm.config._attn_implementation == made.config._attn_implementation == "eager"
    with pytest.raises(ImportError, match="FlashAttention2"):
        Model.from_pretrained(tmp_path / "gpt2", attn_implementation="flash_attention_2")


def test_quantised_weights_are_refused_wherever_they_are_asked_for(tmp_path: Path) -> None:
    four_bits = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_language_model("gpt2").save_pretrained(tmp_path / "lm")
    refused = pytest.raises(
        (UsageError, DataError), match="quantization_config is not supported.*use a model that is not quant"
    )
    with refused:
        Model.from_pretrained(tmp_path / "model", quantization_config=four_bits)
    with refused:
        Model.from_decoder_pretrained(tmp_path / "lm", quantization_config=four_bits)
    with refused:
        load_language_model(tmp_path / "lm", quantization_config=four_bits)
    with refused:
        tiny_config(quantization_config=four_bits)
    for folder, load in (("model", Model.from_pretrained), ("lm", Model.from_decoder_pretrained)):
        file = tmp_path / folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": four_bits}))
        with refused:
            load(tmp_path / folder)


def test_a_model_is_made_of_a_configuration_and_weights_alone(model: Model, batch: dict[str, Tensor]) -> None:
    weights = model.state_dict()
    loaded = Model.from_pretrained(None, config=model.config, state_dict=weights)
    given = {"input_ids": batch["input_ids"], "latents": LATENTS}
    assert torch.equal(loaded(**given).logits, model(**given).logits)


# -------- gradient checkpointing, export


def enable_checkpointing(model: Model, *options: Any) -> None:
    """By the name of transformers from 5.23 on, or the one before; the order of the options has stayed."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(*options)


@pytest.mark.parametrize("injection", ["prefix", "embedding", "layers", "attention"])
@pytest.mark.parametrize("options", [(), (None, 2), ({"use_reentrant": True},)], ids=str)
def test_checkpointed_activations_give_the_same_gradients(
    injection: str, options: tuple[Any, ...], batch: dict[str, Tensor], tmp_path: Path
) -> None:
    dropped = {"embedding_dropout": 0.3, "token_dropout": 0.2}
    model = tiny_wrapped(
        "llama", tmp_path / "lm", latent_injection=injection, encoder_hidden_size=8, **dropped
    ).train()

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        torch.manual_seed(0)
        model(**batch, generator=seeded()).loss.backward()
        return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}

    expected = gradients()
    enable_checkpointing(model, *options)
    found = gradients()
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name])
    ids = model.eval().generate(num_samples=2, top_k=5, max_new_tokens=4)
    assert ids.shape[0] == 2


def test_an_lstm_has_no_activations_to_checkpoint() -> None:
    with pytest.raises(ValueError, match="does not support (activation|gradient) checkpointing"):
        enable_checkpointing(tiny_model())


@pytest.mark.filterwarnings("ignore:The tensor attributes self.decoder.lstm:UserWarning")  # of every nn.LSTM
def test_logits_are_exported_and_nothing_else(model: Model, batch: dict[str, Tensor]) -> None:
    given = {"input_ids": batch["input_ids"], "latents": LATENTS}
    size = torch.export.Dim("batch", min=2)
    program = torch.export.export(model, (), given, dynamic_shapes={name: {0: size} for name in given}, strict=False)
    larger = {name: torch.cat([values, values.flip(0)]) for name, values in given.items()}
    torch.testing.assert_close(program.module()(**larger).logits, model(**larger).logits)
    for more in ({"attention_mask": batch["attention_mask"]}, {"labels": batch["labels"]}, {"latents": None}):
        with pytest.raises(UsageError, match="torch.export records the logits of whole sentences for given latents"):
            torch.export.export(model, (), {**given, **more}, strict=False)


# -------- peft


def test_adapters_of_peft_train(batch: dict[str, Tensor], tmp_path: Path) -> None:
    model = tiny_wrapped("llama", tmp_path / "lm")
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "lm_head"], modules_to_save=["prior"])
    assert model.decoder.has_plain_head
    adapted = get_peft_model(model, config).train()
    learning = {name: weight for name, weight in adapted.named_parameters() if weight.requires_grad}
    before = {name: weight.detach().clone() for name, weight in learning.items()}
    optimizer = torch.optim.SGD(learning.values(), lr=0.1)
    for _ in range(2):  # the first step leaves one factor of an adapter at zero
        optimizer.zero_grad()
        adapted(**batch).loss.backward()
        optimizer.step()
    assert any("lm_head" in name for name in learning)
    assert any("prior" in name for name in learning)
    assert [name for name, weight in learning.items() if torch.equal(weight, before[name])] == []
    assert adapted.generate(num_samples=2).shape[0] == 2


def test_a_prior_that_does_not_learn_is_announced(
    batch: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    get_peft_model(tiny_wrapped("llama", tmp_path / "lm"), config).train()(**batch)
    assert "the prior does not learn, since none of its weights requires a gradient" in caplog.text


@pytest.mark.parametrize(
    ("settings", "target", "name"),
    [({}, ["initial_hidden"], "decoder.initial_hidden"), (TRANSFORMER, "all-linear", "prior.hidden.0")],
)
def test_adapters_that_chains_would_not_see_are_refused(
    settings: dict[str, Any], target: Any, name: str, batch: dict[str, Tensor]
) -> None:
    adapted = get_peft_model(tiny_model(**settings), LoraConfig(task_type="CAUSAL_LM", target_modules=target)).train()
    with pytest.raises(UsageError, match=f"the adapter of {name} would change the loss but not the chains"):
        adapted(**batch)


@pytest.mark.parametrize(
    ("kind", "message"),
    [(PromptTuningConfig, "takes no inputs_embeds"), (PrefixTuningConfig, "past_key_values is")],
)
def test_learned_prompts_are_refused(kind: Any, message: str, batch: dict[str, Tensor]) -> None:
    size = {"num_virtual_tokens": 2, "num_layers": 2, "token_dim": 16, "num_attention_heads": 2}
    with pytest.raises(UsageError, match=message):
        get_peft_model(tiny_model(**TRANSFORMER), kind(task_type="CAUSAL_LM", **size)).train()(**batch)
