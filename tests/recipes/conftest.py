"""The recipes as real processes, and called within this one."""

import os
import runpy
import subprocess
import sys

import datasets
import pytest

from tests.recipes.commands import RECIPES, ROOT, TINY, options, write_corpus


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """One thread, no network, and a cache of its own."""
    cache = tmp_path_factory.mktemp("cache")
    changes = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(cache), "ACCELERATE_USE_CPU": "true"}
    return {**os.environ, **changes}


@pytest.fixture(scope="module")
def start(environment):
    """Starts the recipe with the tiny setting; what still runs at the end of the tests is killed."""
    started = []

    def start(folder, launcher=(sys.executable,), **changes):
        command = [
            *launcher,
            str(RECIPES / "train_ptb.py"),
            *options(**TINY | {"output_dir": folder / "run"} | changes),
        ]
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Runs the recipe here, as its `__main__` would; returns the exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def call(*arguments, recipe="ptb", **changes):
        settings = TINY | {"dataset_name": "corpus", "num_sentences": "none", "num_epochs": 2, "save_every": 3}
        if recipe != "ptb":
            settings.pop("config")
        monkeypatch.setattr(sys, "argv", ["train_ptb.py", *options(**settings | changes), *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            runpy.run_path(str(RECIPES / f"train_{recipe}.py"), run_name="__main__")
        return leaving.value.code or 0, *capsys.readouterr()

    return call


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "corpus")
