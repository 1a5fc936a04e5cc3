"""Memory stays flat: over many steps, many sentences, and a corpus that is larger than what is held of it."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MEASURE = """
import gc
import numpy as np

def resident():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20  # MiB; of now, where ru_maxrss is of ever

def slope(marks):  # MiB from the first measurement to the last, by the line of least squares
    marks = marks[len(marks) // 5 :]  # caches fill at first
    return float(np.polyfit(np.linspace(0, 1, len(marks)), marks, 1)[0])
"""


def measured(code):
    """What a process of its own prints."""
    script = MEASURE + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(done.stdout)  # pytest -rP shows it
    return float(done.stdout.split()[-1])


STEPS = """
    from pathlib import Path
    from tempfile import mkdtemp
    from accelerate import Accelerator
    from latent_ebm_text.training.arguments import TrainingArguments
    from latent_ebm_text.training.trainer import train
    from tests.reliability import worker

    marks = []
    run = worker.Run(Path(mkdtemp()) / "run")
    changes = {{"num_epochs": {steps} / 6, "eval_every": {steps} // 40, "save_every": {steps} // 10}}
    settings = {{**worker.TRAINING, **changes, "inference": "persistent"}}
    args = TrainingArguments(output_dir=str(run.folder), **settings)
    model, data = worker._text(run, args)

    def evaluate(model, step):
        marks.append(resident())
        return {{"reconstruction_nll": 1.0, "latent_gain": 2.0, "energy_gap": 0.0, "std_mismatch": 0.0}}

    train(model, data, args, identity={{}}, evaluate=evaluate, accelerator=Accelerator(cpu=True))
    print([round(mark) for mark in marks], slope(marks))
"""

SENTENCES = """
    from latent_ebm_text.evaluation.text import generate_texts
    from tests.helpers import tiny_model, tiny_tokenizer

    model, tokenizer, marks = tiny_model(), tiny_tokenizer(), []
    for part in range(40):
        count = len(generate_texts(model, tokenizer, {sentences} // 40, seed=part, max_new_tokens=8))
        assert count == {sentences} // 40
        marks.append(resident())
    print([round(mark) for mark in marks], slope(marks))
"""


@pytest.mark.slow
def test_memory_is_flat_over_a_thousand_steps():
    assert measured(STEPS.format(steps=1000)) < 10


@pytest.mark.slow
def test_memory_is_flat_over_twenty_thousand_sentences():
    assert measured(SENTENCES.format(sentences=20_000)) < 10


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_is_flat_over_ten_thousand_steps():
    assert measured(STEPS.format(steps=10_000)) < 10


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_is_flat_over_a_million_sentences():
    assert measured(SENTENCES.format(sentences=1_000_000)) < 20


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_five_million_sentences_train_in_bounded_memory(tmp_path):
    """Peak memory of the recipe, beside that of the same run on a hundredth of the corpus."""
    peaks = []
    for number in (50_000, 5_000_000):
        folder = tmp_path / str(number)
        folder.mkdir()
        with (folder / "corpus.txt").open("w", encoding="utf-8") as file:
            for line in range(number):
                file.write(f"w{line % 97} w{line * 7919 % 89} w{line % 83}\n")
        code = f"""
            import os, resource, runpy, sys
            sys.argv = ["train_text.py", "--dataset_name={folder / "corpus.txt"}", "--output_dir={folder / "run"}",
                "--tokenizer=word", "--num_epochs={64 * 50 / number}", "--train_batch_size=64", "--hidden_size=16",
                "--embedding_size=8", "--latent_dim=4", "--prior_hidden_size=8", "--prior_sampler.num_steps=3",
                "--posterior_sampler.num_steps=3", "--inference=persistent", "--encoder_hidden_size=none",
                "--eval_every=1000", "--max_length=10", "--num_eval_samples=20", "--eval_batch_size=1024"]
            try:
                runpy.run_path("recipes/train_text.py", run_name="__main__")
            except SystemExit as leaving:
                assert not leaving.code, leaving.code
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        """
        peaks.append(measured(code))
    # Lengths, an epoch's order and the map of the chains: some 40 bytes a sentence; never the texts or their tokens.
    assert peaks[1] - peaks[0] < 5e6 * 150 / 2**20, peaks
