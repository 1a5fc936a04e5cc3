"""What a reader has after the two quick starts, with much smaller models that are trained in seconds."""

import runpy
import sys
from pathlib import Path
from unittest.mock import patch

from transformers import AutoTokenizer

from tests.language_models import tiny_language_model

ROOT = Path(__file__).parents[1]


def make_quickstart_folder(folder: Path) -> None:
    """Trains `runs/quickstart/model` and `runs/quickstart-images/model`; writes a `gpt2` of some thousand weights."""
    text = {
        "num_sentences": 400, "max_length": 20, "hidden_size": 32, "embedding_size": 16, "latent_dim": 8,
        "prior_hidden_size": 16, "prior_sampler.num_steps": 5, "posterior_sampler.num_steps": 20, "num_epochs": 4,
        "num_eval_samples": 20, "num_eval_examples": 50,
    }  # fmt: skip
    config = ROOT / "recipes/configs/quickstart.yaml"
    _run_recipe("train_ptb.py", config=config, output_dir=folder / "runs/quickstart", **text)
    images = {"num_epochs": 1, "prior_sampler.num_steps": 5, "posterior_sampler.num_steps": 5}
    _run_recipe("train_images.py", output_dir=folder / "runs/quickstart-images", **images)
    tokenizer = AutoTokenizer.from_pretrained(folder / "runs/quickstart/model")
    tiny_language_model("gpt2", vocab_size=len(tokenizer), n_positions=128).save_pretrained(folder / "gpt2")
    tokenizer.save_pretrained(folder / "gpt2")


def _run_recipe(name: str, **options: object) -> None:
    """Runs a recipe in this process."""
    recipe = ROOT / "recipes" / name
    with patch.object(sys, "argv", [str(recipe), *(f"--{key}={value}" for key, value in options.items())]):
        try:
            runpy.run_path(str(recipe), run_name="__main__")
        except SystemExit as left:
            if left.code:
                raise RuntimeError(f"{name} left with {left.code}") from left
