"""Images in the training loop: a run that stops goes on as if it never had; what a finished run leaves."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from latent_ebm_text import LatentEBMForImageGeneration
from latent_ebm_text.commands.arguments import ImageModelArguments
from latent_ebm_text.commands.runs import describe_splits, run_identity, run_record
from latent_ebm_text.commands.train_images import SHOWN, build, evaluate, train, write
from latent_ebm_text.data.batching import BucketedBatches
from latent_ebm_text.data.images import ImageCollator, load_image_dataset
from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.images import chain_strips, long_run
from latent_ebm_text.training import trainer
from latent_ebm_text.training.arguments import TrainingArguments
from latent_ebm_text.training.step import TrainingData
from tests.tiny_runs import model_arguments
from tests.training.runs import HEALTHY, copy_of, final_tensors, same, stop_at

pytest.importorskip("sklearn", reason="needs scikit-learn")


@pytest.fixture(scope="module")
def corpus():
    return load_image_dataset("digits", num_images=96)


def make_model(corpus, **changes):
    settings = {
        "latent_dim": 4, "decoder_channels": "8,6", "prior_hidden_size": 8, "prior_sampler.num_steps": 3,
        "posterior_sampler.num_steps": 3,
    }  # fmt: skip
    return build(model_arguments(ImageModelArguments, **settings | changes), corpus)


def make_args(folder, **changes):
    settings = {"num_epochs": 2.0, "train_batch_size": 16, "save_every": 5, "eval_every": 4, "log_every": 3}
    return TrainingArguments(output_dir=str(folder), **settings | changes)


def run(corpus, model, args, evaluate=lambda model, step: HEALTHY):
    batches = BucketedBatches(np.ones(len(corpus.splits["train"])), args.train_batch_size, args.seed)
    data = TrainingData(corpus.splits["train"].select_columns("pixels"), batches, ImageCollator(8, 1))
    identity = run_identity(model, args, data=corpus.fingerprint)
    return trainer.train(model, data, args, identity=identity, evaluate=evaluate, accelerator=Accelerator(cpu=True))


@pytest.mark.parametrize("inference", ["short_run", "persistent", "amortized", "variational"])
def test_a_stopped_run_ends_like_one_that_never_stopped(corpus, tmp_path, inference):
    changes = {"encoder_hidden_size": 4} if inference in ("amortized", "variational") else {}
    straight, stopped = (make_args(tmp_path / name, inference=inference) for name in ("straight", "stopped"))
    run(corpus, make_model(corpus, **changes), straight)
    assert run(corpus, make_model(corpus, **changes), stopped, stop_at(8)).signal == signal.SIGTERM
    torch.manual_seed(1234)
    model = make_model(corpus, **changes)
    assert run(corpus, model, stopped).step == 12

    expected, found = final_tensors(tmp_path / "straight"), final_tensors(tmp_path / "stopped")
    assert expected.keys() == found.keys()
    assert all(same(tensors, found[name]) for name, tensors in expected.items())
    assert same(copy_of(model), expected["model.safetensors"])


def test_a_finished_run_leaves_a_model_metrics_and_pictures(corpus, tmp_path):
    args, model = make_args(tmp_path, num_eval_examples=16), make_model(corpus)
    result = train(model, corpus, args, Accelerator(cpu=True))
    results = write(model, corpus, args, {**run_record(result, corpus, args), **evaluate(model, corpus, args)})

    assert json.loads((tmp_path / "results.json").read_text())["step"] == 12
    assert all(os.path.exists(path) for path in results["paths"].values())
    assert (tmp_path / "samples" / "step-00000008.png").stat().st_size > 0
    again = LatentEBMForImageGeneration.from_pretrained(tmp_path / "model")
    assert same(copy_of(again), copy_of(model))
    metrics = results["splits"]["test"]
    assert metrics["mse"]["n"] == len(corpus.splits["test"])
    # NLL and MSE of the same draws tell the same: a density of 64 normals of standard deviation 0.3.
    constant = 64 * torch.log(torch.tensor(0.3 * (2 * torch.pi) ** 0.5)).item()
    expected = 64 * metrics["mse"]["value"] / (2 * 0.09) + constant
    assert metrics["reconstruction_nll"]["value"] == pytest.approx(expected, rel=1e-4)
    assert "reconstruction MSE" in describe_splits(results, SHOWN)[0]
    assert "| reconstruction MSE | test |" in (tmp_path / "model" / "README.md").read_text()


def test_strips_show_the_chain(corpus):
    model = make_model(corpus, **{"prior_sampler.num_steps": 6})
    images, energies = chain_strips(model, 2, num_images=4, multiples=(1, 3))
    assert images.shape == (2, 5, 1, 8, 8)  # start, two on the way, the end, and after three times as many steps
    assert energies.shape == (19, 2)


def test_the_long_run_goes_on_from_the_training_chain(corpus):
    model, real = make_model(corpus, **{"prior_sampler.num_steps": 6}), torch.full((5, 1, 8, 8), 0.5)
    strips, figures = long_run(model, real, num_steps=100, num_chains=3)
    assert figures["mean_absolute_value"].keys() == {"real images", "6 steps", "102 steps"}
    assert figures["mean_absolute_value"]["real images"]["value"] == 0.5
    ends = strips[:, -1].abs().mean()
    assert figures["mean_absolute_value"]["102 steps"]["value"] == pytest.approx(float(ends), rel=1e-5)
    assert figures["energy"].keys() == {"6 steps", "102 steps"}
    assert torch.equal(strips[:, :8], chain_strips(model, 3)[0][:, :8])


def test_channels_that_are_no_numbers(corpus):
    with pytest.raises(
        UsageError, match="decoder_channels must be integers with commas between them or none, got '8;6'"
    ):
        make_model(corpus, decoder_channels="8;6")
