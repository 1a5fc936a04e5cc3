"""What the tests of recipes share: how one is called, what it is called with, and what its answer must look like."""

import sys
from pathlib import Path

from latent_ebm_text.data import load_text_dataset
from latent_ebm_text.data.tokenizers import train_word_tokenizer
from tests.language_models import tiny_language_model

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]
ONE_PROCESS = ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
TWO_PROCESSES = ["--multi_gpu", "--num_processes", "2", *ONE_PROCESS[2:]]

TINY = {
    "config": "paper/ptb", "dataset_name": "grammar", "num_sentences": 200, "max_length": 20, "latent_dim": 4,
    "hidden_size": 16, "embedding_size": 8, "prior_hidden_size": 8, "prior_sampler.num_steps": 3,
    "posterior_sampler.num_steps": 3, "posterior_sampler.step_size": 0.3, "num_epochs": 20, "train_batch_size": 32,
    "inference": "persistent", "log_every": 3, "eval_every": 50, "save_every": 10, "num_eval_examples": 32,
    "num_eval_samples": 20,
}  # fmt: skip
TINY_STEPS = 140  # 20 epochs of 7 batches

#: What a corpus of the tests is made of.
SENTENCES = [f"the {noun} {verb} again" for noun in ("dog", "cat", "bird", "fish") for verb in ("sleeps", "eats")]


def options(**settings):
    return [f"--{name}={value}" for name, value in settings.items()]


def finish(process):
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def write_corpus(folder, train=SENTENCES * 5):
    folder.mkdir(exist_ok=True)
    for split, sentences in (("train", train), ("valid", SENTENCES), ("test", SENTENCES)):
        (folder / f"{split}.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8")
    return folder


def write_decoder(folder, **settings):
    """A tiny GPT-2 with 40 positions that knows the words of the embedded corpus, as transformers saves one."""
    tokenizer = train_word_tokenizer(load_text_dataset("grammar", num_sentences=2000).splits["train"]["text"])
    tokenizer.save_pretrained(folder)
    tiny_language_model("gpt2", vocab_size=len(tokenizer), **settings).save_pretrained(folder)
    return folder


def assert_refused(outcome, exit_code, *words):
    """One clear line on stderr, the last one, and nothing that looks like a crash."""
    code, _, err = outcome
    assert code == exit_code, err
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert lines == err.splitlines()[-1:]
    for word in words:
        assert word in lines[0]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
