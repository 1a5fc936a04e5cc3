"""The recipes of image models as a user meets them."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from latent_ebm_text.training.arguments import TrainingArguments
from latent_ebm_text.training.configuration import parse_recipe_arguments
from latent_ebm_text.training.images import ImageDataArguments, ImageModelArguments

pytest.importorskip("sklearn", reason="needs scikit-learn")

ROOT = Path(__file__).parents[1]
CONFIGS = [
    path
    for path in sorted((ROOT / "recipes" / "configs").glob("*.yaml"))
    if "decoder_channels" in path.read_text(encoding="utf-8")
]
TINY = {
    "dataset_name": "digits", "latent_dim": 4, "decoder_channels": "8,6", "prior_hidden_size": 8, "prior_num_steps": 3,
    "posterior_num_steps": 3, "num_epochs": 0.1, "train_batch_size": 64, "eval_every": 100,
}  # fmt: skip


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_understood(path):
    data, model, training = parse_recipe_arguments(
        (ImageDataArguments, ImageModelArguments, TrainingArguments), ["--config", str(path)], description=""
    )
    config = model.image_config(data.image_size or 8, data.num_channels or 1)
    for name, value in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        (owner,) = (arguments for arguments in (data, model, training) if hasattr(arguments, name))
        assert getattr(owner, name) == value
    assert config.prior_sampler["num_steps"] == 60


def test_there_is_a_config_for_every_set_of_the_paper():
    assert {"svhn", "cifar10", "celeba", "mnist"} <= {path.stem for path in CONFIGS}


def run(recipe, tmp_path, **options):
    cache = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    return subprocess.run(
        [sys.executable, str(ROOT / "recipes" / recipe), *arguments],
        cwd=ROOT,
        env={**os.environ, **cache, "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.slow
def test_training_by_the_recipe_of_a_named_set(tmp_path):
    done = run("train_mnist.py", tmp_path, **TINY, image_size=8, decoder_first_size=4, output_dir=tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "data: digits (8 x 8 digits of scikit-learn" in done.stdout
    assert json.loads((tmp_path / "run" / "results.json").read_text())["splits"]["test"]["mse"]["n"] == 89


@pytest.mark.slow
def test_the_anomaly_table(tmp_path):
    options = {"held_out": "3,8", "seeds": "0,1", "num_chains": 1, "mode_steps": 2, "output_dir": tmp_path / "run"}
    done = run("anomaly_mnist.py", tmp_path, **TINY, image_size=8, decoder_first_size=4, **options)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "anomaly.json").read_text())
    assert report["auprc"].keys() == {"energy", "gaussian", "vae"}
    assert all(len(runs) == 2 for by_class in report["auprc"].values() for runs in by_class.values())
    assert "| energy, joint |" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": "energy,gan"}, "models holds 'gan'; known: energy, gaussian, vae"),
        ({"held_out": "one"}, "held_out must be integers with commas between them, got 'one'"),
    ],
)
def test_options_of_the_anomaly_recipe(options, message):
    from latent_ebm_text.errors import UsageError

    spec = importlib.util.spec_from_file_location("anomaly_mnist", ROOT / "recipes" / "anomaly_mnist.py")
    recipe = importlib.util.module_from_spec(spec)
    sys.modules["anomaly_mnist"] = recipe  # dataclasses look their module up
    spec.loader.exec_module(recipe)
    with pytest.raises(UsageError, match=message):
        recipe.AnomalyArguments(**options)


def test_images_without_classes_cannot_be_held_out(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    from latent_ebm_text.data.images import load_image_dataset
    from latent_ebm_text.errors import UsageError
    from latent_ebm_text.evaluation.image_anomaly import image_labels

    for number in range(8):
        image.new("L", (8, 8), number).save(tmp_path / f"{number}.png")
    with pytest.raises(UsageError, match="no label column of integers"):
        image_labels(load_image_dataset(str(tmp_path)))
