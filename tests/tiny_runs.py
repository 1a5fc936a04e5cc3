"""A training of a second or two, for tests that need the folder of a run."""

from pathlib import Path

from latent_ebm_text.training.arguments import DataArguments, HubArguments, ModelArguments, TrainingArguments
from latent_ebm_text.training.text import train_text_model

DATA = {"dataset_name": "grammar", "num_sentences": 200, "max_length": 20}
MODEL = {
    "latent_dim": 4, "hidden_size": 16, "embedding_size": 8, "prior_hidden_size": 8, "prior_num_steps": 3,
    "posterior_num_steps": 3, "posterior_step_size": 0.3,
}  # fmt: skip
TRAINING = {
    "num_epochs": 2, "train_batch_size": 32, "log_every": 3, "eval_every": 100, "save_every": 5,
    "num_eval_sentences": 32, "num_eval_samples": 20,
}  # fmt: skip


def train(folder: Path, training: dict[str, object] | None = None, **hub_settings: object) -> int:
    """A training of a second or two."""
    return train_text_model(
        DataArguments(**DATA),
        ModelArguments(**MODEL),
        TrainingArguments(output_dir=str(folder), **TRAINING | (training or {})),
        HubArguments(**hub_settings),
    )
