"""The common tests of transformers on text models with an LSTM and with a GPT-2 as decoder; `run.py` runs them."""

from __future__ import annotations

import importlib
import os
import sys
import types
import unittest
from typing import Any

import torch
from transformers import GPT2Config
from transformers.testing_utils import torch_device

from latent_ebm_text import LatentEBMForTextGeneration, LatentEBMTextConfig

# Their folder `tests` under another name, since that one is taken.
PACKAGE = types.ModuleType("transformers_tests")
PACKAGE.__path__ = os.environ["TRANSFORMERS_TESTS"].split(os.pathsep)
sys.modules[PACKAGE.__name__] = PACKAGE


def their_class(module: str, name: str) -> Any:
    """A test class of theirs; one without tests where the source distribution leaves its module out."""
    path = f"{PACKAGE.__name__}.{module}"
    try:
        return getattr(importlib.import_module(path), name)
    except ModuleNotFoundError as error:
        if error.name is None or not path.startswith(error.name):
            raise
    empty = types.ModuleType(path)
    setattr(empty, name, type(name, (), {}))
    sys.modules.setdefault(path.rpartition(".")[0], types.ModuleType(path.rpartition(".")[0]))
    sys.modules[path] = empty
    return getattr(empty, name)


# `ModelTesterMixin` imports the other two.
ExportTesterMixin = their_class("exporters.test_export", "ExportTesterMixin")
GenerationTesterMixin = their_class("generation.test_utils", "GenerationTesterMixin")
ModelTesterMixin = their_class("test_modeling_common", "ModelTesterMixin")
# It sets attributes of other models' configurations, which ours refuse when a model is loaded.
sys.modules[f"{PACKAGE.__name__}.test_modeling_common"].set_config_for_less_flaky_test = lambda config: None


class ModelTester:
    """What the tests ask of a model: its configuration, inputs, and sizes."""

    batch_size, seq_length, vocab_size, hidden_size, num_attention_heads = 3, 7, 99, 32, 4
    latent_dim = 4
    is_training = True

    def __init__(self, num_hidden_layers: int, settings: dict[str, Any]) -> None:
        self.num_hidden_layers, self._settings = num_hidden_layers, settings

    def get_config(self) -> LatentEBMTextConfig:
        """A tiny configuration without dropout."""
        short = {"name": "langevin", "num_steps": 2, "step_size": 0.1}
        sizes = {"hidden_size": self.hidden_size, "embedding_size": self.hidden_size, "latent_dim": self.latent_dim}
        return LatentEBMTextConfig(
            vocab_size=self.vocab_size, prior_hidden_size=8, dropout=0.0, max_sequence_length=12,
            prior_sampler=short, posterior_sampler=short, **sizes, **self._settings,
        )  # fmt: skip

    def prepare_config_and_inputs_for_common(self) -> tuple[LatentEBMTextConfig, dict[str, torch.Tensor]]:
        """A configuration and a batch, with latents, since draws would differ from call to call."""
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(4, self.vocab_size, (self.batch_size, self.seq_length), generator=generator)
        ids[:, 0] = 1
        latents = torch.randn(self.batch_size, self.latent_dim, generator=generator)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "latents": latents}
        return self.get_config(), {name: values.to(torch_device) for name, values in inputs.items()}


class LatentModelTests:
    """What both suites set up."""

    all_model_classes = (LatentEBMForTextGeneration,)
    additional_model_inputs = ["latents"]
    num_hidden_layers = 1
    settings: dict[str, Any] = {}

    def setUp(self) -> None:
        self.model_tester = ModelTester(self.num_hidden_layers, self.settings)

    def _prepare_for_class(self, inputs: Any, model_class: Any, return_labels: bool = False) -> dict[str, Any]:
        prepared = super()._prepare_for_class(inputs, model_class)  # type: ignore[misc]
        if return_labels:  # the prior draws of the loss are given too, for the same reason as the latents
            prepared |= {"labels": prepared["input_ids"].clone(), "prior_latents": prepared["latents"]}
        return prepared


class LSTMTest(LatentModelTests, ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    has_attentions = False


class GPT2Test(LatentModelTests, ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    num_hidden_layers = 2
    settings = {
        "decoder_type": "causal_lm",
        "decoder_config": {
            **GPT2Config(vocab_size=99, n_positions=64, n_embd=32, n_layer=2, n_head=4).to_dict(),
            "model_type": "gpt2",
        },
        "latent_injection": "embedding",  # a prefix would add to the keys whose number the tests check
        "encoder_hidden_size": 8,  # the list of modules that keep their precision names the encoder
        "attn_implementation": "eager",  # which returns its weights
    }
