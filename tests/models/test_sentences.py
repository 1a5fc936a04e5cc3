"""Draws, paths, arithmetic, neighbours and anomaly scores of sentences."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from latent_ebm_text import LangevinSampler, LatentEBMForTextGeneration
from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents import Control, LatentClassifier, spherical_path
from latent_ebm_text.latents.integrals import LogPartition
from latent_ebm_text.models.sentences import pairwise_agreement
from tests.helpers import LATENT_DIM, SENTENCES, seeded, tiny_model

Model = LatentEBMForTextGeneration


def test_strings_lists_and_tensors_are_the_same_sentences(
    model: Model, tokenizer: PreTrainedTokenizerFast, batch: dict[str, Tensor]
) -> None:
    by_strings = model.posterior_draws(SENTENCES, tokenizer=tokenizer, num_draws=3, generator=seeded())
    lists = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    assert by_strings.shape == (3, 4, LATENT_DIM)
    assert torch.equal(model.posterior_draws(lists, num_draws=3, generator=seeded()), by_strings)
    tensors = (batch["input_ids"], batch["attention_mask"])
    assert torch.equal(model.posterior_draws(*tensors, num_draws=3, generator=seeded()), by_strings)
    assert not torch.equal(by_strings[0], by_strings[1])
    assert not torch.equal(model.posterior_draws(lists, num_draws=3, generator=seeded(1)), by_strings)


@pytest.mark.parametrize(
    "use",
    [
        lambda model, *sentences, **options: model.encode(*sentences, **options),
        lambda model, *sentences, **options: model.reconstruct(*sentences, **options),
        lambda model, *sentences, **options: model.score(*sentences, marginal="none", **options).joint_energy,
        lambda model, *sentences, **options: model.reconstruct_draws(*sentences, num_draws=2, **options).sequences,
        lambda model, *sentences, **options: model.build_index(*sentences, **options).mean,
    ],
    ids=["encode", "reconstruct", "score", "reconstruct_draws", "build_index"],
)
def test_every_method_takes_sentences_in_every_form(
    model: Model, tokenizer: PreTrainedTokenizerFast, batch: dict[str, Tensor], use: Callable[..., Tensor]
) -> None:
    by_strings = use(model, SENTENCES, tokenizer=tokenizer, generator=seeded())
    lists = [tokenizer(sentence)["input_ids"] for sentence in SENTENCES]
    named = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert torch.equal(use(model, lists, generator=seeded()), by_strings)
    assert torch.equal(use(model, **named, generator=seeded()), by_strings)


def test_a_sampler_can_be_given(model: Model, tokenizer: PreTrainedTokenizerFast) -> None:
    still = LangevinSampler(1, step_size=1e-6, temperature=0.0)
    draws = model.posterior_draws(SENTENCES, tokenizer=tokenizer, num_draws=1, sampler=still, generator=seeded())
    start = model.sample_reference(4, seeded())[torch.tensor([1, 3, 0, 2]).argsort()]  # batched by length
    torch.testing.assert_close(draws[0], start, atol=1e-4, rtol=0)
    options: dict[str, Any] = {"tokenizer": tokenizer, "num_draws": 1, "sampler": still, "marginal": "none"}
    assert torch.equal(model.score(SENTENCES, **options, generator=seeded()).latents, draws)


def test_draws_come_in_the_order_of_the_sentences(tokenizer: PreTrainedTokenizerFast) -> None:
    """A model whose encoder knows each sentence's place: its draws are cheap and far apart."""
    model = tiny_model(encoder_hidden_size=8, prior_type="gaussian")
    with torch.no_grad():
        model.encoder.out.weight[LATENT_DIM:] = 0.0
        model.encoder.out.bias[LATENT_DIM:] = -6.0
    draws = model.posterior_draws(SENTENCES, tokenizer=tokenizer, num_draws=2, batch_size=3)
    ids = [tokenizer(sentence, return_tensors="pt")["input_ids"] for sentence in SENTENCES]
    means = torch.cat([model.encoder.propose({"input_ids": row}).mean for row in ids])
    torch.testing.assert_close(draws, means.expand(2, -1, -1), atol=0.02, rtol=0)


def test_reconstructions_and_how_far_they_agree(model: Model, tokenizer: PreTrainedTokenizerFast) -> None:
    found = model.reconstruct_draws(SENTENCES, tokenizer=tokenizer, num_draws=3, batch_size=2)
    z, sequences = found.latents[1, 2], found.sequences[1, 2]
    expected = model.generate(latents=z[None], do_sample=False, num_beams=4, no_repeat_ngram_size=3)[0]
    assert torch.equal(sequences[: len(expected)], expected)
    torch.testing.assert_close(found.energies[1, 2], model.prior.energy(z[None])[0].detach())
    ids = tokenizer(SENTENCES[1], return_tensors="pt")["input_ids"]
    torch.testing.assert_close(found.log_prob[1, 2], model.log_prob(ids, latents=z[None])[0].detach())
    assert found.posterior_mean.shape == found.posterior_std.shape == (4, LATENT_DIM)
    assert bool((found.posterior_std > 0).all())
    assert bool(((found.agreement >= 0) & (found.agreement <= 1)).all())


def test_agreement_by_hand() -> None:
    same, half, shorter = [5, 6, 2, 0], [5, 7, 2, 0], [5, 2, 0, 0]
    sequences = torch.tensor([[same, same, same], [same, half, half], [same, shorter, shorter]])
    # Pairs: 1, 1, 1; 2/3, 2/3, 1; 1/3, 1/3, 1.
    torch.testing.assert_close(pairwise_agreement(sequences, 0), torch.tensor([1.0, 7 / 9, 5 / 9]))


def test_interpolation_along_every_path(model: Model, latents: Tensor) -> None:
    options: dict[str, Any] = {"num_points": 5, "return_dict_in_generate": True, "max_new_tokens": 4}
    found = {
        path: model.interpolate(latents[0], latents[1], path=path, **options)  # type: ignore[arg-type]
        for path in ("linear", "spherical", "low_energy")
    }
    for output in found.values():
        assert torch.equal(output["latents"][[0, -1]], latents[:2])
        torch.testing.assert_close(output["energies"], model.prior.energy(output["latents"]))
    torch.testing.assert_close(found["spherical"]["latents"], spherical_path(latents[0], latents[1], 5))
    assert float(found["low_energy"]["energies"].detach().mean()) < float(found["linear"]["energies"].detach().mean())
    with pytest.raises(UsageError, match="unknown path 'curved'"):
        model.interpolate(latents[0], latents[1], path="curved")  # type: ignore[arg-type]


def test_arithmetic_of_sentences(model: Model, tokenizer: PreTrainedTokenizerFast) -> None:
    means = model.posterior_draws(SENTENCES[:3], tokenizer=tokenizer, generator=seeded()).mean(dim=0)
    combined = model.combine(SENTENCES[:3], [1, -1, 0.5], tokenizer=tokenizer, generator=seeded())
    torch.testing.assert_close(combined, (means[0] - means[1] + 0.5 * means[2])[None])
    assert model.generate(latents=combined, do_sample=False).shape[0] == 1
    with pytest.raises(UsageError, match="3 examples need as many coefficients, got 2"):
        model.combine(SENTENCES[:3], [1, -1], tokenizer=tokenizer)


@pytest.mark.parametrize("metric", ["euclidean", "divergence"])
def test_a_sentence_is_its_own_neighbour(model: Model, tokenizer: PreTrainedTokenizerFast, metric: Any) -> None:
    index = model.build_index(SENTENCES, tokenizer=tokenizer, source="four sentences", generator=seeded())
    assert index.source == "four sentences"
    found = model.neighbours(index, SENTENCES, tokenizer=tokenizer, k=2, metric=metric, generator=seeded())
    assert found.indices[:, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("marginal", ["importance", "ais"])
def test_both_estimates_agree(model: Model, tokenizer: PreTrainedTokenizerFast, marginal: Any) -> None:
    partition = LogPartition(0.5, 0.5, 0.0, 100.0, 100)
    scores = model.score(
        SENTENCES, tokenizer=tokenizer, marginal=marginal, num_samples=40, num_levels=10, batch_size=3,
        log_partition=partition, generator=seeded(),
    )  # fmt: skip
    truth = model.score(
        SENTENCES, tokenizer=tokenizer, marginal="ais", num_samples=60, num_levels=15, log_partition=partition,
        generator=seeded(5),
    )  # fmt: skip
    assert scores.nll is not None
    assert truth.nll is not None
    assert scores.nll_standard_error is not None
    assert truth.nll_standard_error is not None
    error = (scores.nll_standard_error.square() + truth.nll_standard_error.square()).sqrt() + 0.02
    assert bool(((scores.nll - truth.nll).abs() < 3 * error).all())
    assert scores.num_tokens is not None
    assert scores.num_tokens.tolist() == [4, 2, 6, 3]
    torch.testing.assert_close(scores.get("nll_per_token"), scores.nll / scores.num_tokens)
    torch.testing.assert_close(scores.joint_energy, scores.prior_energy + scores.reconstruction)
    columns = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert columns.keys() == {*scores.names(), "nll_standard_error", "ess", "num_tokens"}
    assert columns["nll_per_token"] == scores.get("nll_per_token").tolist()


def test_scores_without_the_marginal_and_without_a_latent(model: Model, tokenizer: PreTrainedTokenizerFast) -> None:
    scores = model.train().score(SENTENCES, tokenizer=tokenizer, marginal="none")
    assert model.training
    assert not any(name.startswith("nll") for name in scores.names())
    with pytest.raises(UsageError, match="nll was not estimated"):
        scores.get("nll")
    with pytest.raises(UsageError, match="unknown score 'loss'"):
        scores.get("loss")
    with pytest.raises(UsageError, match="these data have no squared_error; their scores: joint_energy_per_token"):
        scores.get("squared_error")
    language_model = tiny_model(latent_dim=0, prior_type="gaussian")
    exact = language_model.score(SENTENCES, tokenizer=tokenizer, marginal="none")
    ids = tokenizer(SENTENCES[2], return_tensors="pt")["input_ids"]
    expected = -language_model.log_prob(ids, latents=torch.empty(1, 0)).double().detach()
    torch.testing.assert_close(exact.get("nll")[2:3], expected)
    assert exact.unreliable_share == 0
    assert "ess" not in exact.to_dict(), "it is infinite"
    json.dumps(exact.to_dict(), allow_nan=False)


def test_controlled_latents_have_more_of_what_is_asked_for(model: Model) -> None:
    classifier = LatentClassifier("sign", ["minus", "plus"], LATENT_DIM, 8)
    with torch.no_grad():  # log odds of plus that rise with the first coordinate
        for weight in classifier.parameters():
            weight.zero_()
        classifier.hidden.weight[0, 0] = classifier.out.weight[1, 0] = 2.0
    model.config.prior_sampler = {"name": "langevin", "num_steps": 60, "step_size": 0.4}
    plain = model.sample_prior(300, generator=seeded()).latents
    wanted = model.sample_controlled([Control(classifier, "plus", 3.0)], 300, generator=seeded()).latents
    opposite = model.sample_controlled([Control(classifier, "plus", 3.0, True)], 300, generator=seeded()).latents
    means = [float(classifier.probs(z)[:, 1].mean()) for z in (opposite, plain, wanted)]
    assert means[0] < means[1] - 0.02
    assert means[1] < means[2] - 0.1
    with pytest.raises(UsageError, match="at least one control"):
        model.sample_controlled([], 3)


@pytest.mark.parametrize(
    ("sentences", "options", "message"),
    [
        (SENTENCES, {}, "strings need the model's tokenizer"),
        ("w00 w01", {}, "put the one string into a list"),
        ([], {}, "no sentences were given"),
        ([[1]], {}, "at least two ids"),
        ([[1, 600, 2]], {}, "input_ids hold 600, but the model knows tokens 0 to 59"),
        ([[1, 5, 2]], {"attention_mask": torch.ones(1, 3)}, "belongs to input_ids as a tensor"),
        ([[1, 5, 2]], {"batch_size": 0}, "batch_size must be a positive integer, got 0"),
    ],
)
def test_sentences_that_cannot_be_read(model: Model, sentences: Any, options: dict[str, Any], message: str) -> None:
    for use in (model.posterior_draws, model.score):
        with pytest.raises(UsageError, match=message):
            use(sentences, **options)


def test_numbers_that_cannot_be_right(model: Model) -> None:
    ids = [[1, 5, 2]]
    with pytest.raises(UsageError, match="num_draws must be a positive integer, got 0"):
        model.posterior_draws(ids, num_draws=0)
    with pytest.raises(UsageError, match="got num_draws=1; use reconstruct"):
        model.reconstruct_draws(ids, num_draws=1)
    with pytest.raises(UsageError, match="leave out num_return_sequences and return_dict_in_generate"):
        model.reconstruct_draws(ids, num_return_sequences=2)
    with pytest.raises(UsageError, match="a standard deviation needs 2 draws or more"):
        model.build_index(ids, num_draws=1)
    with pytest.raises(UsageError, match="marginal must be one of elbo, importance, ais, none, got 'exact'"):
        model.score(ids, marginal="exact")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="num_draws must be positive and num_samples at least 2, got 0 and 32"):
        model.score(ids, num_draws=0)
