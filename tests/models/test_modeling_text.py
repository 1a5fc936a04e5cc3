"""The text model: its objective and gradients, its logits, saving and loading, and its methods around the latent."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from latent_ebm_text import LangevinSampler, LatentEBMForTextGeneration, LatentEBMTextConfig
from latent_ebm_text.errors import DataError, UsageError
from latent_ebm_text.models import sentences as sentences_module
from tests.helpers import BOS, EOS, LATENT_DIM, VOCAB_SIZE, seeded, tiny_batch, tiny_model

Model = LatentEBMForTextGeneration


def prior_draws(num_samples: int = 6) -> Tensor:
    return torch.randn(num_samples, LATENT_DIM, generator=seeded(2))


# The objective


def test_loss_is_the_sum_of_its_parts_computed_by_hand(batch: dict[str, Tensor], latents: Tensor) -> None:
    model = tiny_model(energy_penalty=0.1)
    other = prior_draws()
    output = model(**batch, latents=latents, prior_latents=other)
    reconstruction = -model.log_prob(batch["input_ids"], batch["attention_mask"], latents=latents).mean()
    gap = model.prior.energy(latents).mean() - model.prior.energy(other).mean()
    penalty = 0.1 * (model.prior.tilt(latents).square().mean() + model.prior.tilt(other).square().mean())
    assert penalty.item() > 1e-3
    torch.testing.assert_close(output.reconstruction_loss, reconstruction)
    torch.testing.assert_close(output.prior_loss, gap)
    torch.testing.assert_close(output.penalty, penalty)
    torch.testing.assert_close(output.loss, reconstruction + gap + penalty)
    torch.testing.assert_close(output.latents, latents)


def test_each_part_trains_only_its_own_weights(model: Model, batch: dict[str, Tensor], latents: Tensor) -> None:
    def trained_by(part: str) -> set[str]:
        model.zero_grad()
        model(**batch, latents=latents, prior_latents=prior_draws())[part].backward()
        return {name.split(".")[0] for name, weight in model.named_parameters() if weight.grad is not None}

    assert trained_by("reconstruction_loss") == {"decoder"}
    assert trained_by("prior_loss") == {"prior"}


@pytest.mark.parametrize("settings", [{}, {"tie_word_embeddings": True}, {"output_rank": 3}])
def test_one_training_step_changes_every_weight(settings: dict[str, Any], batch: dict[str, Tensor]) -> None:
    model = tiny_model(dropout=0.1, token_dropout=0.1, **settings).train()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    model(**batch).loss.backward()
    optimizer.step()
    assert [name for name, weight in model.named_parameters() if torch.equal(weight, before[name])] == []


def test_training_lowers_the_reconstruction_loss(model: Model, batch: dict[str, Tensor], latents: Tensor) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    losses = []
    for _ in range(20):
        output = model(**batch, latents=latents, prior_latents=prior_draws())
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.reconstruction_loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_no_gradient_flows_into_latents(model: Model, batch: dict[str, Tensor], latents: Tensor) -> None:
    latents, other = latents.requires_grad_(), prior_draws().requires_grad_()
    model(**batch, latents=latents, prior_latents=other).loss.backward()
    assert latents.grad is None
    assert other.grad is None


def test_padding_and_ignored_labels_do_not_count(model: Model, batch: dict[str, Tensor], latents: Tensor) -> None:
    ids, mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]

    def loss(**inputs: Tensor) -> Tensor:
        return model(**inputs, latents=latents, prior_latents=latents).reconstruction_loss

    expected = loss(input_ids=ids, labels=labels)
    junk = ids.masked_fill(mask == 0, VOCAB_SIZE - 1)
    torch.testing.assert_close(loss(input_ids=junk, labels=labels), expected)
    torch.testing.assert_close(loss(input_ids=ids, attention_mask=mask, labels=ids), expected)
    # Without its first word, a sentence's loss is that of the words after it.
    ignored = labels.clone()
    ignored[:, 1] = -100
    first = model(ids, latents=latents).logits[:, 0].log_softmax(dim=-1).gather(1, ids[:, 1:2]).mean()
    torch.testing.assert_close(loss(input_ids=ids, labels=ignored), expected + first)


def test_the_objective_draws_the_latents_it_is_not_given(model: Model, batch: dict[str, Tensor]) -> None:
    first, again, other = (model(**batch, generator=seeded(seed)) for seed in (3, 3, 4))
    assert first.latents.shape == (4, LATENT_DIM)
    assert torch.equal(first.latents, again.latents)
    assert torch.equal(first.loss, again.loss)
    assert not torch.equal(first.latents, other.latents)
    drawn = model.encode(batch["input_ids"], batch["attention_mask"], generator=seeded(3))
    torch.testing.assert_close(first.latents, drawn)


# Logits


def test_logits_agree_with_log_prob(model: Model, batch: dict[str, Tensor], latents: Tensor) -> None:
    ids, mask = batch["input_ids"], batch["attention_mask"]
    output = model(ids, attention_mask=mask, latents=latents)
    assert output.logits.shape == (*ids.shape, VOCAB_SIZE)
    assert output.loss is None
    words = output.logits.log_softmax(dim=-1)[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2)
    torch.testing.assert_close((words * mask[:, 1:]).sum(dim=1), model.log_prob(ids, mask, latents=latents))
    torch.testing.assert_close(model(ids, latents=latents, logits_to_keep=2).logits, output.logits[:, -2:])


def test_logits_without_latents_are_those_of_prior_draws(model: Model, batch: dict[str, Tensor]) -> None:
    output = model(batch["input_ids"], generator=seeded())
    assert torch.equal(output.latents, model.sample_prior(4, generator=seeded()).latents)
    torch.testing.assert_close(output.logits, model(batch["input_ids"], latents=output.latents).logits)


def test_state_carries_on_where_it_stopped(model: Model, batch: dict[str, Tensor], latents: Tensor) -> None:
    ids = batch["input_ids"]
    whole = model(ids, latents=latents).logits
    start = model(ids[:, :3], latents=latents, use_cache=True)
    rest = model(ids[:, 3:], latents=latents, past_key_values=start.past_key_values)
    torch.testing.assert_close(torch.cat([start.logits, rest.logits], dim=1), whole)
    assert rest.past_key_values.get_seq_length() == ids.shape[1]


def test_tuples_hold_the_same_numbers(model: Model, batch: dict[str, Tensor], latents: Tensor) -> None:
    given = {"latents": latents, "prior_latents": latents}
    loss, reconstruction, *_ = model(**batch, **given, return_dict=False)
    output = model(**batch, **given)
    assert torch.equal(loss, output.loss)
    assert torch.equal(reconstruction, output.reconstruction_loss)
    logits = model(batch["input_ids"], latents=latents, return_dict=False)[0]
    assert torch.equal(logits, model(batch["input_ids"], latents=latents).logits)


# Saving and loading


@pytest.mark.parametrize("settings", [{}, {"tie_word_embeddings": True}, {"output_rank": 3}])
@pytest.mark.parametrize("load", [Model.from_pretrained, AutoModelForCausalLM.from_pretrained])
def test_a_loaded_model_is_the_saved_one(
    settings: dict[str, Any], load: Callable[..., Model], tmp_path: Path, latents: Tensor
) -> None:
    model = tiny_model(**settings)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors"
    }  # fmt: skip
    loaded = load(tmp_path)
    assert type(loaded) is Model
    assert not loaded.training
    ids = tiny_batch()["input_ids"]
    assert torch.equal(loaded(ids, latents=latents).logits, model(ids, latents=latents).logits)
    assert torch.equal(
        loaded.generate(num_samples=5, generator=seeded()), model.generate(num_samples=5, generator=seeded())
    )


def test_auto_classes_know_the_model_once_it_is_imported(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    script = f"""
from latent_ebm_text import LatentEBMForTextGeneration
from transformers import AutoModelForCausalLM
print(type(AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})) is LatentEBMForTextGeneration)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200)
    assert run.stdout == "True\n", run.stderr


def test_importing_the_package_imports_nothing_heavy() -> None:
    script = "import latent_ebm_text, sys; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200)
    assert run.stdout == "set()\n", run.stderr


def test_auto_config_finds_the_configuration() -> None:
    assert type(AutoConfig.for_model("latent_ebm_text")) is LatentEBMTextConfig


def test_missing_and_unexpected_weights_are_reported(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["decoder.extra"] = torch.zeros(1)
    for name in ("prior.out.weight", "decoder.lstm.bias_ih_l0", "decoder.output.weight"):
        del weights[name]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model, info = Model.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == {"prior.out.weight", "decoder.lstm.bias_ih_l0", "decoder.output.weight"}
    assert info["unexpected_keys"] == {"decoder.extra"}
    # What is missing starts as in a new model: small weights and an open forget gate.
    assert float(model.decoder.output.weight.detach().abs().max()) <= 0.1
    assert model.decoder.lstm.bias_ih_l0.tolist() == [0.0] * 16 + [1.0] * 16 + [0.0] * 32


def test_a_model_of_another_size_is_refused(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"decoder.initial_cell.bias \(\d+,\) in place of \(17,\)"):
        Model.from_pretrained(tmp_path, hidden_size=17)
    assert Model.from_pretrained(tmp_path, hidden_size=17, ignore_mismatched_sizes=True).config.hidden_size == 17


def test_loading_on_the_meta_device_is_the_callers_mistake(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    with torch.device("meta"), pytest.raises(RuntimeError, match="meta device context manager"):
        Model.from_pretrained(tmp_path)


# Latents


def test_encode_draws_from_the_posterior(model: Model, batch: dict[str, Tensor]) -> None:
    ids, mask = batch["input_ids"], batch["attention_mask"]
    first, again, other = (model.encode(ids, mask, generator=seeded(seed)) for seed in (0, 0, 1))
    assert first.shape == (4, LATENT_DIM)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    # Climbing without noise, the latents come to explain their sentences better than where they started.
    start = torch.zeros(4, LATENT_DIM)
    climb = LangevinSampler(num_steps=30, step_size=0.1, temperature=0.0)
    climbed = model.encode(ids, mask, initial_latents=start, sampler=climb)
    posterior = model.posterior({"input_ids": ids, "attention_mask": mask})
    assert bool((posterior(climbed) > posterior(start)).all())


def test_sample_prior(model: Model) -> None:
    first, again = (model.sample_prior(5, generator=seeded(), return_trace=True) for _ in range(2))
    assert first.latents.shape == (5, LATENT_DIM)
    assert torch.equal(first.latents, again.latents)
    torch.testing.assert_close(first.trace.energies[-1], model.prior.energy(first.latents).detach())
    still = model.sample_prior(2, initial_latents=torch.ones(2, LATENT_DIM), sampler=LangevinSampler(1, 1e-6))
    torch.testing.assert_close(still.latents, torch.ones(2, LATENT_DIM), rtol=0, atol=1e-4)


def test_log_prob_needs_no_mask_without_padding(model: Model, batch: dict[str, Tensor], latents: Tensor) -> None:
    together = model.log_prob(batch["input_ids"], batch["attention_mask"], latents=latents)
    assert together.shape == (4,)
    for row, (ids, mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"], strict=True)):
        alone = model.log_prob(ids[None, : int(mask.sum())], latents=latents[row : row + 1])
        torch.testing.assert_close(alone, together[row : row + 1])


def test_reconstruct_decodes_the_encoded(model: Model, batch: dict[str, Tensor]) -> None:
    ids, mask = batch["input_ids"], batch["attention_mask"]
    generator = seeded()
    encoded = model.encode(ids, mask, generator=generator)
    expected = model.generate(latents=encoded, do_sample=False, num_beams=4, no_repeat_ngram_size=3)
    assert torch.equal(model.reconstruct(ids, mask, generator=seeded()), expected)
    repeating = model.generate(latents=encoded, do_sample=False, num_beams=4)
    assert not torch.equal(expected, repeating), "no three tokens occur twice"
    assert torch.equal(model.reconstruct(ids, mask, generator=seeded(), no_repeat_ngram_size=0), repeating)
    greedy = model.generate(latents=encoded, do_sample=False)
    assert torch.equal(model.reconstruct(ids, mask, generator=seeded(), num_beams=1), greedy)


def test_reconstruct_starts_from_the_mean_of_an_encoder(batch: dict[str, Tensor]) -> None:
    """It needs no random number; with a sampler it is a posterior draw, as without an encoder."""
    model, ids, mask = tiny_model(encoder_hidden_size=8).eval(), batch["input_ids"], batch["attention_mask"]
    means = model.encoder_proposals(ids, mask).mean
    expected = model.generate(latents=means, do_sample=False, num_beams=4, no_repeat_ngram_size=3)
    assert torch.equal(model.reconstruct(ids, mask), expected)
    torch.testing.assert_close(model.combine(ids, [1, 0, 0, -1], attention_mask=mask), (means[0] - means[3])[None])
    sampler = model.posterior_sampler
    drawn = model.encode(ids, mask, sampler=sampler, generator=seeded())
    expected = model.generate(latents=drawn, do_sample=False, num_beams=4, no_repeat_ngram_size=3)
    assert torch.equal(model.reconstruct(ids, mask, sampler=sampler, generator=seeded()), expected)


def test_many_latents_are_searched_part_by_part(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.tensor([[BOS, 5, EOS]]).expand(5, -1)
    whole = model.reconstruct(ids, generator=seeded())
    monkeypatch.setattr(sentences_module, "_BEAM_BATCH", 2)
    assert torch.equal(model.reconstruct(ids, generator=seeded()), whole)


def test_interpolate_walks_from_end_to_end(model: Model, latents: Tensor) -> None:
    ids = model.interpolate(latents[0], latents[1:2], num_points=5, max_new_tokens=6, min_new_tokens=6)
    assert ids.shape == (5, 7)
    middle = (latents[0] + latents[1]) / 2
    ends = torch.stack([latents[0], middle, latents[1]])
    expected = model.generate(latents=ends, do_sample=False, num_beams=4, max_new_tokens=6, min_new_tokens=6)
    assert torch.equal(ids[[0, 2, 4]], expected)
    with pytest.raises(UsageError, match="num_points must be at least 2, got 1"):
        model.interpolate(latents[0], latents[1], num_points=1)
    with pytest.raises(UsageError, match=r"from one latent to another, .* got str and str: see encode\(\)"):
        model.interpolate("a sentence", "another")


@pytest.mark.parametrize(
    "use",
    [
        lambda model, ids, z: model.generate(latents=z, max_new_tokens=2),
        lambda model, ids, z: model.generate(ids, latents=z, max_new_tokens=2),
        lambda model, ids, z: model(ids, latents=z),
        lambda model, ids, z: model(ids, labels=ids, latents=z),
        lambda model, ids, z: model(ids, labels=ids, prior_latents=z),
        lambda model, ids, z: model.log_prob(ids, latents=z),
        lambda model, ids, z: model.encode(ids, initial_latents=z),
        lambda model, ids, z: model.sample_prior(len(z), initial_latents=z),
        lambda model, ids, z: model.interpolate(z[0], z[0]),
    ],
    ids=["generate", "prompt", "logits", "loss", "prior part", "log_prob", "encode", "sample_prior", "interpolate"],
)
def test_bad_latents_are_refused(model: Model, use: Callable[[Model, Tensor, Tensor], Any]) -> None:
    ids = torch.tensor([[BOS, 5, EOS], [BOS, 6, EOS]])
    with pytest.raises(UsageError, match=rf"latents must have shape .*, {LATENT_DIM}\), got \(\d, 3\)"):
        use(model, ids, torch.zeros(2, 3))
    for value in (float("nan"), float("inf")):
        with pytest.raises(UsageError, match="not finite"):
            use(model, ids, torch.full((2, LATENT_DIM), value))
    with pytest.raises(UsageError, match="their energy is infinite"):
        use(model, ids, torch.full((2, LATENT_DIM), 2e38))


@pytest.mark.parametrize("method", ["generate", "forward", "log_prob", "encode"])
def test_one_latent_for_each_sentence(model: Model, method: str) -> None:
    name = "initial_latents" if method == "encode" else "latents"
    with pytest.raises(UsageError, match=r"latents must have shape \(2, 4\)|contradicting numbers"):
        getattr(model, method)(torch.tensor([[BOS, 5], [BOS, 6]]), **{name: torch.zeros(3, LATENT_DIM)})


@pytest.mark.parametrize("unknown", [VOCAB_SIZE, -100])
def test_words_outside_the_vocabulary_are_refused(model: Model, unknown: int) -> None:
    ids = torch.tensor([[BOS, 5, unknown, EOS]])
    message = f"input_ids hold {unknown}, but the model knows tokens 0 to 59: the tokenizer does not fit"
    for use in (model.encode, model.reconstruct, lambda ids: model.log_prob(ids, latents=torch.zeros(1, 4))):
        with pytest.raises(UsageError, match=message):
            use(ids)


def test_no_sample_is_no_number_of_samples(model: Model) -> None:
    with pytest.raises(UsageError, match="num_samples must be a positive integer, got 0"):
        model.sample_prior(0)


# Modes


def test_works_in_inference_mode(model: Model, batch: dict[str, Tensor]) -> None:
    ids, mask = batch["input_ids"], batch["attention_mask"]
    outside = model.reconstruct(ids, mask, generator=seeded())
    with torch.inference_mode():
        assert torch.equal(model.reconstruct(ids, mask, generator=seeded()), outside)
        assert torch.isfinite(model(**batch).loss)
        assert model.generate(num_samples=2).shape[0] == 2


@pytest.mark.parametrize("training", [True, False])
def test_methods_leave_mode_and_gradients_alone(batch: dict[str, Tensor], training: bool) -> None:
    model = tiny_model(dropout=0.5).train(training)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    latents = model.encode(ids, mask)
    model.sample_prior(2)
    model.generate(num_samples=2)
    model.reconstruct(ids, mask)
    model.interpolate(latents[0], latents[1])
    assert all(module.training is training for module in model.modules())
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
    assert not latents.requires_grad
