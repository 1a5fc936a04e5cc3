"""Causal language models as decoders: against plain computations and autograd, and invariances."""

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from latent_ebm_text import LatentEBMForTextGeneration, LatentEBMTextConfig
from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents.density import ScoredLogDensity
from latent_ebm_text.networks import placement
from latent_ebm_text.networks.base import frozen
from latent_ebm_text.networks.injection import LatentAttention
from tests.helpers import BOS, EOS, LATENT_DIM, PAD, VOCAB_SIZE, seeded, tiny_batch, tiny_config
from tests.language_models import SETTINGS, tiny_language_model, tiny_wrapped

Model = LatentEBMForTextGeneration
INJECTIONS = ["prefix", "embedding", "layers", "attention"]


@pytest.fixture(scope="module", params=[(kind, way) for kind in SETTINGS for way in INJECTIONS], ids="-".join)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    kind, way = request.param
    return tiny_wrapped(kind, tmp_path_factory.mktemp(kind), latent_injection=way)


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    batch = tiny_batch()
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}


def draws(num: int = 4, seed: int = 5) -> Tensor:
    return torch.randn(num, LATENT_DIM, generator=seeded(seed))


# --- log p(x | z) and its score ---


def attended_by_hand(injection: LatentAttention, layer: int, latent: Tensor, hidden: Tensor) -> Tensor:
    """What each token reads, `(1, length, width)`: head by head, from the vectors of this layer and from nothing."""
    share, width = injection.num_vectors // injection.num_layers, hidden.shape[-1]
    vectors = latent.view(injection.num_vectors, -1)
    own = range(layer * share, (layer + 1) * share)
    keys, values = (
        torch.stack([*(vectors[v] @ weight[v] + bias[v] for v in own), torch.zeros(width)])
        for weight, bias in ((injection.key, injection.key_bias), (injection.value, injection.value_bias))
    )
    centred = hidden[0] - hidden[0].mean(dim=-1, keepdim=True)
    asked = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() @ injection.query[layer].t()
    size = width // injection.num_heads
    heads = []
    for q, k, v in zip(asked.split(size, dim=-1), keys.split(size, dim=-1), values.split(size, dim=-1), strict=True):
        heads.append((q @ k.t() / size**0.5).softmax(dim=-1) @ v)
    return torch.cat(heads, dim=-1)[None]


def plain_log_prob(model: Model, inputs: dict[str, Tensor], latents: Tensor) -> Tensor:
    """Computes one sentence after the other, without padding, from the logits of the language model itself."""
    decoder, lm = model.decoder, model.decoder.lm
    values = []
    for ids, mask, latent in zip(inputs["input_ids"], inputs["attention_mask"], latents, strict=True):
        ids = ids[: int(mask.sum())][None]
        words, vectors = lm.get_input_embeddings()(ids), decoder.injection(latent[None])
        layers = lm.transformer.h if lm.config.model_type == "gpt2" else lm.model.layers
        handles, prefix = [], 0
        if decoder.latent_injection == "prefix":
            words, prefix = torch.cat([vectors, words], dim=1), vectors.shape[1]
        elif decoder.latent_injection == "embedding":
            words = words + vectors
        elif decoder.latent_injection == "attention":
            for index, layer in enumerate(layers):
                read = partial(attended_by_hand, decoder.injection, index, latent)
                handles.append(
                    layer.register_forward_pre_hook(lambda _, args, r=read: (args[0] + r(args[0]), *args[1:]))
                )
        else:
            for layer, vector in zip(layers, vectors[0], strict=True):
                handles.append(layer.register_forward_pre_hook(lambda _, args, v=vector: (args[0] + v, *args[1:])))
        logits = lm(inputs_embeds=words).logits[:, prefix:-1]
        for handle in handles:
            handle.remove()
        values.append(-torch.nn.functional.cross_entropy(logits[0], ids[0, 1:], reduction="sum"))
    return torch.stack(values)


def test_log_prob_equals_a_plain_computation(model: Model, inputs: dict[str, Tensor]) -> None:
    latents = draws()
    with torch.no_grad():
        expected = plain_log_prob(model, inputs, latents)
        torch.testing.assert_close(model.decoder.log_prob(inputs, latents), expected, rtol=0, atol=5e-4)
        torch.testing.assert_close(model.decoder.likelihood(inputs)(latents), expected, rtol=0, atol=5e-4)
        other = model.decoder.log_prob(inputs, draws(seed=6))
    assert float((other - expected).abs().min()) > 1e-3, "the latent matters"
    assert model.decoder.has_plain_head is (model.decoder.lm.config.model_type != "gemma2")


def test_where_the_host_does_not_see_the_mask_nothing_else_is_computed(
    model: Model, inputs: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = draws()
    weights = [weight for weight in model.decoder.parameters() if weight.requires_grad]
    values, gradients, scores = [], [], []
    for at_host in (True, False):
        monkeypatch.setattr(placement, "is_at_host", lambda tensor, at_host=at_host: at_host)
        each, mean = model.decoder.log_prob(inputs, latents), model.decoder.mean_log_prob(inputs, latents)
        values.append(torch.cat([each, mean[None]]).detach())
        torch.testing.assert_close(mean, each.mean(), rtol=1e-5, atol=0)
        gradients += [torch.autograd.grad(loss, weights, allow_unused=True) for loss in (each.mean(), mean)]
        scores.append(model.decoder.likelihood(inputs).value_and_score(latents))
    assert int(inputs["attention_mask"].min()) == 0, "there is padding"
    torch.testing.assert_close(values[0], values[1], rtol=1e-5, atol=5e-4)
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-3, atol=1e-3)
    for found in gradients[1:]:
        for one, other in zip(gradients[0], found, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_score_equals_autograd_and_finite_differences(model: Model, inputs: dict[str, Tensor]) -> None:
    latents = draws().requires_grad_()
    log_prob = model.decoder.log_prob(inputs, latents)
    (expected,) = torch.autograd.grad(log_prob.sum(), latents)
    assert float(expected.abs().min()) > 1e-4
    likelihood = model.decoder.likelihood(inputs)
    assert isinstance(likelihood, ScoredLogDensity)
    value, score = likelihood.value_and_score(latents)
    torch.testing.assert_close(value, log_prob.detach(), rtol=1e-5, atol=5e-4)
    for each in (score, likelihood.score(latents), model.decoder.score(inputs, latents)):
        torch.testing.assert_close(each, expected, rtol=1e-3, atol=1e-3)
        assert not each.requires_grad
    (through_autograd,) = torch.autograd.grad(likelihood(latents).sum(), latents)
    torch.testing.assert_close(through_autograd, score)

    double = model.double()
    try:
        latents, step = draws().double(), 1e-3
        exact = double.decoder.score(inputs, latents)
        for place in range(LATENT_DIM):
            moved = torch.zeros(LATENT_DIM, dtype=torch.float64)
            moved[place] = step
            with torch.no_grad():
                sides = [double.decoder.log_prob(inputs, latents + sign * moved) for sign in (1, -1)]
            torch.testing.assert_close((sides[0] - sides[1]) / (2 * step), exact[:, place], rtol=1e-3, atol=1e-3)
    finally:
        model.float()


def test_padding_never_changes_a_number(model: Model, inputs: dict[str, Tensor]) -> None:
    latents = draws()
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 5))
    longer = torch.nn.functional.pad(inputs["input_ids"], (0, 5), value=7).masked_fill(mask == 0, VOCAB_SIZE - 1)

    def averaged(inputs: dict[str, Tensor], latents: Tensor) -> Tensor:
        return model.decoder.averaged_log_prob(inputs, torch.stack([latents, latents]))

    torch.testing.assert_close(
        averaged(inputs, latents), model.decoder.log_prob(inputs, latents), rtol=1e-4, atol=1e-3
    )
    for number in (model.decoder.log_prob, model.decoder.score, averaged):
        expected, padded = number(inputs, latents), number({"input_ids": longer, "attention_mask": mask}, latents)
        torch.testing.assert_close(padded, expected, rtol=1e-4, atol=1e-3)


def test_likelihood_leaves_the_decoder_as_it_was(inputs: dict[str, Tensor], tmp_path: Path) -> None:
    model = tiny_wrapped("gpt2", tmp_path, dropout=0.5, token_dropout=0.5).train()
    expected = model.eval().decoder.score(inputs, draws())
    decoder = model.train().decoder
    torch.testing.assert_close(decoder.score(inputs, draws()), expected)  # without dropout
    assert all(module.training for module in decoder.modules())
    assert all(weight.requires_grad and weight.grad is None for weight in decoder.parameters())
    noisy = [decoder.log_prob(inputs, draws()).detach() for _ in range(2)]
    assert not torch.equal(*noisy)
    with torch.inference_mode():
        torch.testing.assert_close(decoder.score(inputs, draws()), expected)


def test_frozen_is_undone_after_an_error() -> None:
    layer = torch.nn.Linear(1, 1)
    with pytest.raises(RuntimeError, match="does not require grad"), frozen(layer):
        layer(torch.ones(1, 1)).sum().backward()
    assert layer.training
    assert layer.weight.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_gives_log_probabilities_in_float32(
    dtype: torch.dtype, inputs: dict[str, Tensor], tmp_path: Path
) -> None:
    full = tiny_wrapped("llama", tmp_path)
    low = tiny_wrapped("llama", tmp_path, dtype=dtype)
    assert {weight.dtype for weight in low.decoder.lm.parameters()} == {dtype}
    assert {weight.dtype for weight in [*low.prior.parameters(), *low.decoder.injection.parameters()]} == {
        torch.float32
    }
    latents = low.sample_prior(4, generator=seeded()).latents
    assert latents.dtype == torch.float32
    value, score = low.decoder.likelihood(inputs).value_and_score(latents)
    assert (value.dtype, score.dtype) == (torch.float32, torch.float32)
    exact = full.decoder.likelihood(inputs)(latents)
    assert float((value - exact).abs().max()) < 0.05 * float(exact.abs().max())
    ids, latents = inputs["input_ids"], latents.requires_grad_()
    words = low(ids, latents=latents).logits.float().log_softmax(dim=-1)[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2)
    expected = (words * inputs["attention_mask"][:, 1:]).sum(dim=1)
    (autograd,) = torch.autograd.grad(expected.sum(), latents)
    torch.testing.assert_close(value, expected.detach())
    assert float(torch.cosine_similarity(score.flatten(), autograd.flatten(), dim=0)) > 0.999
    latents = latents.detach()
    low.save_pretrained(tmp_path / "low")
    loaded = Model.from_pretrained(tmp_path / "low")
    assert {name: weight.dtype for name, weight in loaded.named_parameters()} == {
        name: weight.dtype for name, weight in low.named_parameters()
    }
    torch.testing.assert_close(loaded.decoder.log_prob(inputs, latents), low.decoder.log_prob(inputs, latents))
    assert loaded.generate(num_samples=3, generator=seeded()).shape[0] == 3


# --- training ---


def test_one_training_step_changes_every_weight(model: Model) -> None:
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-6, weight_decay=0.0)
    model(**tiny_batch(), latents=draws(), prior_latents=draws(seed=6)).loss.backward()
    optimizer.step()
    model.zero_grad()
    unchanged = [name for name, weight in model.eval().named_parameters() if torch.equal(weight, before[name])]
    model.load_state_dict(before, strict=False)
    # Positions that no sentence has, and keys' biases, which a softmax over keys cannot see.
    assert [name for name in unchanged if "wpe" not in name and "k_proj.bias" not in name] == []


def test_without_a_latent_it_is_the_language_model(inputs: dict[str, Tensor], tmp_path: Path) -> None:
    model = tiny_wrapped_without_latent("qwen3", tmp_path)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    with torch.no_grad():
        logits = tiny_language_model("qwen3")(ids).logits.log_softmax(dim=-1)[:, :-1]
        expected = (logits.gather(2, ids[:, 1:, None]).squeeze(2) * mask[:, 1:]).sum(dim=1)
        torch.testing.assert_close(model.log_prob(ids, mask, latents=torch.zeros(4, 0)), expected)
    assert model.decoder.score(inputs, torch.zeros(4, 0)).shape == (4, 0)
    assert model.generate(num_samples=3).shape[0] == 3


def tiny_wrapped_without_latent(kind: str, folder: Path) -> Model:
    tiny_language_model(kind).save_pretrained(folder)
    return Model.from_decoder_pretrained(folder, latent_dim=0, prior_type="gaussian", max_sequence_length=12)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_frozen_weights_stay_and_have_no_dropout(kind: str, tmp_path: Path) -> None:
    model = tiny_wrapped(kind, tmp_path / "lm", decoder_training="frozen", dropout=0.3)
    model.save_pretrained(tmp_path / "saved")
    for each in (model, Model.from_pretrained(tmp_path / "saved")):
        each.train()
        learning = {name for name, weight in each.decoder.named_parameters() if weight.requires_grad}
        assert learning == {"injection.weight", "injection.bias"}
        assert not any(module.training for module in each.decoder.lm.modules())
        each(**tiny_batch(), latents=draws(), prior_latents=draws()).loss.backward()
        assert all(weight.grad is None for weight in each.decoder.lm.parameters())
        assert float(each.decoder.injection.weight.grad.abs().min()) > 0


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2"])
def test_adapters_change_nothing_at_first_and_are_all_that_learns(
    kind: str, inputs: dict[str, Tensor], tmp_path: Path
) -> None:
    pytest.importorskip("peft", reason="the extra `lora` is not installed")
    plain = tiny_wrapped(kind, tmp_path / "lm")
    model = tiny_wrapped(kind, tmp_path / "lm", decoder_training="lora", lora_rank=3)
    torch.testing.assert_close(model.decoder.log_prob(inputs, draws()), plain.decoder.log_prob(inputs, draws()))
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = torch.optim.SGD([weight for weight in model.train().parameters() if weight.requires_grad], lr=0.1)
    for _ in range(2):  # one half of each adapter is zero at first, and its other half then has no gradient
        optimizer.zero_grad()
        (-model.decoder.log_prob(inputs, draws()).mean()).backward()
        optimizer.step()
    changed = {
        name for name, weight in model.decoder.named_parameters() if not torch.equal(weight, before[f"decoder.{name}"])
    }
    expected = {name for name, _ in model.decoder.named_parameters() if ".lora_" in name or "injection" in name}
    assert changed == expected
    assert len(expected) > 8
    model.eval().save_pretrained(tmp_path / "saved")
    loaded = Model.from_pretrained(tmp_path / "saved")
    assert torch.equal(loaded.decoder.log_prob(inputs, draws()), model.decoder.log_prob(inputs, draws()))
    assert {name for name, weight in loaded.decoder.named_parameters() if weight.requires_grad} == expected


def test_adapters_name_their_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(UsageError, match=r"needs the package peft: pip install 'latent-ebm-text\[lora\]'"):
        tiny_wrapped("gpt2", tmp_path, decoder_training="lora")


# --- saving ---


def test_a_loaded_model_is_the_saved_one(model: Model, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors"
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded, info = Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is Model
    ids, latents = tiny_batch()["input_ids"], draws()
    assert torch.equal(loaded(ids, latents=latents).logits, model(ids, latents=latents).logits)
    assert torch.equal(
        loaded.generate(num_samples=5, generator=seeded()), model.generate(num_samples=5, generator=seeded())
    )


# --- bad settings ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decoder_training": "lora"}, "'lora' is for a pretrained language model; the built-in 'lstm'"),
        ({"decoder_type": "transformer", "decoder_training": "frozen"}, "the built-in 'transformer' decoder is"),
        ({"latent_injection": "prefix"}, "latent_injection is for transformers; an LSTM has one way to take z"),
        ({"decoder_type": "transformer", "output_rank": 3}, "output_rank is for the LSTM"),
        ({"decoder_type": "transformer", "num_attention_heads": 3}, "twice num_attention_heads, got 16 and 3"),
        ({"decoder_type": "causal_lm"}, "decoder_type 'causal_lm' and decoder_config go together"),
        ({"decoder_config": {}}, "decoder_type 'causal_lm' and decoder_config go together"),
        ({"decoder_type": "transformer", "num_hidden_layers": 0}, "num_hidden_layers must be positive, got 0"),
        ({"num_latent_vectors": 2}, "num_latent_vectors 2 is for transformers, whose layers .* set decoder_type to"),
        ({"num_latent_vectors": 0}, "num_latent_vectors must be positive, got 0"),
        ({"num_latent_vectors": 3}, "latent_dim must be a positive multiple of num_latent_vectors, got 4 and 3"),
        (
            {"decoder_type": "transformer", "num_latent_vectors": 2, "latent_injection": "prefix"},
            "num_latent_vectors 2 and latent_injection 'prefix' do not go together",
        ),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tiny_config(**settings)


def test_layers_must_be_able_to_share_the_vectors() -> None:
    config = tiny_config(decoder_type="transformer", num_hidden_layers=3, num_latent_vectors=4)
    with pytest.raises(
        UsageError, match="num_latent_vectors must be a multiple of the 3 layers that share them, got 4"
    ):
        Model(config)


def test_a_vector_is_read_at_its_own_layer() -> None:
    torch.manual_seed(0)
    decoder = Model(tiny_config(decoder_type="transformer", num_latent_vectors=4)).eval().decoder  # two for each layer
    ids, latents = torch.tensor([[BOS, 5, 6, 7]]), draws(1)
    with torch.no_grad():
        states = {"hidden_states": True}
        decoder.next_token_logits(ids, latents, states=states)
        for vector in range(4):
            moved = latents.clone()
            moved[0, vector] += 1.0
            other = {"hidden_states": True}
            decoder.next_token_logits(ids, moved, states=other)
            same = [torch.equal(a, b) for a, b in zip(states["hidden_states"], other["hidden_states"], strict=True)]
            assert (same[0], same[-1]) == (vector >= 2, False), "what enters the first layer, and leaves the last"


def test_new_vectors_are_read_about_evenly() -> None:
    torch.manual_seed(0)
    attention = LatentAttention(256, 16, 2, 64, 4, std=0.3)
    additions = attention(torch.randn(500, 256, generator=seeded()))
    read = additions[1](torch.randn(500, 3, 64, generator=seeded(1))).detach()
    assert 0.3 < float(read.std()) < 0.6


def test_sentences_must_fit_into_the_positions(tmp_path: Path) -> None:
    message = r"sentences of 37 tokens and a prefix of 4 do not fit into the 40 positions of this gpt2 decoder: .* 36"
    with pytest.raises(UsageError, match=message):
        tiny_wrapped("gpt2", tmp_path, max_sequence_length=37)
    model = tiny_wrapped("gpt2", tmp_path, max_sequence_length=36)
    long = torch.full((1, 38), 5)
    for use in (
        lambda: model.log_prob(long, latents=draws(1)),
        lambda: model.encode(long),
        lambda: model(long, latents=draws(1)),
        lambda: model.generate(num_samples=1, max_new_tokens=37),
    ):
        with pytest.raises(UsageError, match=r"do not fit into the 40 positions"):
            use()


def test_layers_that_cannot_be_found_are_named() -> None:
    lm = tiny_language_model("llama")
    lm.model.layers = torch.nn.Sequential(*lm.model.layers)
    from latent_ebm_text.networks.causal_lm import CausalLMDecoder

    with pytest.raises(UsageError, match="'layers' or 'attention' is not possible for a model of type 'llama'"):
        CausalLMDecoder(lm, LATENT_DIM, latent_injection="layers")


def test_configurations_of_the_lstm_without_the_new_keys_are_those_of_an_lstm() -> None:
    old = {
        key: value
        for key, value in tiny_config().to_dict().items()
        if not key.startswith(("decoder_", "latent_injection", "lora", "prefix", "num_"))
    }
    config = LatentEBMTextConfig.from_dict(old)
    assert (config.decoder_type, config.latent_injection) == ("lstm", None)
    assert {BOS, EOS, PAD} == {config.bos_token_id, config.eos_token_id, config.pad_token_id}
