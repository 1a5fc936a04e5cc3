"""What is handed to a text model: padding on either side, labels, ids and latents of a wrong kind, precisions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latent_ebm_text import LatentEBMForTextGeneration as Model
from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents import Control, LatentClassifier
from tests.helpers import BOS, EOS, LATENT_DIM, PAD, SENTENCES, seeded, tiny_batch, tiny_model, tiny_tokenizer
from tests.language_models import tiny_wrapped

DECODERS = [
    {"encoder_hidden_size": 8},
    {"decoder_type": "transformer", "num_hidden_layers": 1, "num_attention_heads": 2},
]
LATENTS = torch.linspace(-1, 1, len(SENTENCES) * LATENT_DIM).view(-1, LATENT_DIM)


def loss(model: Model, *args: Any, **inputs: Any) -> Any:
    """`forward` with all of its draws, those of an encoder among them, from a seed."""
    torch.manual_seed(0)
    return model(*args, generator=seeded(), **inputs)


def padded_left(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same batch with its padding before the sentences."""
    shifts = (batch["attention_mask"] == 0).sum(dim=1).tolist()
    return {
        name: torch.stack([row.roll(shift) for row, shift in zip(rows, shifts, strict=True)])
        for name, rows in batch.items()
    }


@pytest.fixture(params=DECODERS, ids=["lstm", "transformer"])
def model(request: pytest.FixtureRequest) -> Model:
    return tiny_model(**request.param)


# -------- padding and labels


@pytest.mark.parametrize(
    "measure",
    [
        lambda model, batch: model.log_prob(batch["input_ids"], batch["attention_mask"], latents=LATENTS),
        lambda model, batch: model.encode(batch["input_ids"], batch["attention_mask"], generator=seeded()),
        lambda model, batch: loss(model, **batch).loss,
        lambda model, batch: model(**batch, latents=LATENTS, prior_latents=LATENTS).reconstruction_loss,
        lambda model, batch: model.reconstruct(batch["input_ids"], batch["attention_mask"], generator=seeded()),
    ],
    ids=["log_prob", "encode", "loss", "reconstruction_loss", "reconstruct"],
)
def test_the_side_of_the_padding_changes_nothing(model: Model, measure: Callable[..., Tensor]) -> None:
    batch = tiny_batch()
    torch.testing.assert_close(measure(model, padded_left(batch)), measure(model, batch))


def test_labels_say_what_counts_and_not_what_the_encoder_reads() -> None:
    model, batch = tiny_model(encoder_hidden_size=8), tiny_batch()
    whole = loss(model, **batch)
    labels = batch["labels"].clone()
    labels[:, 0] = -100  # the beginning, which is never predicted
    for mask in (batch["attention_mask"], None):
        output = loss(model, batch["input_ids"], mask, labels=labels)
        torch.testing.assert_close(output.latents, whole.latents)
        torch.testing.assert_close(output.loss, whole.loss)


def test_prompts_of_several_lengths_are_continued_as_each_alone(model: Model) -> None:
    tokenizer, prompts = tiny_tokenizer(), ["w01 w02 w03", "w04"]
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 4, "eos_token_id": None}
    alone = [
        model.generate(tokenizer(prompt, return_tensors="pt").input_ids, latents=LATENTS[[row]], **options)[0, -4:]
        for row, prompt in enumerate(prompts)
    ]
    for side in ("right", "left"):
        tokenizer.padding_side = side
        together = model.generate(
            **tokenizer(prompts, padding=True, return_tensors="pt"), latents=LATENTS[:2], **options
        )
        torch.testing.assert_close(together[:, -4:], torch.stack(alone))


def test_no_predicted_word_has_no_gradient(model: Model) -> None:
    batch = tiny_batch()
    labels = torch.full_like(batch["input_ids"], -100)
    output = model(batch["input_ids"], batch["attention_mask"], labels=labels, latents=LATENTS, prior_latents=LATENTS)
    output.loss.backward()
    assert float(output.reconstruction_loss.detach()) == 0
    assert all(weight.grad is None or not weight.grad.any() for weight in model.decoder.parameters())


# -------- what is refused


IDS = torch.tensor([[BOS, 5, 6, EOS]])


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda m: m.encode(IDS[0]), r"token ids \(batch, length\), got shape \(4,\)"),
        (lambda m: m.encode(IDS.float()), r"token ids \(batch, length\), got shape \(1, 4\)"),
        (lambda m: m.encode([[1]]), "at least two ids"),
        (lambda m: m.encode([IDS[0], 3]), "got also int"),
        (lambda m: m.encode(IDS[:, :0]), "at least two ids"),
        (lambda m: m.encode(IDS, torch.zeros_like(IDS)), "at least two ids"),
        (lambda m: m.encode(IDS, torch.ones(1, 2)), r"attention_mask must have the shape of input_ids, \(1, 4\)"),
        (lambda m: m.generate(torch.tensor([[99999]])), "input_ids hold 99999"),
        (lambda m: m.generate("w01 w02"), "got str: see the tokenizer"),
        (lambda m: m.generate(latents=[[0.0] * LATENT_DIM]), r"latents are a tensor \(batch, 4\), got list"),
        (lambda m: m.generate([[1, 2]]), "got list: see the tokenizer"),
        (lambda m: m.score([None], tokenizer=tiny_tokenizer()), "got also NoneType"),
        (lambda m: m.score(torch.tensor([[BOS]])), "at least two ids"),
    ],
)
def test_what_is_no_sentence_is_refused(model: Model, use: Callable[[Model], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        use(model)


# -------- precision and mode


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_cast_as_a_whole_works(model: Model, dtype: torch.dtype) -> None:
    model, batch = model.to(dtype), tiny_batch()
    latents = model.encode(batch["input_ids"], batch["attention_mask"], generator=seeded())
    assert latents.dtype == dtype
    assert model.generate(num_samples=2, generator=seeded(), max_new_tokens=3).shape[0] == 2
    assert bool(torch.isfinite(loss(model, **batch).loss))
    if (
        dtype == torch.bfloat16
    ):  # half a dozen of its digits are not enough for the scores to be right, but for them to be
        assert bool(torch.isfinite(model.score([[BOS, 5, 6, EOS]], num_draws=1).get("nll")).all())
        assert len(model.interpolate(latents[0], latents[1], 4, path="low_energy", max_new_tokens=2)) == 4


def test_the_precision_asked_for_is_that_of_a_loaded_decoder(tmp_path: Path) -> None:
    tiny_wrapped("gpt2", tmp_path / "lm").save_pretrained(tmp_path / "model")
    assert Model.from_pretrained(tmp_path / "model").dtype == torch.float32
    half = Model.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.prior.out.weight.dtype == torch.float32
    half.save_pretrained(tmp_path / "half")
    assert Model.from_pretrained(tmp_path / "half").dtype == torch.bfloat16
    assert Model.from_pretrained(tmp_path / "half", dtype=torch.float32).dtype == torch.float32


def test_tools_work_under_a_language_model_in_half_precision(tmp_path: Path) -> None:
    model = tiny_wrapped("gpt2", tmp_path).eval()
    model.decoder.lm.to(torch.bfloat16)
    classifier = LatentClassifier("topic", ["a", "b"], LATENT_DIM)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    latents = model.sample_controlled([Control(classifier, "a")], 3, generator=seeded()).latents
    assert latents.dtype == torch.float32
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())
    draws = model.reconstruct_draws([[BOS, 5, 6, EOS]], num_draws=2, max_new_tokens=2)
    assert bool(torch.isfinite(draws.energies).all())


def test_a_frozen_language_model_learns_without_dropout(tmp_path: Path) -> None:
    model = tiny_wrapped("gpt2", tmp_path, decoder_training="frozen", dropout=0.5, token_dropout=0.5).train()
    batch = {name: rows for name, rows in tiny_batch().items() if name != "labels"}
    chain = model.decoder.likelihood(batch)(LATENTS)
    torch.testing.assert_close(model.decoder.log_prob(batch, LATENTS), chain)


def test_posterior_draws_are_a_function_of_the_generator_in_training_mode_too() -> None:
    model = tiny_model(frequent_tokens=4, drawn_tokens=4).train()
    torch.manual_seed(0)
    first = model.posterior_draws([[BOS, 20, 30, EOS]], generator=seeded(3))
    state = torch.random.get_rng_state()
    assert torch.equal(model.posterior_draws([[BOS, 20, 30, EOS]], generator=seeded(3)), first)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training


def test_parts_in_evaluation_mode_stay_in_it() -> None:
    model = tiny_model().train()
    model.decoder.eval()
    model.posterior_draws([[BOS, 20, 30, EOS]])
    assert model.training
    assert not model.decoder.training


def test_padding_is_what_the_mask_says_not_the_id(model: Model) -> None:
    """The id of padding within a sentence is a word as any other."""
    ids = torch.tensor([[BOS, PAD, 6, EOS]])
    with_mask = model.log_prob(ids, torch.ones_like(ids), latents=LATENTS[:1])
    torch.testing.assert_close(with_mask, model.log_prob(ids, latents=LATENTS[:1]))
