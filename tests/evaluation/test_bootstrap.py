"""The bootstrap over sentences: cases by hand, and how often its intervals cover the truth."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latent_ebm_text.commands.compare import compare_evaluations
from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.bootstrap import paired_bootstrap, unpaired_bootstrap
from latent_ebm_text.evaluation.estimates import Estimate


def mean(values: Any, **options: Any) -> Estimate:
    """The mean of values, or their perplexity where `tokens` are among the options."""
    return Estimate.of_bootstrap(values, "mean", **options)


def test_comparison_by_hand() -> None:
    comparison = paired_bootstrap([2.0, 4.0, 9.0], [1.0, 3.0, 5.0])
    assert (comparison.first, comparison.second, comparison.difference) == (5.0, 3.0, 2.0)
    assert comparison.n == 3
    assert comparison.statistic == "mean"


def test_perplexity_is_that_of_the_corpus_not_the_mean_of_the_sentences() -> None:
    comparison = paired_bootstrap([2.0, 10.0], [4.0, 12.0], tokens=[1, 5])
    assert comparison.first == pytest.approx(math.exp(12 / 6))
    assert comparison.second == pytest.approx(math.exp(16 / 6))
    assert comparison.statistic == "perplexity exp(sum of values / sum of tokens)"
    estimate = Estimate.of_bootstrap([2.0, 10.0], "perplexity", tokens=[1, 5])
    assert estimate.value == pytest.approx(math.exp(2.0))
    assert estimate.interval_95 == pytest.approx((math.exp(2.0), math.exp(2.0)))  # 2 nats a token in each sentence
    assert estimate.definition == "perplexity; percentile interval of 1000 bootstrap resamples of the sentences"


def test_two_values_have_the_interval_of_their_four_resamples() -> None:
    """Means 0, 1/2, 1/2 and 1, each in a quarter of the resamples."""
    estimate = mean([0.0, 1.0])
    assert estimate.interval_95 == (0.0, 1.0)
    assert estimate.n == 2


def test_equal_runs_do_not_differ() -> None:
    values = np.random.default_rng(0).normal(size=50)
    comparison = paired_bootstrap(values, values)
    assert not comparison.differs
    assert comparison.p_value == 1.0
    assert comparison.verdict.startswith("no difference beyond noise: ")


def test_a_constant_gain_is_found_however_noisy_the_sentences_are() -> None:
    """Unpaired, a gain of 0.1 would drown in a standard error of 14."""
    values = 100 * np.random.default_rng(0).normal(size=50)
    comparison = paired_bootstrap(values, values + 0.1)
    assert comparison.differs
    assert comparison.interval_95 == pytest.approx((-0.1, -0.1))
    assert comparison.p_value == pytest.approx(2 / 1001)
    assert comparison.verdict.startswith("the first run is lower: ")
    assert paired_bootstrap(values + 0.1, values).verdict.startswith("the first run is higher: ")


def test_a_gain_within_the_noise_is_not_called_one() -> None:
    first = np.array([0.0, 1.0] * 20)
    second = np.array([1.0, 0.0] * 19 + [1.0, 0.3])  # worse by 0.0075 in the mean, standard error 0.16
    comparison = paired_bootstrap(first, second)
    assert comparison.difference < 0
    assert not comparison.differs
    assert comparison.p_value > 0.5
    assert "n = 40" in comparison.verdict


def test_intervals_cover_the_truth_in_95_of_100_cases() -> None:
    """400 data sets of 60 sentences: within 3.5 standard errors of 95 %, less the known shortfall of small samples."""
    rng = np.random.default_rng(0)
    hits = {"difference": 0, "perplexity": 0}
    for seed in range(400):
        tokens = rng.integers(5, 30, size=60)
        hard = rng.normal(size=60)
        first, second = 2.0 * tokens + hard + rng.normal(size=60), 2.0 * tokens + hard + rng.normal(size=60)
        low, high = paired_bootstrap(first, second, num_resamples=300, seed=seed).interval_95
        hits["difference"] += low <= 0 <= high
        low, high = mean(first, tokens=tokens, num_resamples=300, seed=seed).interval_95
        hits["perplexity"] += low <= math.exp(2.0) <= high
    for covered in hits.values():
        assert 0.90 <= covered / 400 <= 0.985


def test_the_interval_is_that_of_the_normal_approximation_for_many_sentences() -> None:
    values = np.random.default_rng(0).normal(5, 2, size=2000)
    low, high = mean(values, num_resamples=4000).interval_95
    error = values.std() / math.sqrt(2000)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_memory_is_bounded_without_a_change_of_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=30)
    whole = mean(values)
    monkeypatch.setattr("latent_ebm_text.evaluation.bootstrap._CHUNK", 70)  # two resamples at a time
    assert mean(values).interval_95 == pytest.approx(whole.interval_95)


def test_the_seed_alone_decides() -> None:
    values = np.random.default_rng(0).normal(size=30)
    assert mean(values, seed=1) == mean(values, seed=1)
    assert mean(values, seed=1) != mean(values, seed=2)


def test_tensors_are_welcome_and_results_are_json() -> None:
    first, second = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2.0, 2.0, 3.0])
    comparison = paired_bootstrap(first, second, tokens=torch.tensor([1, 2, 3]))
    written = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert written["difference"] == comparison.difference == 0.0
    assert written["interval_95"] == list(comparison.interval_95)
    assert written["verdict"] == comparison.verdict
    assert json.loads(json.dumps(mean(first).to_dict()))["n"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"second": [1.0, 2.0]}, "second has 2 values where the other side has 3: give the same sentences"),
        ({"tokens": [1, 2]}, "tokens has 2 values where the other side has 3"),
        ({"second": [1.0, math.nan, 2.0]}, "second contains values that are not finite"),
        ({"tokens": [1, 0, 2]}, "tokens must be positive for every sentence"),
        ({"first": [1.0], "second": [1.0]}, r"first must hold one number for each of at least 2 .* got shape \(1,\)"),
        ({"first": 1.0}, "first must hold one number for each"),
        ({"num_resamples": 99}, "num_resamples must be at least 100 to give a 95 % interval, got 99"),
    ],
)
def test_refused_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        paired_bootstrap(**{"first": [1.0, 2.0, 3.0], "second": [3.0, 2.0, 1.0], **arguments})


# --- samples that each run has generated, and whole evaluations ---


def test_unpaired_runs_may_have_different_numbers_of_sentences() -> None:
    comparison = unpaired_bootstrap([1.0, 2.0, 3.0], [5.0, 7.0])
    assert (comparison.first, comparison.second, comparison.difference, comparison.n) == (2.0, 6.0, -4.0, 2)
    perplexities = unpaired_bootstrap([2.0, 4.0], [3.0, 9.0, 6.0], tokens=([1, 2], [1, 3, 2]))
    assert perplexities.first == pytest.approx(math.exp(2.0))
    assert perplexities.second == pytest.approx(math.exp(3.0))


def test_unpaired_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng, covered = np.random.default_rng(0), 0
    for _ in range(200):
        first, second = rng.normal(1.0, 1.0, size=60), rng.normal(0.5, 2.0, size=90)
        low, high = unpaired_bootstrap(first, second, num_resamples=300).interval_95
        covered += low <= 0.5 <= high
    assert 178 <= covered <= 198


def write_evaluation(folder: Path, shift: float, index: int = 0, perplexities: bool = True) -> Path:
    rng = np.random.default_rng(1)
    arrays = {"index": np.arange(index, index + 40), "marginal_nll": rng.normal(90, 20, size=40) + shift}
    if perplexities:
        arrays |= {"rppl_nll": rng.normal(90, 20, size=60) + shift, "rppl_words": np.full(60, 20)}
        arrays |= {"fppl_nll": rng.normal(90, 20, size=80) + shift, "fppl_words": np.full(80, 20)}
    folder.mkdir()
    np.savez(folder / "sentences.npz", **arrays)
    return folder


def test_evaluations_are_compared_metric_by_metric(tmp_path: Path) -> None:
    first, second = write_evaluation(tmp_path / "a", 0.0), write_evaluation(tmp_path / "b", 1.0)
    found = compare_evaluations(first, second)
    assert list(found) == ["marginal NLL", "RPPL", "FPPL"]
    assert found["marginal NLL"].difference == pytest.approx(-1.0)
    assert found["RPPL"].second == pytest.approx(math.exp(1 / 20) * found["RPPL"].first)
    assert found["marginal NLL"].differs, "the same sentences: what is common to both cancels"
    assert found["RPPL"].differs
    assert not found["FPPL"].differs, "sentences of each model's own: a nat drowns in the noise"


def test_evaluations_without_an_evaluator_are_compared_by_likelihood_alone(tmp_path: Path) -> None:
    first = write_evaluation(tmp_path / "a", 0.0, perplexities=False)
    assert list(compare_evaluations(first, write_evaluation(tmp_path / "b", 1.0))) == ["marginal NLL"]


def test_evaluations_without_a_likelihood_are_compared_by_perplexities(tmp_path: Path) -> None:
    folders = [write_evaluation(tmp_path / name, 0.0) for name in "ab"]
    for folder in folders:
        with np.load(folder / "sentences.npz") as arrays:
            kept = {name: value for name, value in arrays.items() if "ppl" in name}
        np.savez(folder / "sentences.npz", **kept)
    assert list(compare_evaluations(*folders)) == ["RPPL", "FPPL"]


@pytest.mark.parametrize(
    ("facts", "settings", "message"),
    [
        ({"fingerprint": "b"}, {}, "have different data"),
        ({}, {"evaluator": "quick"}, "have different evaluators .*quick"),
        ({}, {"rppl_evaluator": "quick"}, "have different evaluators of RPPL .*full and quick"),
    ],
)
def test_evaluations_made_in_different_ways_are_not_compared(
    tmp_path: Path, facts: dict[str, str], settings: dict[str, str], message: str
) -> None:
    folders = [write_evaluation(tmp_path / name, 0.0) for name in "ab"]
    report: dict[str, dict[str, str]] = {"facts": {"fingerprint": "a"}, "settings": {"evaluator": "full"}}
    (folders[0] / "evaluation.json").write_text(json.dumps(report))
    changed = {"facts": report["facts"] | facts, "settings": report["settings"] | settings}
    (folders[1] / "evaluation.json").write_text(json.dumps(changed))
    with pytest.raises(UsageError, match=message):
        compare_evaluations(*folders)


def test_different_sentences_or_a_folder_without_an_evaluation_are_refused(tmp_path: Path) -> None:
    first = write_evaluation(tmp_path / "a", 0.0)
    with pytest.raises(UsageError, match="different test sentences: evaluate with the same seed"):
        compare_evaluations(first, write_evaluation(tmp_path / "b", 0.0, index=1))
    with pytest.raises(UsageError, match=r"make it with recipes/evaluate_text\.py"):
        compare_evaluations(first, tmp_path / "nowhere")
