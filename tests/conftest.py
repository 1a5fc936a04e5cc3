"""Fixtures shared by the tests; what they are made of is in `tests.helpers`."""

import os

# The models of the tests are tiny: a second thread only waits for the first, and, where the cores are busy, for long.
# Set before torch is imported, and for the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from latent_ebm_text import LatentEBMForTextGeneration
from tests.helpers import LATENT_DIM, seeded, tiny_batch, tiny_model, tiny_tokenizer


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
