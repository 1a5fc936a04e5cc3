"""Fixtures shared by the tests; what they are made of is in `tests.helpers`."""

import os

# The models of the tests are tiny: a second thread only waits for the first, and, where the cores are busy, for long.
# Set before torch is imported, and for the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

from pathlib import Path

import pytest
import torch
from filelock import FileLock
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from latent_ebm_text import LatentEBMForTextGeneration
from tests.helpers import LATENT_DIM, seeded, tiny_batch, tiny_model, tiny_tokenizer
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
