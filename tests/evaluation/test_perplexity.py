"""FPPL and RPPL: what they must be where the answer is known, and the samples they refuse."""

import math
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch

from latent_ebm_text.data.tokenizers import train_bpe_tokenizer, train_unigram_tokenizer, train_word_tokenizer
from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation import perplexity as module
from latent_ebm_text.evaluation.evaluator import (
    LanguageModel,
    LanguageModelRecipe,
    perplexity,
    sentence_nll,
    train_language_model,
)
from latent_ebm_text.evaluation.perplexity import (
    SamplePerplexity,
    estimate_perplexity,
    forward_perplexity,
    reverse_perplexity,
)
from latent_ebm_text.evaluation.text_metrics import perplexity_metrics

NOUNS, VERBS = ("dog", "cat", "bird", "fish"), ("sleeps", "eats", "waits")
REAL_TRAIN = [f"the {noun} {verb}" for noun in NOUNS for verb in VERBS]
REAL_TEST = ["the dog sleeps", "the bird waits again", "a cat eats"]  # "again" and "a" are unknown words
SAMPLES = ["the dog eats", "dog dog the", "the the", "", "the zebra sleeps"]
TINY = LanguageModelRecipe(
    name="tiny", embedding_size=6, hidden_size=8, num_layers=1, token_dropout=0.0, embedding_dropout=0.1,
    hidden_dropout=0.0, output_dropout=0.1, epochs=6, averaged_epochs=2, batch_size=4, learning_rate=0.03,
    warmup_steps=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return train_word_tokenizer(REAL_TRAIN)


def to_ids(tokenizer, texts):
    words = tokenizer.get_vocab()
    return [[1, *(words.get(word, 3) for word in text.split()), 2] for text in texts]


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluators")


@pytest.fixture(scope="module")
def lm(tokenizer, cache_dir):
    ids = to_ids(tokenizer, REAL_TRAIN)
    return train_language_model(ids, None, len(tokenizer), TINY, cache_dir=cache_dir, seed=3, progress=False)


@pytest.fixture
def fppl(lm, tokenizer):
    return lambda samples, **changes: forward_perplexity(
        samples, **{"lm": lm, "tokenizer": tokenizer, "real_test": REAL_TEST} | changes
    )


@pytest.fixture
def rppl(lm, tokenizer, tmp_path):
    return lambda samples, **changes: reverse_perplexity(
        samples, **{"lm": lm, "tokenizer": tokenizer, "real_test": REAL_TEST, "cache_dir": tmp_path} | changes
    )


# -------- the interval


class FixedNLL:
    """In the place of `sentence_nll`: sentences whose NLLs are known."""

    def __init__(self, nll, tokens):
        self.values = np.asarray(nll, dtype=float), np.asarray(tokens)

    def __call__(self, lm, ids, progress=False):
        return self.values


def test_sentences_that_are_all_alike_leave_no_doubt(lm, monkeypatch):
    monkeypatch.setattr(module, "sentence_nll", FixedNLL([2 * math.log(5)] * 7, [2] * 7))
    found = estimate_perplexity(lm, [])
    assert found["perplexity"] == pytest.approx(5.0)
    assert found["interval_95"] == pytest.approx([5.0, 5.0])
    assert (found["n_sentences"], found["n_tokens"]) == (7, 14)


def test_the_interval_is_that_of_the_normal_approximation_where_it_holds(lm, monkeypatch):
    nll = np.random.default_rng(1).normal(4.0, 1.0, size=2000)
    monkeypatch.setattr(module, "sentence_nll", FixedNLL(nll, np.ones(2000)))
    low, high = estimate_perplexity(lm, [])["interval_95"]
    margin = 1.96 * nll.std() / 2000**0.5
    assert [math.log(low), math.log(high)] == pytest.approx([nll.mean() - margin, nll.mean() + margin], abs=0.005)


def test_long_sentences_are_resampled_with_their_tokens(lm, monkeypatch):
    # NLLs vary a hundredfold, perplexity does not at all.
    tokens = np.array([1, 3, 10, 100])
    monkeypatch.setattr(module, "sentence_nll", FixedNLL(tokens * math.log(7), tokens))
    assert estimate_perplexity(lm, [])["interval_95"] == pytest.approx([7.0, 7.0])


# -------- FPPL


def test_fppl_is_the_perplexity_of_the_samples(fppl, lm, tokenizer):
    found = fppl(SAMPLES)
    nll, tokens = sentence_nll(lm, to_ids(tokenizer, SAMPLES))
    assert tokens.tolist() == [4, 4, 3, 1, 4]
    assert found["perplexity"] == math.exp(nll.sum() / 16)
    low, high = found["interval_95"]
    assert low < found["perplexity"] < high
    assert (found["n_sentences"], found["n_tokens"]) == (5, 16)
    assert (found["evaluator"], found["evaluator_seed"]) == ("tiny", 3)
    assert found["evaluator_test_perplexity"] == perplexity(*sentence_nll(lm, to_ids(tokenizer, REAL_TEST)))
    assert found["definition"].startswith("FPPL: perplexity of generated sentences under")


def test_fppl_of_the_real_test_text_is_that_of_the_evaluator(fppl):
    found = fppl(REAL_TEST)
    assert found["perplexity"] == found["evaluator_test_perplexity"]


def test_fppl_under_a_model_without_knowledge_is_the_size_of_the_vocabulary(fppl, tokenizer):
    uniform = LanguageModel(len(tokenizer), TINY)
    with torch.no_grad():
        for weight in uniform.parameters():
            weight.zero_()
    found = fppl(SAMPLES, lm=uniform)
    assert found["perplexity"] == pytest.approx(len(tokenizer))
    assert found["evaluator_seed"] is None


def test_unknown_words_are_the_unknown_word(fppl):
    assert fppl(["the zebra sleeps", "a b"])["perplexity"] == fppl(["the <unk> sleeps", "x y"])["perplexity"]


def test_the_same_samples_give_the_same_perplexity(fppl):
    assert fppl(SAMPLES) == fppl(SAMPLES)


# -------- RPPL


def test_rppl_of_the_training_text_itself_is_the_perplexity_of_the_evaluator(rppl):
    found = rppl(REAL_TRAIN)
    assert found["perplexity"] == found["evaluator_test_perplexity"]
    assert (found["n_sentences"], found["n_tokens"], found["n_samples"]) == (3, 13, len(REAL_TRAIN))
    assert found["warning"] is None
    assert (found["evaluator"], found["evaluator_seed"]) == ("tiny", 3)
    assert found["definition"].startswith("RPPL: perplexity of the real test text under")


def test_rppl_is_higher_where_the_samples_leave_something_out(rppl):
    dogs = [sentence for sentence in REAL_TRAIN if "dog" in sentence] * len(NOUNS)
    assert len(dogs) == len(REAL_TRAIN)
    found = rppl(dogs, real_test=REAL_TRAIN)
    assert found["perplexity"] > 1.1 * found["evaluator_test_perplexity"]


def test_rppl_uses_as_many_samples_as_there_are_training_sentences(rppl):
    assert rppl([*REAL_TRAIN, *SAMPLES]) == rppl(REAL_TRAIN)


def test_rppl_of_fewer_samples_says_so(rppl):
    found = rppl(REAL_TRAIN[:5])
    assert found["n_samples"] == 5
    assert "trained on 5 generated sentences rather than 12" in found["warning"]


def test_rppl_needs_an_evaluator_that_was_trained(rppl, tokenizer):
    with pytest.raises(UsageError, match="no training record; make it with train_language_model"):
        rppl(REAL_TRAIN, lm=LanguageModel(len(tokenizer), TINY))


# -------- as a metric


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """`evaluate.load` of this file, which copies it into a folder for modules: one of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("evaluate")
        patch.syspath_prepend(cache / "modules")
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", cache / "modules")
        patch.setattr(evaluate.config, "HF_METRICS_CACHE", cache / "metrics")
        yield evaluate.load


@pytest.fixture(params=["made", "by the file", "by the folder"])
def make_metric(request, load, tmp_path):
    path = Path(module.__file__)
    if request.param == "by the folder":
        path = tmp_path / "perplexity"  # `evaluate` looks for the file that has the name of the folder
        path.mkdir()
        (path / "perplexity.py").write_text(Path(module.__file__).read_text(encoding="utf-8"), encoding="utf-8")

    def make(name):
        if request.param == "made":
            return SamplePerplexity(name, cache_dir=str(tmp_path / "metrics"))
        return load(str(path), name, cache_dir=str(tmp_path / "metrics"))

    return make


def test_the_metric_gives_what_the_functions_give(make_metric, fppl, rppl, lm, tokenizer, tmp_path):
    settings = {"lm": lm, "tokenizer": tokenizer, "real_test": REAL_TEST}
    assert make_metric("fppl").compute(predictions=SAMPLES, **settings) == fppl(SAMPLES)

    metric = make_metric("rppl")
    metric.add_batch(predictions=REAL_TRAIN[:6])
    metric.add_batch(predictions=REAL_TRAIN[6:])
    assert metric.compute(**settings, cache_dir=tmp_path) == rppl(REAL_TRAIN)


def test_a_metric_is_one_of_the_two(make_metric):
    for name in (None, "ppl"):
        with pytest.raises(UsageError, match="this metric is 'fppl' or 'rppl', not '(default|ppl)'"):
            make_metric(name)


def test_a_metric_refuses_what_the_functions_refuse(lm, tokenizer, tmp_path):
    metric = SamplePerplexity("fppl", cache_dir=str(tmp_path))
    with pytest.raises(UsageError, match="all 2 are the same"):
        metric.compute(predictions=["a b", "a b"], lm=lm, tokenizer=tokenizer, real_test=REAL_TEST)


# -------- what cannot be judged


@pytest.mark.parametrize("metric", ["fppl", "rppl"])
@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "generated sentences, but there are none; look at how they were generated"),
        (["", "  ", "\n"], "all 3 are blank"),
        (["the dog", " the  dog "], "all 2 are the same"),
        (["the dog"], "all 1 are the same"),
        ("the dog sleeps", "samples must be a list, not one string"),
    ],
    ids=["none", "blank", "the same", "one", "a string"],
)
def test_samples_of_a_broken_generation_are_refused(request, tmp_path, metric, samples, message):
    with pytest.raises(UsageError, match=message):
        request.getfixturevalue(metric)(samples)
    assert not list(tmp_path.iterdir())


def test_samples_that_would_be_trained_on_must_differ(rppl):
    with pytest.raises(UsageError, match="all 12 are the same"):
        rppl([REAL_TRAIN[0]] * len(REAL_TRAIN) + REAL_TRAIN)


@pytest.mark.parametrize("metric", ["fppl", "rppl"])
@pytest.mark.parametrize("real_test", [[], "the dog sleeps"], ids=["none", "a string"])
def test_the_test_text_must_have_sentences(request, metric, real_test):
    with pytest.raises(UsageError, match="real_test must be a list"):
        request.getfixturevalue(metric)(REAL_TRAIN, real_test=real_test)


def test_the_tokenizer_must_be_that_of_the_evaluator(fppl):
    other = train_word_tokenizer(["the dog sleeps"])
    with pytest.raises(UsageError, match="the tokenizer knows 7 tokens and the evaluator 12; use the tokenizer"):
        fppl(SAMPLES, tokenizer=other)


# -------- per word


def test_words_are_tokens_of_a_word_tokenizer(fppl, rppl):
    for found in (fppl(SAMPLES), rppl(SAMPLES)):
        for metric in ("perplexity", "interval_95", "evaluator_test_perplexity", "evaluator_test_interval_95"):
            assert found[f"{metric}_per_word"] == found[metric]
        assert found["n_words"] == found["n_tokens"]


@pytest.mark.parametrize("train", [train_bpe_tokenizer, train_unigram_tokenizer])
def test_a_perplexity_per_word_counts_words_whatever_the_pieces(train):
    tokenizer = train(REAL_TRAIN, vocab_size=262)
    lm = LanguageModel(len(tokenizer), TINY)
    with torch.no_grad():
        for weight in lm.parameters():
            weight.zero_()  # every token has the same probability
    found = forward_perplexity(SAMPLES, lm, tokenizer, real_test=REAL_TEST)
    size, words = len(tokenizer), sum(len(text.split()) + 1 for text in SAMPLES)
    tokens = sum(len(tokenizer(text)["input_ids"]) - 1 for text in SAMPLES)
    assert found["n_words"] == words < found["n_tokens"] == tokens
    assert found["perplexity"] == pytest.approx(size)
    assert found["perplexity_per_word"] == pytest.approx(size ** (tokens / words))
    low, high = found["interval_95_per_word"]
    assert low < found["perplexity_per_word"] < high
    assert found["evaluator_test_perplexity_per_word"] > size


# -------- in a report


def test_the_metrics_of_a_report_are_those_of_the_functions(fppl, rppl, lm, tokenizer, tmp_path):
    metrics, nll = perplexity_metrics(SAMPLES, lm, tokenizer, REAL_TEST, cache_dir=tmp_path)
    forward, reverse = fppl(SAMPLES), rppl(SAMPLES)
    names = ["tiny's test perplexity", "FPPL", "RPPL"]
    assert set(metrics) == {*names, *(f"{name} per word" for name in names)}
    assert next(iter(metrics)) == names[0], "the evaluator's own comes first"
    own, *generated = (metrics[name] for name in names)
    for name in names:
        same = metrics[f"{name} per word"]
        assert (same.value, same.interval_95, same.n) == (
            metrics[name].value, metrics[name].interval_95, metrics[name].n,
        )  # fmt: skip
        assert "per word" in same.definition
    assert own.value == forward["evaluator_test_perplexity"]
    assert (own.n, list(own.interval_95)) == (len(REAL_TEST), forward["evaluator_test_interval_95"])
    for metric, found in zip(generated, (forward, reverse), strict=True):
        assert (metric.value, list(metric.interval_95)) == (found["perplexity"], found["interval_95"])
        assert metric.n == found["n_sentences"]
        assert "'tiny'" in metric.definition, "a metric carries its evaluator's name"
    assert metrics["RPPL"].details["warning"] == reverse["warning"]
    for metric, name in zip(generated, ("fppl_nll", "rppl_nll"), strict=True):
        assert len(nll[name]) == metric.n, "one value for each sentence, to compare runs by"
    assert nll["rppl_words"].tolist() == [len(sentence.split()) + 1 for sentence in REAL_TEST]
    assert perplexity(nll["fppl_nll"], nll["fppl_words"]) == pytest.approx(metrics["FPPL"].value)
    assert perplexity(nll["rppl_nll"], nll["rppl_words"]) == pytest.approx(metrics["RPPL"].value)
