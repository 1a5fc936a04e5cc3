"""A training of a second or two, for tests that need the folder of a run."""

from pathlib import Path
from typing import Any

from latent_ebm_text.commands.arguments import DataArguments, HubArguments, TextModelArguments
from latent_ebm_text.commands.parsing import parse_arguments
from latent_ebm_text.commands.train_text import train_text_model
from latent_ebm_text.training.arguments import TrainingArguments

DATA = {"dataset_name": "grammar", "num_sentences": 200, "max_length": 20}
MODEL = {
    "latent_dim": 4, "hidden_size": 16, "embedding_size": 8, "prior_hidden_size": 8, "prior_sampler.num_steps": 3,
    "posterior_sampler.num_steps": 3, "posterior_sampler.step_size": 0.3,
}  # fmt: skip
TRAINING = {
    "num_epochs": 2, "train_batch_size": 32, "log_every": 3, "eval_every": 100, "save_every": 5,
    "num_eval_examples": 32, "num_eval_samples": 20,
}  # fmt: skip


def model_arguments(group: type = TextModelArguments, **settings: object) -> Any:
    """The arguments of a model from the values of its options."""
    (arguments,) = parse_arguments((group,), [f"--{name}={value}" for name, value in settings.items()], description="")
    return arguments


def train(folder: Path, training: dict[str, object] | None = None, **hub_settings: object) -> int:
    """A training of a second or two."""
    return train_text_model(
        DataArguments(**DATA),
        model_arguments(**MODEL),
        TrainingArguments(output_dir=str(folder), **TRAINING | (training or {})),
        HubArguments(**hub_settings),
    )
