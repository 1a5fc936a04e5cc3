"""Wheel and sdist: built, installed where the source is not, and used."""

import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMOKE = """
import sys, pathlib
import latent_ebm_text
from latent_ebm_text import EnergyPrior, LatentEBMForTextGeneration, LatentEBMTextConfig, LangevinSampler
assert pathlib.Path(sys.argv[1]) in pathlib.Path(latent_ebm_text.__file__).parents, latent_ebm_text.__file__
config = LatentEBMTextConfig(vocab_size=20, hidden_size=8, embedding_size=4, latent_dim=4, prior_hidden_size=8)
model = LatentEBMForTextGeneration(config).eval()
model.save_pretrained("model")
ids = LatentEBMForTextGeneration.from_pretrained("model").generate(num_samples=3, max_new_tokens=4)
assert len(ids) == 3
from latent_ebm_text.commands.train_text import train_text_model
from latent_ebm_text.evaluation.text_metrics import evaluate_likelihoods
print("well")
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A wheel and an sdist, by the build backend alone."""
    pytest.importorskip("hatchling", reason="the build backend is part of the extra `dev`")
    folder = tmp_path_factory.mktemp("dist")
    code = (
        "import sys; from hatchling import build;"
        "print(build.build_wheel(sys.argv[1])); print(build.build_sdist(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wheel, sdist = done.stdout.split()[-2:]
    return folder / wheel, folder / sdist


def install_and_use(package, folder):
    """In a new environment, which sees the dependencies of this one, but not the link to the source."""
    venv.create(folder / "env", with_pip=False)
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "env" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    options = ["--no-build-isolation", "--ignore-installed", str(package)]
    done = subprocess.run([*install, *options], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([python, "-I", "-c", SMOKE, str(site)], cwd=folder, capture_output=True, text=True)
    assert done.stdout.endswith("well\n"), done.stderr


def test_a_wheel_holds_the_package_and_nothing_else(packages):
    with zipfile.ZipFile(packages[0]) as wheel:
        names = wheel.namelist()
    source = {str(path.relative_to(ROOT)) for path in (ROOT / "latent_ebm_text").rglob("*.py")}
    assert source | {"latent_ebm_text/py.typed"} <= set(names)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"latent_ebm_text"}


def test_an_sdist_holds_what_a_build_and_a_reader_need(packages):
    with tarfile.open(packages[1]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "latent_ebm_text/__init__.py", "recipes/train_text.py"} <= names


def test_the_wheel_works_without_the_source(packages, tmp_path):
    install_and_use(packages[0], tmp_path)


@pytest.mark.slow
def test_the_sdist_works_without_the_source(packages, tmp_path):
    install_and_use(packages[1], tmp_path)
