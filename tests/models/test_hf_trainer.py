"""The text model in the training loop of transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from latent_ebm_text import LatentEBMForTextGeneration, LatentEBMTextConfig
from latent_ebm_text.errors import UsageError

SENTENCE = [1, 5, 6, 7, 2]
DATA = Dataset.from_dict({"input_ids": [SENTENCE] * 8, "labels": [SENTENCE] * 8})


@pytest.fixture
def model() -> LatentEBMForTextGeneration:
    torch.manual_seed(0)
    short = {"name": "langevin", "num_steps": 2, "step_size": 0.1}
    return LatentEBMForTextGeneration(
        LatentEBMTextConfig(
            vocab_size=9, hidden_size=8, embedding_size=4, latent_dim=3, prior_hidden_size=6,
            prior_sampler=short, posterior_sampler=short,
        )
    )  # fmt: skip


def make_trainer(model: LatentEBMForTextGeneration, folder: Path, loss: Any = None, **options: Any) -> Trainer:
    arguments = TrainingArguments(
        str(folder), max_steps=3, use_cpu=True, report_to="none", save_strategy="no", **options
    )
    return Trainer(model, arguments, train_dataset=DATA, compute_loss_func=loss)


def test_the_trainer_of_transformers_learns_both_parts(model: LatentEBMForTextGeneration, tmp_path: Path) -> None:
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    result = make_trainer(model, tmp_path).train()
    assert 5.0 < result.training_loss < 15.0, "four tokens at log 9 nats each"
    for part in ("prior.", "decoder."):
        moved = [not torch.equal(w, before[name]) for name, w in model.named_parameters() if name.startswith(part)]
        assert sum(moved) > len(moved) / 2


@pytest.mark.parametrize(
    "options", [{"label_smoothing_factor": 0.1}, {"loss": lambda outputs, labels, **_: outputs.logits.sum()}]
)
def test_a_loss_that_bypasses_the_objective_is_refused(
    model: LatentEBMForTextGeneration, tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match="label_smoothing_factor and compute_loss_func"):
        make_trainer(model, tmp_path, **options).train()
