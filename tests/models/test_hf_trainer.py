"""The text model in the training loop of transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import EvalPrediction, Trainer, TrainingArguments

from latent_ebm_text import (
    LatentEBMForImageGeneration,
    LatentEBMForTextGeneration,
    LatentEBMImageConfig,
    LatentEBMTextConfig,
)
from latent_ebm_text.errors import UsageError
from tests.helpers import tiny_batch, tiny_model

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


def make_trainer(
    model: LatentEBMForTextGeneration, folder: Path, loss: Any = None, compute_metrics: Any = None, **options: Any
) -> Trainer:
    arguments = TrainingArguments(
        str(folder), max_steps=3, use_cpu=True, report_to="none", save_strategy="no", **options
    )
    return Trainer(model, arguments, train_dataset=DATA, compute_loss_func=loss, compute_metrics=compute_metrics)


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


def test_accumulated_gradients_are_those_of_the_whole_batch(model: LatentEBMForTextGeneration, tmp_path: Path) -> None:
    """The loss is a mean over sentences, which `Trainer` must divide by the number of batches it accumulates."""
    model.config.dropout = 0.0
    sizes, norms = {"whole": (8, 1), "parts": (2, 4)}, {}
    for name, (batch, steps) in sizes.items():
        copy = LatentEBMForTextGeneration(model.config)
        copy.load_state_dict(model.state_dict())
        options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps, "logging_steps": 1}
        trainer = make_trainer(copy, tmp_path / name, max_grad_norm=1e9, **options)
        trainer.train()
        norms[name] = [(log["loss"], log["grad_norm"]) for log in trainer.state.log_history if "grad_norm" in log]
    # The chains of the two draw different noise; a missing division would make loss and gradient four times as large.
    for (loss, norm), (other_loss, other_norm) in zip(norms["whole"], norms["parts"], strict=True):
        assert other_loss == pytest.approx(loss, rel=0.1)
        assert other_norm == pytest.approx(norm, rel=0.3)


def test_the_trainer_measures_what_is_asked_of_logits(model: LatentEBMForTextGeneration, tmp_path: Path) -> None:
    seen = {}

    def accuracy(predictions: EvalPrediction) -> dict[str, float]:
        seen["shape"] = predictions.predictions.shape
        right = predictions.predictions[:, :-1].argmax(axis=-1) == predictions.label_ids[:, 1:]
        return {"accuracy": right.mean()}

    trainer = make_trainer(model, tmp_path, compute_metrics=accuracy)
    trainer.args.max_steps, trainer.args.learning_rate = 60, 0.05
    before = trainer.evaluate(DATA)
    assert seen["shape"] == (8, 5, 9)
    assert before["eval_loss"] == pytest.approx(4 * 2.197, rel=0.3), "four tokens at log 9 nats each"
    trainer.train()
    after = trainer.evaluate(DATA)
    assert after["eval_loss"] < before["eval_loss"]
    assert after["eval_accuracy"] == 1.0


def test_images_are_evaluated_without_labels(tmp_path: Path) -> None:
    short = {"name": "langevin", "num_steps": 2, "step_size": 0.1}
    sizes = {"image_size": 8, "num_channels": 1, "decoder_channels": [8, 4], "latent_dim": 3, "prior_hidden_size": 6}
    model = LatentEBMForImageGeneration(LatentEBMImageConfig(**sizes, prior_sampler=short, posterior_sampler=short))
    images = Dataset.from_dict({"pixel_values": torch.zeros(8, 1, 8, 8).tolist()}).with_format("torch")
    arguments = TrainingArguments(str(tmp_path), max_steps=2, use_cpu=True, report_to="none", save_strategy="no")
    trainer = Trainer(model, arguments, train_dataset=images)
    trainer.train()
    measured = trainer.evaluate(images)["eval_loss"]
    with torch.no_grad():
        assert measured == pytest.approx(float(model(torch.zeros(8, 1, 8, 8)).loss), rel=0.2)
    with pytest.raises(UsageError, match="leave return_loss at True"):
        model(torch.zeros(1, 1, 8, 8), return_loss=False)


def test_labels_without_any_end_are_refused() -> None:
    """A collator that takes the end for padding, because both have the same id, would train endless sentences."""
    batch = tiny_batch()
    ids, mask = batch["input_ids"].masked_fill(batch["input_ids"] == 0, 2), batch["attention_mask"]
    without_ends = ids.masked_fill(ids == 2, -100)
    model = tiny_model(pad_token_id=2)
    with pytest.raises(UsageError, match="labels leave out the end token of every sentence.*same id, 2: give"):
        model(ids, attention_mask=mask, labels=without_ends)
    assert torch.isfinite(model(ids, attention_mask=mask, labels=batch["labels"]).loss)
    cut = ids[:, :2]  # sentences that were cut off have no end to be left out
    assert torch.isfinite(model(cut, attention_mask=mask[:, :2], labels=cut).loss)
