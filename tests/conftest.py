"""Fixtures shared by the tests; what they are made of is in `tests.helpers`."""

import os

# The models of the tests are tiny: a second thread only waits for the first, and, where the cores are busy, for long.
# Set before torch is imported, and for the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from latent_ebm_text import LatentEBMForTextGeneration
from tests.helpers import LATENT_DIM, seeded, tiny_batch, tiny_model, tiny_tokenizer
from tests.hub_server import HubServer
from tests.quickstart import make_quickstart_folder


@pytest.fixture(scope="session")
def quickstart_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """See [`make_quickstart_folder`]; trained once, whichever of the processes comes first. Not to be written to."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "quickstart"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            make_quickstart_folder(folder)
    return folder


@pytest.fixture
def model() -> LatentEBMForTextGeneration:
    return tiny_model()


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


@pytest.fixture
def batch() -> dict[str, Tensor]:
    return tiny_batch()


@pytest.fixture
def latents() -> Tensor:
    """One latent for each sentence of the batch."""
    return torch.randn(4, LATENT_DIM, generator=seeded(1))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has ended; not to be changed."""
    from tests.tiny_runs import train

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert train(folder) == 0
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A Hub, with the clients in this process led to it: a new process would be by the environment alone."""
    import datasets
    from huggingface_hub import constants, hf_api

    with HubServer().running() as server:
        for name, value in server.environment(tmp_path / "cache").items():
            monkeypatch.setenv(name, value)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        for name, setting in {
            "ENDPOINT": server.endpoint, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": False, "HF_HUB_CACHE": str(tmp_path / "cache" / "hub"),
            "HF_TOKEN_PATH": str(tmp_path / "no-token"),
        }.items():  # fmt: skip
            monkeypatch.setattr(constants, name, setting)
        monkeypatch.setattr(hf_api.api, "endpoint", server.endpoint)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # made anew, with the endpoint of now
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.endpoint)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        yield server
