"""Attributes fitted to labelled sentences: saved, asked for by name, imposed on samples and on edits."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from latent_ebm_text import LatentEBMForImageGeneration, LatentEBMForTextGeneration, LatentEBMImageConfig
from latent_ebm_text.errors import DataError, UsageError
from latent_ebm_text.latents import LatentClassifier, LatentRegressor
from tests.helpers import BOS, EOS, LATENT_DIM, PAD, SENTENCES, seeded, tiny_model

Model = LatentEBMForTextGeneration


@pytest.fixture
def knowing(model: Model) -> Model:
    """A model whose attributes read its first coordinate: the sign of it, and its size."""
    sign = LatentClassifier("sign", ["minus", "plus"], LATENT_DIM, 8)
    size = LatentRegressor("size", LATENT_DIM, 8)
    with torch.no_grad():
        for head in (sign, size):
            for weight in head.parameters():
                weight.zero_()
            head.hidden.weight[0, 0] = 2.0
        sign.out.weight[1, 0] = 2.0
        size.out.weight[0, 0] = 1.0
    model.attributes.update(sign=sign.eval(), size=size.eval())
    model.config.prior_sampler = {"name": "langevin", "num_steps": 60, "step_size": 0.4}
    return model


def plus_share(model: Model, **options: Any) -> float:
    latents = model.generate(num_samples=300, generator=seeded(), return_dict_in_generate=True, **options)["latents"]
    sign = model.attributes["sign"]
    assert isinstance(sign, LatentClassifier)
    return float(sign.probs(latents)[:, 1].mean())


def test_sentences_with_attributes_have_more_of_what_is_asked_for(knowing: Model) -> None:
    plain = plus_share(knowing)
    assert plus_share(knowing, attributes={"sign": "plus"}) > plain + 0.1
    assert plus_share(knowing, attributes={"sign": "plus"}, strength={"sign": 0.1}) < plain + 0.1
    assert plus_share(knowing, attributes={"sign": "not plus"}) < plain - 0.02
    assert plus_share(knowing, attributes={"sign": "plus", "size": 3.0}) > plain + 0.1
    assert plus_share(knowing, attributes={"sign": "plus"}, top_p=0.9) > plain + 0.1, "in the loop of transformers"
    prompt = torch.tensor([[BOS, 5]])
    assert knowing.generate(prompt, attributes={"sign": "plus"}, max_new_tokens=2)[0, 1] == 5


def test_attributes_are_fitted_with_missing_labels_and_come_back_from_disk(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = tiny_model(encoder_hidden_size=8)
    sentences = [SENTENCES[row % 4] for row in range(80)]
    lengths = [float(len(sentence.split())) + row / 100 for row, sentence in enumerate(sentences)]
    labels = {
        "kind": [None if row % 8 == 0 else ["a", "b"][row % 2] for row in range(80)],
        "length": [float("nan") if row % 10 == 0 else value for row, value in enumerate(lengths)],
    }
    reports = model.fit_attributes(sentences, labels, tokenizer=tokenizer)
    assert reports["kind"]["n"] == round(0.15 * 70)
    assert 0 <= reports["kind"]["calibration_error"] <= 1
    assert reports["length"]["n"] == round(0.15 * 72)
    assert isinstance(model.attributes["length"], LatentRegressor)

    model.save_pretrained(tmp_path)
    assert {"attributes.json", "attributes.safetensors"} < {path.name for path in tmp_path.iterdir()}
    again = Model.from_pretrained(tmp_path).eval()
    options: dict[str, Any] = {"num_samples": 5, "attributes": {"kind": "not a", "length": 3}}
    expected = model.generate(**options, generator=seeded())
    assert torch.equal(again.generate(**options, generator=seeded()), expected)
    assert {name: head.report for name, head in again.attributes.items()} == reports
    tiny_model(encoder_hidden_size=8).save_pretrained(tmp_path)
    assert Model.from_pretrained(tmp_path).attributes == {}, "those of the model before must not stay"


def test_attributes_of_chains_and_of_images() -> None:
    model = tiny_model()
    rows = [[BOS, 5 + row % 7, EOS] for row in range(40)]
    assert model.fit_attributes(rows, {"kind": ["a", "b"] * 20}, num_draws=2)["kind"]["n"] == 6
    config = LatentEBMImageConfig(image_size=8, num_channels=1, latent_dim=4, decoder_channels=[4])
    images = LatentEBMForImageGeneration(config).eval()
    images.fit_attributes(torch.zeros(40, 1, 8, 8), {"digit": ["0", "1"] * 20}, num_draws=1)
    assert images.generate(num_samples=2, attributes={"digit": "1"}).shape == (2, 1, 8, 8)
    with pytest.raises(UsageError, match="leave out latents, or attributes"):
        images.generate(latents=torch.zeros(1, 4), attributes={"digit": "1"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attributes": {"tone": "plus"}}, "unknown attribute 'tone'; the model knows sign, size"),
        ({"attributes": {"sign": "large"}}, "sign has no value 'large'; its values are minus, plus"),
        ({"attributes": {"sign": "not large"}}, "sign has no value 'large'"),
        ({"attributes": {"size": "large"}}, "size is a number, got 'large'"),
        ({"attributes": {}}, "no attribute was asked for; the model knows sign, size"),
        ({"attributes": {"sign": "plus"}, "strength": 0}, "weight of sign=plus must be positive"),
        ({"attributes": {"sign": "plus"}, "strength": {"tone": 1}}, "unknown attribute 'tone'"),
        ({"attributes": {"sign": "plus"}, "latents": torch.zeros(1, LATENT_DIM)}, "leave out latents, or attributes"),
    ],
)
def test_what_cannot_be_asked_for(knowing: Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        knowing.generate(**options)


def test_labels_that_cannot_be_fitted(model: Model) -> None:
    with pytest.raises(UsageError, match="knows no attributes: fit them"):
        model.generate(attributes={"sign": "plus"})
    rows = [[BOS, 5, EOS]] * 3
    with pytest.raises(UsageError, match="labels are given by attribute"):
        model.fit_attributes(rows, ["a", "b", "a"])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="3 examples need as many labels of 'kind', got 2"):
        model.fit_attributes(rows, {"kind": ["a", "b"]})
    with pytest.raises(UsageError, match="labels are strings, numbers, or None where they are missing; got True"):
        model.fit_attributes(rows, {"kind": [True, False, None]})
    with pytest.raises(DataError, match="kind needs two or more classes"):
        model.fit_attributes(rows, {"kind": [None, None, None]})


def test_damaged_attributes_are_refused(knowing: Model, tmp_path: Path) -> None:
    knowing.save_pretrained(tmp_path)
    path = tmp_path / "attributes.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "format": "other"}))
    with pytest.raises(DataError, match=r"holds no attributes \(format 'other'\)"):
        Model.from_pretrained(tmp_path)
    for attributes in (settings["attributes"][::-1], [*settings["attributes"], {}], 3, [{"attribute": "sign"}]):
        path.write_text(json.dumps({**settings, "attributes": attributes}))
        with pytest.raises(DataError, match="cannot be read"):
            Model.from_pretrained(tmp_path)
    path.write_text(json.dumps(settings))
    (tmp_path / "attributes.safetensors").unlink()
    with pytest.raises(DataError, match=r"attributes\.safetensors is missing"):
        Model.from_pretrained(tmp_path)


def test_edits_climb_towards_the_attribute_and_are_ranked(knowing: Model, tokenizer: PreTrainedTokenizerFast) -> None:
    sign = knowing.attributes["sign"]
    assert isinstance(sign, LatentClassifier)
    options: dict[str, Any] = {"tokenizer": tokenizer, "num_candidates": 3, "num_steps": 30, "max_new_tokens": 6}
    ends = {}
    for value in ("plus", "minus"):
        edits = knowing.edit(SENTENCES, attributes={"sign": value}, generator=seeded(), **options)
        assert edits.sequences.shape[:2] == (4, 3)
        assert edits.latents.shape == (4, 3, LATENT_DIM)
        assert bool((edits.scores.diff(dim=1) <= 0).all()), "the best first"
        assert torch.equal(edits.best, edits.sequences[:, 0])
        ends[value] = float(sign.probs(edits.latents.flatten(0, 1))[:, 1].mean())
        assert bool((edits.scores <= 0).all()), "a probability times a similarity"
    assert ends["plus"] > ends["minus"] + 0.1
    tight = knowing.edit(SENTENCES, attributes={"sign": "plus"}, content=50.0, generator=seeded(), **options)
    assert float(sign.probs(tight.latents.flatten(0, 1))[:, 1].mean()) < ends["plus"]


def test_an_edit_uses_every_word_of_its_sentence_once(knowing: Model, tokenizer: PreTrainedTokenizerFast) -> None:
    options: dict[str, Any] = {"attributes": {"sign": "plus"}, "tokenizer": tokenizer, "max_new_tokens": 12}
    ids = [tokenizer(sentence, add_special_tokens=False)["input_ids"] for sentence in SENTENCES]
    copied = knowing.edit(SENTENCES, copy=50.0, generator=seeded(), **options).best
    for own, row in zip(ids, copied.tolist(), strict=True):
        assert sorted(row[1 : 1 + len(set(own))]) == sorted(set(own)), "a large bonus decides, until it is used up"
    few = knowing.edit(SENTENCES, num_chains=2, num_candidates=3, generator=seeded(), **options)
    assert few.sequences.shape[:2] == (4, 3)
    assert [len(latents.unique(dim=0)) for latents in few.latents] == [2] * 4, "one end is decoded twice"
    # Without a bonus a candidate is the decoding of where its chain ended.
    free = knowing.edit(SENTENCES, copy=0.0, do_sample=False, num_beams=4, generator=seeded(), **options)
    decoded = knowing.generate(latents=free.latents[1, 2:3], do_sample=False, num_beams=4, max_new_tokens=12)[0]
    shown = free.sequences[1, 2]
    assert shown[shown != PAD].tolist() == decoded[decoded != PAD].tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"content": 0.0}, "content must be positive and finite, got 0"),
        ({"copy": -1.0}, "copy must be in [0.0, inf], got -1.0"),
        ({"num_chains": 0}, "num_chains must be a positive integer, got 0"),
        ({"num_candidates": 0}, "num_candidates must be a positive integer, got 0"),
        ({"num_steps": 0}, "num_steps must be a positive integer"),
        ({"num_return_sequences": 2}, "edit decodes each candidate once"),
    ],
)
def test_edits_that_cannot_be(knowing: Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        knowing.edit([[BOS, 5, EOS]], attributes={"sign": "plus"}, **options)
