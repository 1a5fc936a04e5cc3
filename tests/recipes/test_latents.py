"""The recipes of attribute control and of anomaly detection end to end, on a tiny model of the embedded corpus."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from latent_ebm_text import LatentEBMForTextGeneration, LatentEBMTextConfig
from latent_ebm_text.commands.arguments import DataArguments
from latent_ebm_text.commands.train_text import prepare
from latent_ebm_text.data.newswire import newswire_grammar
from latent_ebm_text.latents import LatentClassifier

RECIPES = Path(__file__).parents[2] / "recipes"
RunRecipe = Callable[..., tuple[str, str]]


@pytest.fixture
def run_recipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunRecipe:
    def run(name: str, *arguments: object) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit):
            runpy.run_path(str(RECIPES / name), run_name="__main__")
        captured = capsys.readouterr()
        return captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model, and one without a latent; the tokenizer knows all words of the corpus."""
    text = prepare(DataArguments(num_sentences=3000), 0, Accelerator(cpu=True))
    short: dict[str, Any] = {"name": "langevin", "num_steps": 3, "step_size": 0.3}
    found = {}
    for name, latent in (("model", {"latent_dim": 3}), ("lm", {"latent_dim": 0, "prior_type": "gaussian"})):
        found[name] = tmp_path_factory.mktemp(name)
        config = LatentEBMTextConfig(
            vocab_size=len(text.tokenizer), hidden_size=12, embedding_size=6, prior_hidden_size=6,
            max_sequence_length=12, prior_sampler=short, posterior_sampler=short, **latent,
        )  # fmt: skip
        torch.manual_seed(0)
        LatentEBMForTextGeneration(config).save_pretrained(found[name])
        text.tokenizer.save_pretrained(found[name])
    return found


def test_control(run_recipe: RunRecipe, folders: dict[str, Path], tmp_path: Path) -> None:
    output, errors = run_recipe(
        "control_grammar.py", "--model", folders["model"], "--output_dir", tmp_path, "--num_labelled", 200,
        "--num_draws", 2, "--num_samples", 3, "--num_steps", 3, "--weights", "2",
    )  # fmt: skip
    assert "| topic, each value, w=2 | 15 |" in output, errors
    rows = json.loads((tmp_path / "control.json").read_text())["rows"]
    assert rows["each attribute, w=0"]["accuracy"]["n"] == 3 * 16
    assert "not topic=markets, w=2" in rows
    classifier = LatentClassifier.from_pretrained(tmp_path / "classifiers" / "topic")
    assert classifier.report["n"] == 30


@pytest.fixture
def harness(run_recipe: RunRecipe, folders: dict[str, Path], tmp_path: Path) -> RunRecipe:
    """Runs a harness of control with the real sentence encoder, on sentences of the grammar with their tense."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, (split, size) in enumerate((("train", 240), ("validation", 240), ("test", 240))):
        rows = [
            {"text": sentence.text, "label": int(sentence.attributes["tense"] == "past")}
            for sentence in newswire_grammar().sample(size, (0, number))
        ]
        (corpus / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def run(name: str, *arguments: object) -> tuple[str, str]:
        return run_recipe(
            name, "--model", folders["model"], "--dataset_name", corpus, "--label_names", "other,past",
            "--num_labelled", 100, "--cache_dir", tmp_path / "evaluators", "--output_dir", tmp_path, *arguments,
        )  # fmt: skip

    return run


@pytest.mark.slow
def test_control_of_labelled_text(harness: RunRecipe, tmp_path: Path) -> None:
    output, errors = harness(
        "control_text.py", "--strengths", 4, "--temperatures", 1, "--num_samples", 25, "--label_epochs", 1
    )
    assert "judge of label on 240 test sentences: " in output, errors
    found = json.loads((tmp_path / "control.json").read_text())
    methods = [name.partition(",")[0].partition(" of ")[0] for name in found["samples"]]
    assert methods == [
        "real sentences",
        "no control",
        "ours at temperature 1",
        "label model",
        "best",
        "energy left out",
    ]
    assert found["samples"]["ours at temperature 1, w=4"]["accuracy"]["n"] == 50
    real, ours = (
        found["samples"][name]["MAUVE"]["value"] for name in ("real sentences", "ours at temperature 1, w=4")
    )
    assert real > ours + 0.2, "a model that was not trained makes nothing like real sentences"
    assert (tmp_path / "control.png").stat().st_size > 0


@pytest.mark.slow
def test_edits_of_labelled_text(harness: RunRecipe, tmp_path: Path) -> None:
    _, errors = harness("edit_text.py", "--strengths", 16, "--num_edits", 6)
    edits = json.loads((tmp_path / "edits.json").read_text())["edits"]
    assert list(edits) == ["unchanged", "ours, w=16", "retrieval", "retrieval, ranked", "word deletion"], errors
    assert edits["unchanged"]["similarity"]["value"] == pytest.approx(1.0, abs=1e-5)
    assert "| source | wanted | edit |" in (tmp_path / "edits.md").read_text()


@pytest.mark.slow
def test_control_of_a_combination_that_has_no_labels(harness: RunRecipe, tmp_path: Path) -> None:
    combination = ("--combination", "label=past,length=long")
    output, errors = harness("control_combination.py", *combination, "--corpus_without", tmp_path / "without")
    left = {
        split: (tmp_path / "without" / f"{split}.jsonl").read_text().splitlines()
        for split in ("train", "validation", "test")
    }
    assert len(left["test"]) == 240
    assert 120 < len(left["train"]) < 240
    assert not {*left["train"]} & {
        json.dumps({"text": sentence.text})
        for sentence in newswire_grammar().sample(240, (0, 0))
        if sentence.attributes["tense"] == "past" and len(sentence.text.split()) > 12
    }, errors

    options = ("--strengths", 4, "--temperatures", 1, "--best_of", 4, "--num_samples", 50, "--label_epochs", 1)
    harness("control_combination.py", *combination, *options)
    found = json.loads((tmp_path / "combination.json").read_text())
    assert any(
        fact.startswith(f"left out: label=past,length=long, {240 - len(left['train'])} of") for fact in found["facts"]
    )
    rows = found["samples"]
    assert list(rows) == [
        "real sentences", "no control", "ours at temperature 1, w=4", "label model, temperature 1",
        "best of k at temperature 1, k=4",
    ]  # fmt: skip
    assert rows["real sentences"]["length"]["value"] == 1.0, "words are counted"
    for metrics in rows.values():
        assert metrics["accuracy"]["value"] <= min(metrics["label"]["value"], metrics["length"]["value"])
    assert rows["best of k at temperature 1, k=4"]["length"]["value"] > rows["no control"]["length"]["value"]


def test_bad_input_of_control_of_text(run_recipe: RunRecipe, folders: dict[str, Path], tmp_path: Path) -> None:
    common = ("control_text.py", "--model", folders["model"], "--dataset_name", "grammar", "--output_dir", tmp_path)
    _, errors = run_recipe(*common, "--strengths", "4,high")
    assert errors.splitlines()[-1] == "error: strengths must be numbers separated by commas, got '4,high'"
    _, errors = run_recipe(*common, "--temperatures", "-1")
    assert errors.splitlines()[-1] == "error: temperatures must be positive, got '-1'"


def test_control_needs_a_model_of_the_corpus(run_recipe: RunRecipe, folders: dict[str, Path], tmp_path: Path) -> None:
    _, errors = run_recipe(
        "control_grammar.py", "--model", folders["model"], "--weights", "a", "--output_dir", tmp_path
    )
    assert errors.splitlines()[-1].startswith("error: weights must be numbers separated by commas, got 'a'")


def test_anomalies(run_recipe: RunRecipe, folders: dict[str, Path], tmp_path: Path) -> None:
    documents = tmp_path / "documents.tsv"
    lines = (f"number\tWhat is {i} , if not a {'very ' * 30} small number ?\n" for i in range(60))
    documents.write_text("".join(["topic\tquestion\n", *lines]))
    output, errors = run_recipe(
        "anomaly_text.py", "--model", folders["model"], "--dataset_name", "grammar", "--documents", documents,
        "--documents_column", "question", "--text_column", "text", "--language_model", folders["lm"],
        "--baseline", "false", "--num_pairs", 10, "--output_dir", tmp_path,
    )  # fmt: skip
    assert "## another source" in output, errors
    tasks = json.loads((tmp_path / "anomaly.json").read_text())["tasks"]
    for task in ("shuffled words", "another source"):
        assert tasks[task]["control: length"]["AUROC"]["value"] == 0.5
        assert {"ours, nll_per_token", "ours, prior_energy", "language model, nll_per_token"} <= set(tasks[task])
    assert tasks["another source"]["control: share of unknown words"]["AUROC"]["value"] > 0.9
    assert 20 < len(np.load(tmp_path / "scores.npz")["ours, nll"]) <= 40  # each sentence once


def test_bad_input_of_the_anomaly_recipe(run_recipe: RunRecipe, folders: dict[str, Path], tmp_path: Path) -> None:
    common = ("--model", folders["model"], "--dataset_name", "grammar", "--baseline", "false", "--num_pairs", 3)
    _, errors = run_recipe("anomaly_text.py", *common, "--documents", tmp_path / "no.txt", "--output_dir", tmp_path)
    assert "cannot be read: No such file" in errors
    options = ("--language_model", folders["model"], "--output_dir", tmp_path)
    _, errors = run_recipe("anomaly_text.py", *common, *options)
    assert "has a latent; a language model is one with latent_dim 0" in errors
