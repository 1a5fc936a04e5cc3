"""The program `latent-ebm`: what each command prints, for people and for programs, and how it fails."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from huggingface_hub import ModelCard

from latent_ebm_text.commands import sentences
from latent_ebm_text.commands.main import COMMANDS, main
from latent_ebm_text.latents.interpolation import PathKind
from latent_ebm_text.models.loading import load_text_model
from latent_ebm_text.models.scoring import Marginal, ScoreName
from tests.hub_server import HubServer
from tests.tiny_runs import DATA, MODEL, TRAINING

ROOT = Path(__file__).parents[2]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the program; its exit code, what it prints, and what it says on stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["latent-ebm", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        captured = capsys.readouterr()
        return left.value.code or 0, captured.out, captured.err

    return run


def as_options(**settings: object) -> list[str]:
    return [f"--{name}={value}" for name, value in settings.items()]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_examples(run: Run, command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"  latent-ebm {command}" in out
    assert "--json" in out


def test_the_program_names_its_commands_and_version(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    listed = out.partition("Commands:\n")[2].partition("\n\n")[0]
    assert [line.split()[0] for line in listed.splitlines()] == list(COMMANDS)
    assert "Exit codes: 0 success" in out
    assert run("--version")[1].strip().count(".") == 2


def test_generate(run: Run, trained: Path) -> None:
    code, out, _ = run("generate", trained, "--num-samples", 3, "--seed", 5)
    assert code == 0
    assert len(out.splitlines()) == 3
    code, as_json, _ = run("generate", trained, "--num_samples", 3, "--seed", 5, "--json")
    rows = json.loads(as_json)
    assert [row["text"] for row in rows] == out.splitlines(), "an option may be written with underscores"
    assert all(isinstance(row["energy"], float) for row in rows)
    assert run("generate", trained, "--num-samples", 3, "--seed", 6)[1] != out
    _, out, _ = run("generate", trained, "--num-samples", 2, "--prompt", "the bank", "--greedy", "--max-new-tokens", 2)
    assert all(line.startswith("the bank") and len(line.split()) <= 4 for line in out.splitlines())


@pytest.fixture(scope="module")
def knowing(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained model with two attributes of arbitrary labels."""
    folder = tmp_path_factory.mktemp("knowing")
    model, tokenizer = load_text_model(trained)
    texts = ["the bank recovers", "the exporter sank"] * 20
    labels = {"tone": ["good", "bad"] * 20, "rank": [float(row) for row in range(40)]}
    model.fit_attributes(texts, labels, tokenizer=tokenizer, num_draws=1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_generate_and_edit_with_attributes(run: Run, knowing: Path) -> None:
    wanted = ["--attribute", "tone=good,rank=12.5", "--strength", 2]
    code, out, _ = run("generate", knowing, "--num-samples", 3, *wanted)
    assert code == 0
    assert len(out.splitlines()) == 3
    sentences = ["the bank recovers", "the exporter sank"]
    code, out, _ = run("edit", knowing, *sentences, *wanted, "--num-candidates", 2)
    assert code == 0
    code, as_json, _ = run("edit", knowing, *sentences, *wanted, "--num-candidates", 2, "--json")
    rows = json.loads(as_json)
    assert [row["source"] for row in rows] == sentences
    assert "\n".join(row["text"] for row in rows) == out.rstrip("\n")
    assert all(row["candidates"][0]["score"] >= row["candidates"][1]["score"] for row in rows)
    for command, options, message in (
        ("generate", ["--attribute", "tone=fine"], "tone has no value 'fine'; its values are bad, good"),
        ("generate", ["--attribute", "mood=good"], "unknown attribute 'mood'; the model knows tone, rank"),
        ("generate", ["--attribute", "tone"], "an attribute is asked for as NAME=VALUE, got 'tone'"),
        ("generate", ["--attribute", "tone=good,tone=bad"], "tone was asked for twice"),
        ("generate", ["--attribute", "rank=high"], "rank is a number, got 'high'"),
        ("edit", ["a bank"], "say what is wanted, such as --attribute sentiment=positive"),
    ):
        code, _, err = run(command, knowing, *options)
        assert code == 2
        assert message in err.splitlines()[-1]


def test_score(run: Run, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sentences = ["the bank will", "bank the the bank will"]
    code, out, _ = run("score", trained, *sentences, "--json")
    rows = json.loads(out)
    assert code == 0
    assert [row["text"] for row in rows] == sentences
    assert rows[0]["nll"] / rows[0]["nll_per_token"] == pytest.approx(4)
    (tmp_path / "lines.txt").write_text("\n".join([*sentences, "", ""]))
    cheap = ["--by", "reconstruction_per_token", "--marginal", "none"]
    code, plain, _ = run("score", trained, "--file", tmp_path / "lines.txt", *cheap)
    assert [float(line.split()[0]) for line in plain.splitlines()] == pytest.approx(
        [row["reconstruction_per_token"] for row in rows], abs=1e-3
    )
    code, out, _ = run("score", trained, *sentences, "--explain", *cheap)
    assert (code, out.splitlines()[0].split()[1::2]) == (0, ["the", "bank", "will"])
    words = json.loads(run("score", trained, *sentences, "--explain", *cheap, "--json")[1])[1]["words"]
    assert [each["word"] for each in words] == sentences[1].split()
    assert max(words, key=lambda each: each["surprise"])["word"] in ("bank", "the")
    (tmp_path / "table.csv").write_text("id,said,heard\n" + "".join(f"{s[:3]},{s},{s}\n" for s in sentences))
    assert run("score", trained, "--file", tmp_path / "table.csv", "--text_column", "heard", *cheap)[1] == plain
    code, _, err = run("score", trained, "--file", tmp_path / "table.csv")
    assert (code, err.count("\n")) == (2, 1)
    assert "cannot tell which column" in err
    assert run("score", trained, "a", "--text_column", "heard")[0] == 2
    for command in (["score", "caf\udce9"], ["interpolate", "a", "caf\udce9"], ["generate", "--prompt", "caf\udce9"]):
        code, _, err = run(command[0], trained, *command[1:])
        assert (code, err.count("\n"), "half of a surrogate pair" in err) == (2, 1, True)
    assert run("score", trained, "the zygote will", *cheap)[2].endswith("read as <unk>: zygote\n")
    assert "unknown" not in run("score", trained, "the <unk> will", *cheap)[2]
    assert run("score", trained)[0] == run("score", trained, "a", "--file", "b")[0] == 2
    assert run("score", trained, "a", "--by", "beauty")[0] == 2
    (tmp_path / "empty.txt").write_text("\n")
    code, _, err = run("score", trained, "--file", tmp_path / "empty.txt")
    assert (code, err.count("\n")) == (1, 1)


def test_distil(run: Run, trained: Path, tmp_path: Path) -> None:
    command = ["distil", trained, "--output_dir", tmp_path / "distilled", "--num_draws", 200, "--num_steps", 20]
    code, out, err = run(*command)
    assert code == 0, err
    assert re.match(r"effective share of the flow's draws: [01]\.\d\d; corrections accepted: [01]\.\d\d\n", out)
    assert 0 < json.loads(run(*command, "--json")[1])["effective_share"] <= 1
    assert len(run("generate", tmp_path / "distilled", "--num_samples", 3)[1].splitlines()) == 3
    code, _, err = run("distil", trained, "--num_draws", 5)
    assert code == 2
    assert "num_draws must be at least 100" in err.splitlines()[-1]


def test_interpolate(run: Run, trained: Path) -> None:
    code, out, _ = run(
        "interpolate", trained, "the bank recovers", "a storm", "--num-points", 4, "--path", "low_energy"
    )
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["0.00", "0.33", "0.67", "1.00"]
    rows = json.loads(run("interpolate", trained, "the bank", "a storm", "--num-points", 3, "--json")[1])
    assert [row["place"] for row in rows] == [0, 0.5, 1]
    assert run("interpolate", trained, "a", "b", "--num-points", 1)[0] == 2


def test_train_prints_its_results_alone_as_json(run: Run, tmp_path: Path) -> None:
    settings = {**DATA, **MODEL, **TRAINING, "output_dir": tmp_path / "run", "num_epochs": 1}
    code, out, err = run("train", *as_options(**settings), "--json")
    assert code == 0, err
    assert json.loads(out)["step"] == 7
    assert "16 samples, as they came" not in out


def test_evaluate_and_push(run: Run, hub: HubServer, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    corpus = {name: value for name, value in DATA.items() if name != "max_length"}  # the model knows its own
    code, out, _ = run(
        "evaluate", *as_options(**corpus, model=trained, output_dir=folder, evaluator="none"),
        *as_options(num_likelihood_sentences=0, num_information_sentences=4, num_samples=220, chain_repetitions=0),
        "--json",
    )  # fmt: skip
    assert code == 0
    assert "prior NLL" in json.loads(out)["metrics"]
    code, out, _ = run("push", trained, "me/run", "--evaluation", folder, "--dry-run")
    assert "| self-BLEU | test |" in out
    assert not hub.repositories, "nothing was pushed yet"
    code, out, _ = run("push", trained, "me/run", "--evaluation", folder, "--json")
    assert json.loads(out)["url"].startswith(hub.endpoint)
    assert "| self-BLEU | test |" in hub.model("me/run").files()["README.md"].decode()


def test_verify_finds_the_metric_that_was_made_better(run: Run, trained: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(trained, tmp_path / "run")) / "model" / "README.md"
    card = ModelCard(path.read_text())
    better = next(result for result in card.data.eval_results if result.dataset_split == "test")
    better.metric_value -= 5
    better.metric_args["interval_95"] = [bound - 5 for bound in better.metric_args["interval_95"]]
    card.save(path)
    code, out, _ = run("verify", tmp_path / "run", "--json")
    verdicts = {(row["name"], row["split"]): row["verdict"] for row in json.loads(out)}
    assert code == 1
    assert verdicts.pop((better.metric_name, "test")) == "differs"
    assert len(verdicts) >= 3
    assert set(verdicts.values()) == {"same"}


def test_a_training_too_short_for_an_evaluation_is_judged_at_its_end(trained: Path) -> None:
    assert '"validation"' not in (trained / "metrics.jsonl").read_text()
    results = json.loads((trained / "results.json").read_text())
    assert abs(results["splits"]["test"]["latent_gain"]["value"]) < 1
    assert ["the latent is hardly used" in warning for warning in results["warnings"]] == [True]


def test_a_card_that_was_damaged_by_hand_is_one_line(run: Run, trained: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(trained, tmp_path / "run")) / "model" / "README.md"
    card = path.read_text()
    for damaged, message in (
        (re.sub(r"(?m)^( *)value: .*$", r"\1value: many", card), "README.md does not hold what this library writes"),
        (card.replace("---\n", "---\n: [", 1), "the metadata of .*README.md is not valid YAML"),
    ):
        path.write_text(damaged)
        code, _, err = run("verify", tmp_path / "run")
        assert code == 1
        assert re.search(f"^error: .*{message}", err.splitlines()[-1]), err


def test_doctor(run: Run, trained: Path, tmp_path: Path) -> None:
    code, out, _ = run("doctor", "--offline", "--json")
    findings = {finding["subject"]: finding for finding in json.loads(out)}
    assert code == 0
    assert f"torch {torch.__version__}" in findings["versions"]["message"]
    assert findings["Hub"]["message"] == "not checked (offline)"

    code, out, _ = run("doctor", trained, "--offline")
    assert code == 1, "fourteen steps do not make a latent that is used"
    assert "!!   latent: the latent is hardly used" in out
    assert "chains: " in out
    assert "training: 14 steps" in out

    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    record = {"kind": "validation", "step": 12, "latent_gain": 0.2, "energy_gap": 80.0, "std_mismatch": 0.0}
    lines = (trained / "metrics.jsonl").read_text() + json.dumps(record) + "\n"
    (unfinished / "metrics.jsonl").write_text(lines)
    shutil.copytree(trained / "checkpoints", unfinished / "checkpoints")
    code, out, _ = run("doctor", unfinished, "--offline")
    assert code == 1
    assert "training: not finished (step 12): run the same command again" in out
    assert "Raise likelihood_weight (now 1)" in out
    rate = json.loads((trained / "results.json").read_text())["settings"]["prior_learning_rate"]
    assert f"Lower prior_learning_rate (now {rate:g})" in out, "the setting of the run, not the default"
    assert run("doctor", tmp_path / "nothing", "--offline")[0] == 2


@pytest.mark.parametrize(
    ("file", "changes", "commands"),
    [
        ("results.json", {"training_seconds": "many"}, ["doctor"]),
        ("results.json", {"step": None}, ["doctor"]),
        ("results.json", {"splits": []}, ["push"]),
        ("results.json", {"dataset": "grammar"}, ["push"]),
        ("results.json", {"settings": 3}, ["verify"]),
        ("results.json", {"settings": {"num_sentences": "many"}}, ["verify"]),
        ("results.json", {"settings": "{{{"}, ["verify"]),
    ],
)
def test_a_record_that_was_changed_by_hand_is_one_line(
    run: Run, trained: Path, tmp_path: Path, file: str, changes: dict[str, object], commands: list[str]
) -> None:
    path = Path(shutil.copytree(trained, tmp_path / "run")) / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    for command in commands:
        options = {"doctor": ["--offline"], "push": ["--dry_run"], "verify": []}[command]
        code, _, err = run(command, tmp_path / "run", *options)
        assert code == 1
        assert err.splitlines()[-1].startswith("error: ")
        assert "does not hold what this library writes there (" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["generate", "./nowhere"], 2, "error: there is no folder ./nowhere"),
        (["generate", ".", "--temperature", "0"], 2, "error: temperature must be positive"),
        (["generate", ".", "--max-new-tokens", "-3"], 2, "error: max_new_tokens must be positive"),
        (["generate", ".", "--top-p", "2"], 2, "error: top_p must be in (0, 1], got 2"),
        (["train", "--num_epoch", "3"], 2, "error: unknown option '--num_epoch'; did you mean '--num_epochs'?"),
        (["train", "--config", "nowhere.yaml"], 2, "error: the config file nowhere.yaml does not exist"),
        (["evaluate"], 2, "error: model is required"),
        (["push", "./nowhere"], 2, "error: there is no folder ./nowhere"),
        (["verify", "."], 2, "holds no model"),
        (["bake"], 2, "error: unknown command 'bake'"),
        (["scor"], 2, "error: unknown command 'scor'; did you mean 'score'?"),
        (["generate"], 2, "error: the following arguments are required: MODEL"),
    ],
)
def test_a_wrong_call_is_one_clear_line(run: Run, arguments: list[str], code: int, message: str) -> None:
    left, out, err = run(*arguments)
    assert (left, out) == (code, "")
    assert message in err
    assert "Traceback" not in err


def test_configs_of_the_library_are_known_by_name(run: Run, tmp_path: Path) -> None:
    # The config is read, and what is given beside it is refused: nothing is trained.
    code, _, err = run("train", "--config", "quickstart", "--dataset_name", tmp_path / "nothing.txt")
    assert (code, err.splitlines()[-1].startswith("error: there is no file or folder")) == (2, True)


def test_interrupted(run: Run, monkeypatch: pytest.MonkeyPatch, trained: Path) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("latent_ebm_text.models.loading.load_text_model", interrupt)
    assert run("generate", trained)[0] == 130


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("latent-ebm ver", {"verify"}),
        ("latent-ebm interpolate a b c --num_p", {"--num_points"}),
        ("latent-ebm train --hub_p", {"--hub_private"}),
        ("latent-ebm train --prior_sampler.num_s", {"--prior_sampler.num_steps"}),
        ("latent-ebm train --images --decoder_f", {"--decoder_first_size"}),
    ],
)
def test_shells_complete(words: str, expected: set[str], tmp_path: Path) -> None:
    pytest.importorskip("argcomplete", reason="the extra `completion` is not installed")
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": words, "COMP_POINT": str(len(words)), "_ARGCOMPLETE_IFS": "\n"}
    environment = {**os.environ, **asked, "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "found")}
    code = "import sys; sys.argv = ['latent-ebm']; from latent_ebm_text.commands.main import main; main()"
    program = [sys.executable, "-c", code]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, cwd=ROOT, check=False)
    assert {word.strip() for word in (tmp_path / "found").read_text().split("\n")} >= expected, done.stderr


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys\nfrom latent_ebm_text.commands.main import run\n"
        "try:\n    run(['generate', '--help'])\nexcept SystemExit:\n    assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_choices_are_those_of_the_library() -> None:
    """They stand twice, so that `--help` need not import torch."""
    assert (sentences.Marginal, sentences.PathKind) == (Marginal, PathKind)
    assert set(get_args(sentences.ScoreName)) == set(get_args(ScoreName)) - {"squared_error"}, "that is for images"
