"""The evaluation recipes end to end on a tiny model of the embedded corpus, and the table made of their reports."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator

from latent_ebm_text import LatentEBMForTextGeneration, LatentEBMTextConfig
from latent_ebm_text.commands.arguments import DataArguments
from latent_ebm_text.commands.evaluate_text import TextEvaluationArguments, evaluate_text_model
from latent_ebm_text.commands.train_text import prepare
from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.estimates import Estimate
from latent_ebm_text.evaluation.report import Report
from latent_ebm_text.evaluation.text_metrics import sample_metrics
from latent_ebm_text.models.loading import load_text_model

RECIPES = Path(__file__).parents[2] / "recipes"
DATA = ["--dataset_name", "grammar", "--num_sentences", "300"]
RunRecipe = Callable[..., str]


@pytest.fixture
def run_recipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunRecipe:
    def run(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(RECIPES / name), run_name="__main__")
        captured = capsys.readouterr()
        assert stopped.value.code in (0, None), captured.err
        return captured.out

    return run


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    text = prepare(DataArguments(num_sentences=300), 0, Accelerator(cpu=True))
    short: dict[str, Any] = {"name": "langevin", "num_steps": 3, "step_size": 0.3}
    config = LatentEBMTextConfig(
        vocab_size=len(text.tokenizer), hidden_size=12, embedding_size=6, latent_dim=3, prior_hidden_size=6,
        max_sequence_length=12, prior_sampler=short, posterior_sampler=short,
    )  # fmt: skip
    torch.manual_seed(0)
    LatentEBMForTextGeneration(config).save_pretrained(folder)
    text.tokenizer.save_pretrained(folder)
    return folder


def test_a_whole_report(run_recipe: RunRecipe, model_folder: Path, tmp_path: Path) -> None:
    output = run_recipe(
        "evaluate_text.py", "--model", model_folder, *DATA, "--output_dir", tmp_path, "--evaluator", "none",
        "--num_likelihood_sentences", 12, "--num_likelihood_samples", 6, "--num_likelihood_levels", 10,
        "--num_information_sentences", 8, "--num_samples", 220, "--chain_repetitions", 10,
    )  # fmt: skip
    report = json.loads((tmp_path / "evaluation.json").read_text())
    metrics = report["metrics"]
    for name, metric in metrics.items():
        low, high = metric["interval_95"]
        assert low <= metric["value"] <= high, name
        assert metric["n"] > 1, name
        assert metric["definition"], name
        assert f"| {name} |" in output, name
    per_sentence = np.load(tmp_path / "sentences.npz")["marginal_nll"]
    assert metrics["marginal NLL"]["value"] == pytest.approx(per_sentence.mean())
    # log p(x) is the log of a mean over prior draws of what the prior NLL is the mean of (Jensen). Only 12 of the
    # sentences have an estimate of it, so that the means differ by more than the bound.
    assert metrics["marginal NLL"]["interval_95"][0] < metrics["prior NLL"]["value"]
    assert metrics["exact NLL"]["value"] < metrics["marginal NLL"]["value"], "no model beats the corpus itself"
    assert len((tmp_path / "samples.txt").read_text().splitlines()) == 220
    assert "grammar" in report["facts"]["data"]
    assert (tmp_path / "evaluation.md").read_text() in output
    assert "## Chains of the prior" in output
    for picture in ("evaluation.png", "chains.png"):
        assert (tmp_path / picture).stat().st_size > 10_000
    comparison = run_recipe("compare_runs.py", "--first", tmp_path, "--second", tmp_path)
    assert comparison.startswith("marginal NLL: no difference beyond noise")


def test_an_audit_of_what_was_claimed(run_recipe: RunRecipe, model_folder: Path, tmp_path: Path) -> None:
    model, tokenizer = load_text_model(model_folder)
    with torch.no_grad():
        model.decoder.output.bias[tokenizer.eos_token_id] += 3  # so that the sentences it draws end
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    common = ["--model", tmp_path / "model", *DATA, "--num_likelihood_sentences", 12]
    run_recipe(
        "evaluate_text.py", *common, "--output_dir", tmp_path, "--evaluator", "none", "--chain_repetitions", 0,
        "--num_likelihood_samples", 64, "--num_information_sentences", 8, "--num_samples", 20,
    )  # fmt: skip
    options = [*common, "--num_simulated", 8, "--num_levels", 5, "--output_dir", tmp_path / "audit"]
    claim = tmp_path / "sentences.npz"
    output = run_recipe("audit_text.py", *options, "--claimed", claim)
    assert "nats a sentence is reliable within" in output
    assert "is not rejected" in output
    report = json.loads((tmp_path / "audit" / "audit.json").read_text())
    honest = np.load(claim)
    assert report["negative log-likelihood, at most"]["value"] == pytest.approx(honest["marginal_nll"].mean(), abs=0.2)
    np.savez(tmp_path / "flattered.npz", **{**honest, "marginal_nll": honest["marginal_nll"] - 5})
    assert "is rejected" in run_recipe("audit_text.py", *options, "--claimed", tmp_path / "flattered.npz")
    np.savez(tmp_path / "other.npz", index=[0])
    with pytest.raises(AssertionError, match="holds no marginal NLL of these test sentences"):
        run_recipe("audit_text.py", *options, "--claimed", tmp_path / "other.npz")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_samples": 3}, "num_samples must be at least 4"),
        ({"num_information_sentences": 1}, "num_information_sentences must be at least 2"),
        ({"num_likelihood_sentences": 1}, "num_likelihood_sentences must be 0 or at least 2"),
        ({"token_temperature": -1.0}, "token_temperature must be positive"),
        ({"prior_temperature": -1.0}, "prior_temperature must be in"),
        ({"prior_num_steps": 0}, "prior_num_steps must be at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_work(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TextEvaluationArguments(model="nowhere", **setting)


def test_copies_are_found_also_where_the_model_knows_few_words(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"the young team lost the zygote{n} match today" for n in range(40)]
    for split, part in (("train", lines[:20]), ("valid", lines[20:30]), ("test", lines[30:])):
        (tmp_path / f"{split}.txt").write_text("".join(f"{line}\n" for line in part))
    model, tokenizer = load_text_model(str(model_folder))
    text = prepare(DataArguments(dataset_name=str(tmp_path)), 0, Accelerator(cpu=True), tokenizer)
    copies = tokenizer.batch_decode(text.splits["train"]["input_ids"][:], skip_special_tokens=True)
    monkeypatch.setattr("latent_ebm_text.commands.evaluate_text.generate_texts", lambda *args, **kwargs: copies)
    args = TextEvaluationArguments(
        model=str(model_folder), evaluator="none", num_likelihood_sentences=0, num_information_sentences=4,
        chain_repetitions=0,
    )  # fmt: skip
    found = evaluate_text_model(model, tokenizer, text, args).report.metrics
    assert found["copy rate"].value == 1
    assert found["training overlap"].value == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vary": {"likelihood_weight": 1.0}}, "`vary` of .* maps settings to lists of values"),
        ({"vary": [1, 2]}, "`vary` of .* maps settings to lists of values"),
        ({"set": [1]}, "`set` of .* maps settings to values"),
        ({"config": "nowhere.yaml"}, "names the config nowhere.yaml, which does not exist"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(
    run_recipe: RunRecipe, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    sweep = {"config": "recipes/configs/quickstart.yaml", "vary": {"likelihood_weight": [1.0]}} | change
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    with pytest.raises(AssertionError, match=message):
        run_recipe("sweep.py", "--sweep", tmp_path / "sweep.yaml", "--output_dir", tmp_path)


def test_superchains_that_do_not_divide_are_refused(run_recipe: RunRecipe, model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="30 chains do not make 4 superchains of equal size"):
        run_recipe("chain_report.py", "--model", model_folder, "--num_chains", 30, "--superchains", 4,
                   "--output_dir", tmp_path)  # fmt: skip


def test_a_corpus_of_three_test_sentences_is_refused_before_any_work(model_folder: Path, tmp_path: Path) -> None:
    for split, count in (("train", 20), ("valid", 5), ("test", 3)):
        (tmp_path / f"{split}.txt").write_text("the young team lost the match\n" * count)
    model, tokenizer = load_text_model(str(model_folder))
    text = prepare(DataArguments(dataset_name=str(tmp_path)), 0, Accelerator(cpu=True), tokenizer)
    with pytest.raises(UsageError, match="4 test sentences or more, this corpus has 3"):
        evaluate_text_model(model, tokenizer, text, TextEvaluationArguments(model=str(model_folder)))


def test_few_samples_are_compared_with_fewer_references() -> None:
    texts = [
        f"the dog {verb} at {place}" for verb in ("barks", "sleeps", "eats") for place in ("night", "noon", "home")
    ]
    metrics = sample_metrics(texts, texts, texts[:6], seed=0)
    for name in ("self-BLEU", "self-BLEU, real"):
        assert metrics[name].details["num_references"] == 2, "two groups of the 6 real sentences"


@pytest.mark.slow
def test_a_sweep_over_the_temperature_of_the_prior(run_recipe: RunRecipe, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text('{"training_seconds": 60.0}')  # as if trained
    (tmp_path / "run" / "model").symlink_to(model_folder)
    sweep = {
        "config": "recipes/configs/quickstart.yaml",
        "evaluate": {"prior_temperature": [0.01, 1.0], "num_samples": [220], "chain_repetitions": [0]},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
    output = run_recipe(
        "sweep.py", "--sweep", tmp_path / "sweep.yaml", "--output_dir", tmp_path, "--num_likelihood_sentences", 0
    )
    assert len([line for line in output.splitlines() if line.startswith("| prior_temperature=")]) == 2
    reports = []
    for temperature in (0.01, 1.0):
        name = f"evaluation,prior_temperature={temperature},num_samples=220,chain_repetitions=0"
        reports.append(json.loads((tmp_path / "run" / name / "evaluation.json").read_text()))
        assert f"temperature {temperature}" in reports[-1]["facts"]["sampling"]
        assert "marginal NLL" not in reports[-1]["metrics"]
    cold, warm = (report["metrics"]["energy gap"]["value"] for report in reports)
    assert cold > warm + 0.2, "cold chains have less energy"
    assert (tmp_path / "frontier.png").stat().st_size > 10_000


def test_the_chain_report(run_recipe: RunRecipe, model_folder: Path, tmp_path: Path) -> None:
    output = run_recipe(
        "chain_report.py", "--model", model_folder, "--output_dir", tmp_path, "--num_chains", 32, "--superchains", 4,
        "--repetitions", 10,
    )  # fmt: skip
    written = json.loads((tmp_path / "chains.json").read_text())
    assert [stage["multiple"] for stage in written["stages"]] == [1, 2, 5, 10]
    assert written["verdict"] in output
    assert (tmp_path / "chains.png").stat().st_size > 10_000


def test_the_table_sets_our_rows_beside_the_published_ones(tmp_path: Path) -> None:
    make_table = runpy.run_path(str(RECIPES / "table_ptb.py"))["make_table"]
    for row, shift in (("language_model", 5.0), ("latent_ebm", 0.0)):
        folder = tmp_path / row / "evaluation-quick"
        folder.mkdir(parents=True)
        (tmp_path / row / "results.json").write_text('{"training_seconds": 5400.0}')
        report = Report({}, {"marginal NLL": Estimate(100.0 + shift, (99.0 + shift, 101.0 + shift), 50, "made up")})
        report.write(folder)
        np.savez(folder / "sentences.npz", index=np.arange(50), marginal_nll=np.linspace(50, 150, 50) + shift)
    table = make_table(tmp_path, "quick")
    assert "| LSTM language model | - | - | - | 105.00 [104.00, 106.00] | - | - | 90 min |" in table
    assert "| latent EBM (published) | 107.45 | 181.54 | 91.35 |" in table
    assert "against LSTM language model, marginal NLL: the first run is lower" in table
    for line in table.splitlines():
        assert ("107.45" in line) <= ("(published)" in line), "no published figure without its label"


def test_a_metric_may_stand_in_a_report_only_once() -> None:
    report = Report({})
    report.add({"metric": Estimate(1.0, (0.0, 2.0), 3, "made up")})
    with pytest.raises(ValueError, match="already"):
        report.add({"metric": Estimate(1.0, (0.0, 2.0), 3, "made up")})
