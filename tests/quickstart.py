"""What a reader has after the two quick starts, with much smaller models that are trained in seconds."""

import runpy
import sys
from pathlib import Path
from unittest.mock import patch

from transformers import AutoTokenizer

from latent_ebm_text.training.arguments import DataArguments, ModelArguments, TrainingArguments
from latent_ebm_text.training.text import train_text_model
from tests.language_models import tiny_language_model

ROOT = Path(__file__).parents[1]


def make_quickstart_folder(folder: Path) -> None:
    """Trains `runs/quickstart/model` and `runs/quickstart-images/model`; writes a `gpt2` of some thousand weights."""
    code = train_text_model(
        DataArguments(dataset_name="grammar", num_sentences=400, max_length=20),
        ModelArguments(hidden_size=32, embedding_size=16, latent_dim=8, prior_hidden_size=16, prior_num_steps=5),
        TrainingArguments(
            output_dir=str(folder / "runs/quickstart"), num_epochs=4, inference="persistent", num_eval_samples=20,
            num_eval_sentences=50,
        ),
    )  # fmt: skip
    assert code == 0
    recipe = ROOT / "recipes/train_images.py"
    options = ["--num_epochs=1", "--prior_num_steps=5", "--posterior_num_steps=5"]
    with patch.object(sys, "argv", [str(recipe), f"--output_dir={folder / 'runs/quickstart-images'}", *options]):
        assert runpy.run_path(str(recipe))["main"]() == 0
    tokenizer = AutoTokenizer.from_pretrained(folder / "runs/quickstart/model")
    tiny_language_model("gpt2", vocab_size=len(tokenizer), n_positions=128).save_pretrained(folder / "gpt2")
    tokenizer.save_pretrained(folder / "gpt2")
