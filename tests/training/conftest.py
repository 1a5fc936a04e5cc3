"""A tiny corpus, and runs of the training loop on it."""

import pytest
import torch
from accelerate import Accelerator

from latent_ebm_text import LatentEBMForTextGeneration
from latent_ebm_text.training.arguments import DataArguments, ModelArguments, TrainingArguments
from latent_ebm_text.training.text import prepare_text
from latent_ebm_text.training.trainer import train
from tests.training.runs import BATCH_SIZE, HEALTHY, NUM_SENTENCES


@pytest.fixture(scope="module")
def text():
    args = DataArguments(dataset_name="grammar", num_sentences=NUM_SENTENCES, max_length=20)
    return prepare_text(args, 0, Accelerator(cpu=True))


@pytest.fixture
def make_model(text):
    def make(**changes):
        settings = {
            "latent_dim": 4, "hidden_size": 24, "embedding_size": 12, "prior_hidden_size": 8, "prior_num_steps": 3,
            "posterior_num_steps": 3, "posterior_step_size": 0.3, "dropout": 0.2, "word_dropout": 0.1,
        }  # fmt: skip
        torch.manual_seed(0)
        return LatentEBMForTextGeneration(ModelArguments(**settings | changes).text_config(len(text.tokenizer), 20))

    return make


@pytest.fixture
def make_args(tmp_path):
    def make(**changes):
        settings = {
            "output_dir": str(tmp_path / "run"), "num_epochs": 2.0, "train_batch_size": BATCH_SIZE, "warmup_steps": 3,
            "log_every": 1, "eval_every": 4, "save_every": 5, "initial_likelihood_weight": 2.0,
            "likelihood_weight_steps": 10,
        }  # fmt: skip
        return TrainingArguments(**settings | changes)

    return make


@pytest.fixture
def run(text):
    """Trains as the recipe does, with an evaluation that costs nothing."""

    def run(model, args, evaluate=lambda model, step: HEALTHY):
        data = text.training_data(args.train_batch_size, args.seed)
        return train(
            model,
            data,
            args,
            identity=text.identity(model, args),
            evaluate=evaluate,
            accelerator=Accelerator(cpu=True),
        )

    return run
