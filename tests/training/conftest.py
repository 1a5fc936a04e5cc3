"""A tiny corpus, and runs of the training loop on it."""

import pytest
from accelerate import Accelerator

from latent_ebm_text.commands.arguments import DataArguments
from latent_ebm_text.commands.train_text import build, prepare
from latent_ebm_text.training.arguments import TrainingArguments
from latent_ebm_text.training.trainer import train
from tests.tiny_runs import model_arguments
from tests.training.runs import BATCH_SIZE, HEALTHY, NUM_SENTENCES


@pytest.fixture(scope="module")
def text():
    args = DataArguments(dataset_name="grammar", num_sentences=NUM_SENTENCES, max_length=20)
    return prepare(args, 0, Accelerator(cpu=True))


@pytest.fixture
def make_model(text):
    def make(**changes):
        settings = {
            "latent_dim": 4, "hidden_size": 24, "embedding_size": 12, "prior_hidden_size": 8,
            "prior_sampler.num_steps": 3, "posterior_sampler.num_steps": 3, "posterior_sampler.step_size": 0.3,
            "dropout": 0.2, "token_dropout": 0.1,
        }  # fmt: skip
        return build(model_arguments(**settings | changes), text)

    return make


@pytest.fixture
def make_args(tmp_path):
    def make(**changes):
        settings = {
            "output_dir": str(tmp_path / "run"), "num_epochs": 2.0, "train_batch_size": BATCH_SIZE, "warmup": 0.25,
            "log_every": 1, "eval_every": 4, "save_every": 5, "initial_likelihood_weight": 2.0,
            "likelihood_weight_fall": 0.8,
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
