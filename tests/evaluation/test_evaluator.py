"""The evaluator's language model: numbers by hand, training that can be killed, and a cache that never lies."""

import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from latent_ebm_text.errors import DataError, DivergenceError, UsageError
from latent_ebm_text.evaluation import evaluator
from latent_ebm_text.evaluation.evaluator import (
    EVALUATOR,
    QUICK_EVALUATOR,
    LanguageModel,
    LanguageModelRecipe,
    learning_rate,
    perplexity,
    sentence_nll,
    train_language_model,
)
from latent_ebm_text.networks.dropout import dropout_mask
from latent_ebm_text.training.checkpointing import find_checkpoints
from tests.helpers import seeded

VOCAB_SIZE = 10
SENTENCES = [[1, 5, 6, 2], [1, 7, 2], [1, 9, 8, 7, 6, 5, 2], [1, 4, 4, 4, 2], [1, 2], [1, 5, 2], [1, 8, 9, 2]]
TOKENS = [3, 2, 6, 4, 1, 2, 3]
TINY = LanguageModelRecipe(
    name="tiny", embedding_size=6, hidden_size=8, num_layers=2, token_dropout=0.2, embedding_dropout=0.3,
    hidden_dropout=0.3, output_dropout=0.3, epochs=4, averaged_epochs=2, batch_size=3, learning_rate=0.02,
    warmup_steps=2,
)  # fmt: skip
BATCHES = 3  # an epoch of the seven sentences


def make_model(recipe=TINY, std=0.5):
    lm = LanguageModel(VOCAB_SIZE, recipe)
    with torch.no_grad():
        for weight in lm.parameters():
            weight.normal_(std=std, generator=seeded(3))
    return lm


@pytest.fixture
def fit(tmp_path):
    """Trains on the seven sentences, in the cache of this test."""

    def fit(sentences=SENTENCES, validation=None, recipe=TINY, seed=0, cache_dir=tmp_path / "cache"):
        return train_language_model(
            sentences, validation, VOCAB_SIZE, recipe, cache_dir=cache_dir, seed=seed, progress=False
        )

    return fit


@pytest.fixture
def steps(monkeypatch):
    """The weights after each optimizer step that is taken."""
    taken = []

    class Recording(torch.optim.AdamW):
        def step(self, *args, **kwargs):
            super().step(*args, **kwargs)
            taken.append([weight.detach().clone() for group in self.param_groups for weight in group["params"]])

    monkeypatch.setattr(torch.optim, "AdamW", Recording)
    return taken


def same_weights(first, second):
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# -------- perplexity


def test_a_model_without_knowledge_has_the_perplexity_of_its_vocabulary():
    lm = make_model(std=0.0)
    nll, tokens = sentence_nll(lm, SENTENCES)
    assert tokens.tolist() == TOKENS
    assert nll == pytest.approx(np.array(TOKENS) * math.log(VOCAB_SIZE))
    assert perplexity(nll, tokens) == pytest.approx(VOCAB_SIZE)


def test_perplexity_by_hand():
    assert perplexity(np.array([math.log(2), 2 * math.log(4)]), np.array([1, 4])) == pytest.approx(2.0)


@torch.no_grad()
@pytest.mark.parametrize("num_layers", [1, 2])
def test_nll_by_hand(num_layers):
    lm = make_model(replace(TINY, num_layers=num_layers))
    nll, _ = sentence_nll(lm, SENTENCES)

    for number, sentence in enumerate(SENTENCES):
        hidden = [torch.zeros(8) for _ in range(num_layers)]
        cell = [torch.zeros(8) for _ in range(num_layers)]
        expected = 0.0
        for previous, word in zip(sentence[:-1], sentence[1:], strict=True):
            features = lm.embedding.weight[previous]
            for k, lstm in enumerate(lm.layers):
                gates = (
                    lstm.weight_ih_l0 @ features + lstm.bias_ih_l0 + lstm.weight_hh_l0 @ hidden[k] + lstm.bias_hh_l0
                )
                i, f, g, o = gates.chunk(4)
                cell[k] = f.sigmoid() * cell[k] + i.sigmoid() * g.tanh()
                features = hidden[k] = o.sigmoid() * cell[k].tanh()
            logits = lm.embedding.weight @ (lm.output.projection.weight @ features) + lm.output.bias
            expected -= float(logits.log_softmax(dim=0)[word])
        assert nll[number] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_batches_and_padding_change_no_number(batch_size):
    lm = make_model()
    alone = [sentence_nll(lm, [sentence])[0][0] for sentence in SENTENCES]
    nll, tokens = sentence_nll(lm, SENTENCES, batch_size=batch_size)
    assert nll == pytest.approx(np.array(alone), rel=1e-5)
    assert tokens.tolist() == TOKENS


def test_the_precision_that_a_recipe_has_set_changes_no_number():
    lm = make_model(replace(TINY, embedding_size=64, hidden_size=64))
    expected, _ = sentence_nll(lm, SENTENCES)
    torch.set_float32_matmul_precision("medium")
    try:
        assert (sentence_nll(lm, SENTENCES)[0] == expected).all()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_dropout_comes_with_a_generator_alone_and_keeps_the_mean():
    lm, inputs = make_model(), evaluator._collate([{"input_ids": row} for row in SENTENCES])
    assert torch.equal(lm.sum_log_prob(inputs), lm.sum_log_prob(inputs))
    assert torch.equal(lm.sum_log_prob(inputs, seeded(1)), lm.sum_log_prob(inputs, seeded(1)))
    assert not torch.equal(lm.sum_log_prob(inputs, seeded(1)), lm.sum_log_prob(inputs, seeded(2)))
    assert not torch.equal(lm.sum_log_prob(inputs, seeded(1)), lm.sum_log_prob(inputs))

    mask = dropout_mask(0.2, (100, 1000), seeded())
    assert mask.unique().tolist() == pytest.approx([0.0, 1.25])
    assert float(mask.mean()) == pytest.approx(1.0, abs=0.01)  # standard error 0.0016


@pytest.mark.parametrize("name", ["token_dropout", "embedding_dropout", "hidden_dropout", "output_dropout"])
def test_every_dropout_rate_is_used(name):
    none = dict.fromkeys(("token_dropout", "embedding_dropout", "hidden_dropout", "output_dropout"), 0.0)
    inputs = evaluator._collate([{"input_ids": row} for row in SENTENCES])
    without, with_one = make_model(replace(TINY, **none)), make_model(replace(TINY, **none | {name: 0.5}))
    assert torch.equal(without.sum_log_prob(inputs, seeded()), without.sum_log_prob(inputs))
    assert not torch.equal(with_one.sum_log_prob(inputs, seeded()), with_one.sum_log_prob(inputs))


# -------- training


def test_it_learns_all_there_is_to_learn(fit):
    # The first word is one of three, alike; the others follow from it.
    corpus = [[1, 4, 5, 6, 7, 2], [1, 5, 4, 4, 8, 2], [1, 6, 9, 8, 7, 2]]
    recipe = replace(
        TINY, hidden_size=16, token_dropout=0.0, embedding_dropout=0.0, hidden_dropout=0.0, output_dropout=0.0,
        num_layers=1, epochs=30, averaged_epochs=5, batch_size=6, learning_rate=0.05,
    )  # fmt: skip
    lm = fit(corpus * 10, validation=corpus, recipe=recipe)
    floor = math.exp(math.log(3) / 5)
    assert floor * 0.999 < perplexity(*sentence_nll(lm, corpus)) < floor * 1.05
    assert perplexity(*sentence_nll(lm, [[1, 7, 7, 7, 7, 2]])) > 10


def test_weights_are_averaged_over_the_steps_of_the_last_epochs(fit, steps):
    lm = fit()
    assert len(steps) == TINY.epochs * BATCHES
    last = steps[-TINY.averaged_epochs * BATCHES :]
    for weight, *values in zip(lm.parameters(), *last, strict=True):
        torch.testing.assert_close(weight.detach(), torch.stack(values).mean(dim=0))


def test_learning_rate_rises_and_falls():
    recipe = replace(TINY, learning_rate=0.8, warmup_steps=4, final_learning_rate_factor=0.5)
    rates = [learning_rate(step, 100, recipe) for step in (0, 3, 50, 100)]
    assert rates == pytest.approx([0.2, 0.8 * (1 - 0.5 * 0.03), 0.6, 0.4])


def test_validation_sentences_are_measured_and_change_no_weight(fit):
    without, lm = fit(), fit(validation=SENTENCES[:3])
    assert same_weights(without, lm)
    assert without.record.validation_perplexity == []
    assert len(lm.record.validation_perplexity) == TINY.epochs
    assert lm.record.validation_perplexity[-1] == perplexity(*sentence_nll(lm, SENTENCES[:3]))


def test_the_record_says_what_it_was_trained_on(fit):
    record = fit(seed=5).record
    assert (record.seed, record.train_sentences, record.train_tokens) == (5, len(SENTENCES), sum(TOKENS))
    assert record.seconds > 0


def test_training_leaves_the_global_generator_and_precision_as_they_were(fit):
    before = torch.get_rng_state()
    fit()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_float32_matmul_precision() == "highest"


def test_the_named_recipes_are_two():
    assert EVALUATOR.name != QUICK_EVALUATOR.name
    full, quick = (
        sum(weight.numel() for weight in LanguageModel(10_000, recipe).parameters()) * recipe.epochs
        for recipe in (EVALUATOR, QUICK_EVALUATOR)
    )
    assert full > 5 * quick


# -------- the cache


def test_what_was_trained_before_comes_from_the_cache(fit, steps):
    first = fit(validation=SENTENCES[:3])
    expected = sentence_nll(first, SENTENCES)[0]
    steps.clear()
    second = fit(validation=SENTENCES[:3])
    assert not steps
    assert same_weights(first, second)
    assert (sentence_nll(second, SENTENCES)[0] == expected).all()
    assert second.record == first.record
    assert second.recipe == TINY


@pytest.mark.parametrize(
    "changes",
    [
        {"sentences": [*SENTENCES[:-1], [1, 8, 8, 2]]},
        {"sentences": SENTENCES[::-1]},
        {"sentences": [[1, 5, 6], [2, 1, 7, 2], *SENTENCES[2:]]},  # the same ids, cut elsewhere
        {"recipe": replace(TINY, output_dropout=0.4)},
        {"seed": 1},
    ],
    ids=["a word", "the order", "the ends", "the recipe", "the seed"],
)
def test_anything_that_makes_another_model_misses_the_cache(fit, steps, changes):
    first = fit()
    steps.clear()
    second = fit(**changes)
    assert len(steps) == TINY.epochs * BATCHES
    assert not same_weights(first, second)


def test_another_version_misses_the_cache(fit, steps, monkeypatch):
    fit()
    steps.clear()
    monkeypatch.setattr(evaluator, "RECIPE_VERSION", evaluator.RECIPE_VERSION + 1)
    fit()
    assert steps


@pytest.mark.parametrize("epochs_done", [1, 3])
def test_a_killed_training_ends_the_same(fit, steps, monkeypatch, tmp_path, epochs_done):
    whole = fit(validation=SENTENCES[:3], cache_dir=tmp_path / "never killed")
    save = evaluator.save_checkpoint

    def save_then_die(folder, step, *args, **kwargs):
        save(folder, step, *args, **kwargs)
        if step == epochs_done * BATCHES:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluator, "save_checkpoint", save_then_die)
        with pytest.raises(KeyboardInterrupt):
            fit(validation=SENTENCES[:3])
    steps.clear()
    resumed = fit(validation=SENTENCES[:3])

    assert len(steps) == (TINY.epochs - epochs_done) * BATCHES
    assert same_weights(resumed, whole)
    assert resumed.record.validation_perplexity == whole.record.validation_perplexity


def test_a_finished_model_is_all_that_stays(fit, tmp_path):
    fit()
    (folder,) = (tmp_path / "cache").iterdir()
    assert [path.name for path in folder.iterdir()] == [f"step-{TINY.epochs * BATCHES:08d}"]
    assert {path.name for path in find_checkpoints(folder)[0].iterdir()} == {
        "model.safetensors", "state.json", "manifest.json"
    }  # fmt: skip


def test_a_damaged_model_is_named_and_trained_again(fit, steps, tmp_path, caplog):
    first = fit()
    (folder,) = (tmp_path / "cache").iterdir()
    weights = find_checkpoints(folder)[0] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    steps.clear()

    with caplog.at_level(logging.WARNING):
        second = fit()

    assert len(steps) == TINY.epochs * BATCHES
    assert same_weights(first, second)
    (record,) = caplog.records
    assert "a cached language model is damaged and is trained again" in record.getMessage()
    assert "model.safetensors has" in record.getMessage()
    steps.clear()
    fit()
    assert not steps


# -------- what cannot be


@pytest.mark.parametrize(
    ("sentences", "error", "message"),
    [
        ([], DataError, "the training text has no sentence; give at least one"),
        ([[1, 5, 2], [1]], DataError, "sentence 1 of the training text has 1 tokens and nothing to predict"),
        ([[1, 5, 10, 2]], UsageError, "ids 1 to 10, but the language model knows 0 to 9; use the tokenizer"),
        ([[1, -1, 2]], UsageError, "ids -1 to 2, but the language model knows 0 to 9"),
    ],
    ids=["empty", "one token", "too high", "negative"],
)
def test_ids_that_cannot_be_are_refused(fit, tmp_path, sentences, error, message):
    with pytest.raises(error, match=message):
        fit(sentences)
    with pytest.raises(error, match=message.replace("training", "validation")):
        fit(validation=sentences)
    with pytest.raises(error, match=message.replace("training", "evaluated")):
        sentence_nll(make_model(), sentences)
    assert not (tmp_path / "cache").exists()


def test_a_cache_dir_that_is_a_file_is_refused(fit, tmp_path):
    (tmp_path / "cache").write_text("something of mine")
    with pytest.raises(UsageError, match="cache_dir .* cannot be used: .*; name another folder"):
        fit()


def test_a_training_that_diverges_stops(fit):
    with pytest.raises(DivergenceError, match="'tiny' has the gradient norm .* lower its learning_rate, which is 1e"):
        fit(recipe=replace(TINY, learning_rate=1e25, warmup_steps=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 0}, "hidden_size must be positive"),
        ({"output_dropout": 1.0}, r"output_dropout must be in \[0.0, 0.95\], got 1.0"),
        ({"averaged_epochs": 5}, r"averaged_epochs must be in \[1, 4\], got 5"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        replace(TINY, **changes)
