"""From a recipe to a Hub and back, as users do it: new processes, led to the server by their environment alone."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from latent_ebm_text.latents.rng import derived_generator
from latent_ebm_text.models.loading import load_text_model
from tests.hub_server import HubServer
from tests.tiny_runs import DATA, MODEL, TRAINING

ROOT = Path(__file__).parents[2]
PULL = """
import sys
from transformers import AutoTokenizer
from latent_ebm_text import LatentEBMForTextGeneration
from latent_ebm_text.latents.rng import derived_generator

model = LatentEBMForTextGeneration.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
ids = model.generate(num_samples=4, generator=derived_generator(7, "samples", 0))
print("\\n".join(tokenizer.batch_decode(ids, skip_special_tokens=True)))
"""
REMOTE = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
print(type(model).__module__, model.generate(num_samples=2).shape[0])
"""


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer().running() as server:
        yield server


def execute(server: HubServer, cache: Path, *arguments: object, code: str | None = None) -> list[str]:
    """The lines that a new process prints."""
    program = ["-c", code] if code else []
    done = subprocess.run(
        [sys.executable, *program, *map(str, arguments)],
        env={**os.environ, **server.environment(cache), "ACCELERATE_USE_CPU": "true"},
        cwd=ROOT, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_recipe_pushes_and_another_process_generates_the_same_text(server: HubServer, tmp_path: Path) -> None:
    settings = {**DATA, **MODEL, **TRAINING, "output_dir": tmp_path / "run", "hub_model_id": "me/tiny"}
    options = [f"--{name}={value}" for name, value in settings.items()]
    out = execute(server, tmp_path / "a", "recipes/train_ptb.py", *options, "--push_to_hub", "--hub_remote_code")
    assert out[-1].strip().startswith(f"pushed: {server.endpoint}/me/tiny/commit/")

    model, tokenizer = load_text_model(tmp_path / "run")
    ids = model.generate(num_samples=4, generator=derived_generator(7, "samples", 0))
    assert execute(server, tmp_path / "b", "me/tiny", code=PULL) == tokenizer.batch_decode(
        ids, skip_special_tokens=True
    )


@pytest.mark.slow
def test_remote_code_needs_no_import(server: HubServer, trained: Path, tmp_path: Path) -> None:
    push = ["-m", "latent_ebm_text.commands", "push", trained, "me/tiny", "--remote-code", "--json"]
    assert json.loads("\n".join(execute(server, tmp_path / "a", *push)))["repo_id"] == "me/tiny"
    assert execute(server, tmp_path / "b", "me/tiny", code=REMOTE) == ["latent_ebm_text.models.modeling_text 2"]


@pytest.mark.slow
@pytest.mark.real_data
def test_the_recipe_of_penn_treebank_takes_its_data_over_http(server: HubServer, tmp_path: Path) -> None:
    folder = Path(os.environ.get("LATENT_EBM_DATA", "")) / "ptb"
    if "LATENT_EBM_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("needs Penn Treebank: set LATENT_EBM_DATA to the folder that holds ptb/")
    serve_penn_treebank(server, folder)
    settings = {**MODEL, **TRAINING, "num_epochs": 0.01, "output_dir": tmp_path / "run", "hub_model_id": "me/ptb"}
    options = [f"--{name}={value}" for name, value in settings.items()]
    out = execute(server, tmp_path / "cache", "recipes/train_ptb.py", *options, "--push_to_hub")
    assert "data: ptb (ptb-text-only/ptb_text_only @ refs/convert/parquet): 42,068 train, 3,370" in "\n".join(out)
    assert "(fingerprint f4add1e66811cbcc)" in "\n".join(out)
    card = server.model("me/ptb").files()["README.md"].decode()
    assert re.search(r"^- ptb-text-only/ptb_text_only$", card, re.MULTILINE)
    assert "Linguistic Data Consortium" in card


def serve_penn_treebank(server: HubServer, folder: Path) -> None:
    """The local files under the Hub's name: a loading script on main, and the rows as parquet beside it."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    files = {}
    for split, name in (("train", "train"), ("validation", "valid"), ("test", "test")):
        lines = [line.strip() for line in (folder / f"{name}.txt").read_text(encoding="utf-8").splitlines()]
        buffer = io.BytesIO()
        pq.write_table(pa.table({"sentence": lines}), buffer)
        files[f"penn_treebank/{split}/0000.parquet"] = buffer.getvalue()
    server.add("datasets", "ptb-text-only/ptb_text_only", {"ptb_text_only.py": b"raise SystemExit\n"})
    server.add("datasets", "ptb-text-only/ptb_text_only", files, branch="refs/convert/parquet")
