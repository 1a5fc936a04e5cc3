"""The recipes of image models as a user meets them."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from latent_ebm_text import LatentEBMForImageGeneration, LatentEBMImageConfig
from latent_ebm_text.commands.arguments import ImageDataArguments, ImageModelArguments, flat_settings
from latent_ebm_text.commands.parsing import parse_arguments
from latent_ebm_text.training.arguments import TrainingArguments

pytest.importorskip("sklearn", reason="needs scikit-learn")

ROOT = Path(__file__).parents[2]
CONFIGS = [
    path
    for path in sorted((ROOT / "recipes" / "configs").rglob("*.yaml"))
    if "decoder_channels" in path.read_text(encoding="utf-8")
]
TINY = {
    "dataset_name": "digits", "latent_dim": 4, "decoder_channels": "8,6", "prior_hidden_size": 8,
    "prior_sampler.num_steps": 3, "posterior_sampler.num_steps": 3, "num_epochs": 0.1, "train_batch_size": 64,
    "eval_every": 100,
}  # fmt: skip


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_understood(path):
    groups = (ImageDataArguments, ImageModelArguments, TrainingArguments)
    data, model, training = parse_arguments(groups, ["--config", str(path)], description="")
    settings = flat_settings(data, model, training)
    for name, value in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        assert settings[name] == ({**settings[name], **value} if isinstance(value, dict) else value)
    sizes = {"image_size": data.image_size or 8, "num_channels": data.num_channels or 1}
    assert LatentEBMForImageGeneration(LatentEBMImageConfig(**model.settings, **sizes)).num_parameters() > 0


def test_there_is_a_config_for_every_set_of_the_paper():
    """Its own setting under `paper/`, and under its plain name the one that the recipe starts from."""
    folder = ROOT / "recipes" / "configs"
    for name in ("svhn", "cifar10", "celeba", "mnist"):
        paper = yaml.safe_load((folder / "paper" / f"{name}.yaml").read_text(encoding="utf-8"))
        assert paper["prior_sampler"] == {"num_steps": 60, "step_size": 0.4}
        assert (paper["posterior_sampler"]["step_size"], paper["pixel_std"]) == (0.1, 0.3)
        assert (folder / f"{name}.yaml").is_file()


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
    trained = json.loads((tmp_path / "run" / "results.json").read_text())["splits"]["test"]
    assert trained["mse"]["n"] == 90

    # The model that it left, evaluated by a recipe of its own: the same test MSE, and a distance that is no FID.
    options = {"features": "classifier", "num_samples": 200, "long_run_steps": 9, "cache_dir": tmp_path / "cache"}
    folder = tmp_path / "evaluation"
    done = run("evaluate_images.py", tmp_path, model=tmp_path / "run" / "model", output_dir=folder, **options)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((folder / "evaluation.json").read_text())["metrics"]
    assert metrics["mse"] == trained["mse"]
    (name,) = (name for name in metrics if name.startswith("Fréchet distance on classifier-"))
    assert metrics[name]["value"] > 0
    assert metrics[name]["n_generated"] == 200
    assert not {"FID", "KID"} & metrics.keys()
    assert f"{name}: " in done.stdout
    assert all(
        (folder / f"{picture}.png").stat().st_size > 0 for picture in ("samples", "reconstructions", "long_run")
    )


@pytest.mark.slow
def test_the_anomaly_table(tmp_path):
    options = {"held_out": "3,8", "seeds": "0,1", "num_chains": 1, "mode_steps": 2, "output_dir": tmp_path / "run"}
    options |= {"image_size": 8, "decoder_first_size": 4, "encoder_hidden_size": 4}
    done = run("anomaly_images.py", tmp_path, **TINY, **options)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "anomaly.json").read_text())
    for metric in ("auprc", "auprc_natural", "auroc"):
        assert report[metric].keys() == {"energy", "gaussian", "vae", "detector", "baselines"}
        assert all(len(runs) == 2 for by_class in report[metric].values() for runs in by_class.values())
    assert report["scores"].keys() == {
        "joint", "proposal", "mode", "squared_error", "prior_energy", "calibrated", "unexplained",
        "error", "rarity",
    }  # fmt: skip
    models = report["auprc"].keys() - {"detector", "baselines"}
    assert all(f"| {model}, {score} |" in done.stdout for model in models for score in report["scores"])
    assert "| baselines, PCA, 5th neighbour |" in done.stdout
    assert "| detector, fused |" in done.stdout


def test_baselines_alone_have_a_table(tmp_path):
    options = {"models": "baselines", "held_out": "3", "seeds": "0", "output_dir": tmp_path / "new" / "run"}
    options |= {"image_size": 8, "decoder_first_size": 4}
    done = run("anomaly_images.py", tmp_path, **TINY, **options)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "new" / "run" / "anomaly.json").read_text())
    assert report["auroc"]["baselines"]["3"][0].keys() >= {"PCA, 5th neighbour", "PCA error"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": ["energy", "gan"]}, "models holds 'gan'; known: energy, vae, gaussian, detector, baselines"),
    ],
)
def test_options_of_the_anomaly_recipe(options, message):
    from latent_ebm_text.errors import UsageError

    spec = importlib.util.spec_from_file_location("anomaly_images", ROOT / "recipes" / "anomaly_images.py")
    recipe = importlib.util.module_from_spec(spec)
    sys.modules["anomaly_images"] = recipe  # dataclasses look their module up
    spec.loader.exec_module(recipe)
    with pytest.raises(UsageError, match=message):
        recipe.AnomalyArguments(**options)


def test_images_without_classes_cannot_be_held_out(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    from latent_ebm_text.anomaly.images import image_labels
    from latent_ebm_text.data.images import load_image_dataset
    from latent_ebm_text.errors import UsageError

    for number in range(8):
        image.new("L", (8, 8), number).save(tmp_path / f"{number}.png")
    with pytest.raises(UsageError, match="no label column of integers"):
        image_labels(load_image_dataset(str(tmp_path)))
