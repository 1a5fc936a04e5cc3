"""Trivial samplers: what they draw, and which metrics they fool."""

from collections import Counter
from pathlib import Path

import pytest
from accelerate import Accelerator

from latent_ebm_text.commands.arguments import DataArguments
from latent_ebm_text.commands.train_text import prepare
from latent_ebm_text.evaluation.comparison import compare_samplers, trivial_samples
from latent_ebm_text.evaluation.estimates import Estimate
from latent_ebm_text.evaluation.report import Report

TRAIN = ["a b c", "b a", "a b", "c"]


def test_they_draw_what_they_are_said_to() -> None:
    samples = trivial_samples(TRAIN, TRAIN[:2], 4000, seed=0)
    assert all(len(texts) == 4000 for name, texts in samples.items() if name != "shuffled training text")
    followers = {"a": {"b", None}, "b": {"c", "a", None}, "c": {None}}
    firsts = Counter(text.split()[0] for text in samples["bigrams"])
    assert {word: firsts[word] / 4000 for word in "abc"} == pytest.approx({"a": 0.5, "b": 0.25, "c": 0.25}, abs=0.03)
    for text in samples["bigrams"]:
        words = text.split()
        assert all(after in followers[word] for word, after in zip(words, [*words[1:], None], strict=True))
    counts = Counter(word for text in samples["unigrams"] for word in [*text.split(), "end"])
    shares = {word: count / counts.total() for word, count in counts.items()}
    assert shares == pytest.approx({"a": 3 / 12, "b": 3 / 12, "c": 2 / 12, "end": 4 / 12}, abs=0.02)
    assert [sorted(text.split()) for text in samples["shuffled training text"]] == [sorted(t.split()) for t in TRAIN]
    assert samples["best training sentences, repeated"][:3] == ["a b c", "b a", "a b c"]
    assert trivial_samples(TRAIN, TRAIN[:2], 4000, seed=0) == samples != trivial_samples(TRAIN, TRAIN, 4000, seed=1)


@pytest.mark.slow
def test_each_trivial_sampler_is_found_out_by_a_metric_that_does_not_like_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latent_ebm_text.evaluation.comparison.EMBEDDED", 200)
    text = prepare(DataArguments(dataset_name="grammar", num_sentences=2500), 0, Accelerator(cpu=True))
    samples = text.corpus.splits["train"]["text"][:]
    table = compare_samplers(samples, text.tokenizer, text.splits, cache_dir=tmp_path, seed=0)
    value = {row: {name: metric.value for name, metric in found.items()} for row, found in table.items()}
    real = value["training text"]
    assert value["the model"]["copy rate"] == real["copy rate"] == 1, "copies are called copies"
    assert value["unigrams"]["FPPL"] > 2 * real["FPPL"]
    assert value["bigrams"]["FPPL"] > 1.1 * real["FPPL"]
    assert value["shuffled training text"]["RPPL"] > 1.5 * real["RPPL"]
    best = value["best training sentences, repeated"]
    assert best["FPPL"] < real["FPPL"], "the one metric that it fools"
    assert best["RPPL"] > 1.5 * real["RPPL"]
    assert best["bigram entropy"] < real["bigram entropy"] - 0.5


def test_few_sentences_many_of_them_alike_are_compared_all_the_same(tmp_path: Path) -> None:
    for split, number in (("train", 150), ("valid", 10), ("test", 10)):
        (tmp_path / f"{split}.txt").write_text("yes it is\n" * number + "no it is not\nthe bank recovers\n")
    text = prepare(DataArguments(dataset_name=str(tmp_path)), 0, Accelerator(cpu=True))
    samples = ["yes it is", "no it is", "the bank is"]  # and so three sentences of every sampler
    table = compare_samplers(samples, text.tokenizer, text.splits, cache_dir=tmp_path, seed=0)
    assert "training text" not in table, "three times the same"
    assert {"FPPL", "RPPL", "copy rate"} <= table["the model"].keys()
    assert all("MAUVE" not in row for row in table.values()), "it needs 20 sentences"
    assert table["the model"]["copy rate"].details["count"] <= 1


def test_a_report_shows_the_table() -> None:
    row = {"FPPL": Estimate(12.345678, (12.0, 13.0), 50, "made up")}
    report = Report({}, tables={"Beside trivial samplers": {"the model": row, "bigrams": row}})
    assert report.to_dict()["tables"]["Beside trivial samplers"]["bigrams"]["FPPL"]["value"] == 12.345678
    written = report.to_markdown()
    assert "## Beside trivial samplers\n\n| | FPPL |" in written
    assert "| bigrams | 12.35 [12, 13] |" in written
    assert written.count("made up") == 1
