"""The configuration: the paper's defaults, what it refuses, and how it is saved, loaded and overridden."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig

from latent_ebm_text import LatentEBMConfig, LatentEBMForTextGeneration, LatentEBMTextConfig
from latent_ebm_text.errors import UsageError
from tests.helpers import tiny_config, tiny_model


def test_defaults_are_the_papers() -> None:
    config = LatentEBMTextConfig()
    assert config.prior_sampler == {"name": "langevin", "num_steps": 60, "step_size": 0.4, "temperature": 1.0}
    assert config.posterior_sampler == {"name": "langevin", "num_steps": 20, "step_size": 0.1, "temperature": 1.0}
    assert (config.latent_dim, config.prior_hidden_size, config.prior_num_hidden_layers) == (32, 200, 2)
    assert (config.hidden_size, config.embedding_size) == (512, 128)
    assert (config.likelihood_weight, config.energy_penalty) == (1.0, 0.0)


def test_configurations_share_no_sampler_settings() -> None:
    settings = {"name": "langevin", "num_steps": 5}
    first = LatentEBMTextConfig(prior_sampler=settings, posterior_sampler=settings)
    first.prior_sampler["num_steps"] = 7
    first.posterior_sampler["num_steps"] = 8
    assert settings["num_steps"] == 5
    assert LatentEBMTextConfig().prior_sampler["num_steps"] == 60


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_sise": 8}, "LatentEBMTextConfig has no setting 'hidden_sise'; did you mean 'hidden_size'"),
        ({"prior_samplers": {}}, "did you mean 'prior_sampler'"),
        ({"xyzzy": 1}, "no setting 'xyzzy'$"),
        ({"temperature": 0.7}, r"'temperature' belongs to generation: give it to generate\(\)"),
        ({"latent_dim": 0}, "latent_dim must be positive for an energy prior"),
        ({"prior_hidden_size": -1}, "prior_hidden_size must be positive"),
        ({"prior_num_hidden_layers": 0}, "prior_num_hidden_layers must be positive"),
        ({"likelihood_weight": 0.0}, "likelihood_weight must be positive"),
        ({"energy_penalty": -0.1}, "energy_penalty must be zero or positive, got -0.1"),
        ({"energy_penalty": float("nan")}, "energy_penalty must be zero or positive, got nan"),
        ({"vocab_size": 0}, "vocab_size must be positive"),
        ({"hidden_size": 0}, "hidden_size must be positive"),
        ({"embedding_size": 0}, "embedding_size must be positive"),
        ({"output_rank": 0}, "output_rank must be positive"),
        ({"max_sequence_length": 0}, "max_sequence_length must be positive"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"token_dropout": -0.1}, r"token_dropout must lie in \[0, 1\), got -0.1"),
        ({"tie_word_embeddings": True, "output_rank": 4}, r"the rank is embedding_size \(128\): drop one of the two"),
        ({"prior_sampler": {"name": "langevn", "num_steps": 3}}, "unknown sampler 'langevn'; known"),
        ({"prior_sampler": {"num_steps": 3}}, "unknown sampler None"),
        ({"prior_sampler": {}}, "unknown sampler None"),
        ({"posterior_sampler": {"name": "langevin", "num_steps": 3, "step": 1.0}}, "has no setting 'step'"),
        ({"posterior_sampler": {"name": "langevin", "num_steps": 0}}, "num_steps of a Langevin sampler"),
        ({"prior_sampler": {"name": "langevin", "num_steps": 3, "step_size": -1.0}}, "step_size must be positive"),
    ],
)
def test_refuses_what_cannot_be_right(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LatentEBMTextConfig(**settings)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("hidden_size", "a", "int"),
        ("hidden_size", True, "int"),
        ("latent_dim", 1.5, "int"),
        ("dropout", "0.1", "float"),
        ("energy_penalty", None, "float"),
        ("tie_word_embeddings", "yes", "bool"),
        ("prior_sampler", 60, "dict"),
        ("posterior_sampler", "langevin", "dict"),
        ("prior_activation", "relu", r"one of \('gelu', 'leaky_relu'\)"),
    ],
)
def test_wrong_types_are_refused_by_field_and_type(field: str, value: Any, expected: str) -> None:
    with pytest.raises(StrictDataclassFieldValidationError, match=f"(?s)'{field}'.*expected (a )?{expected}"):
        LatentEBMTextConfig(**{field: value})


def test_base_configuration_has_no_text_settings() -> None:
    assert LatentEBMConfig(latent_dim=3).latent_dim == 3
    with pytest.raises(UsageError, match="LatentEBMConfig has no setting 'vocab_size'"):
        LatentEBMConfig(vocab_size=10)


@pytest.mark.parametrize("step_size", [0.3, [0.5, 0.4, 0.1], {"start": 0.8, "end": 0.05, "shape": "geometric"}])
def test_saved_and_loaded_with_every_setting(tmp_path: Path, step_size: Any) -> None:
    sampler = {"name": "langevin", "num_steps": 5, "step_size": step_size, "temperature": [1.0, 0.0]}
    config = tiny_config(
        prior_sampler=sampler, tie_word_embeddings=True, energy_penalty=0.5, likelihood_weight=2, token_dropout=0.25
    )
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["prior_sampler"] == sampler
    for loaded in (LatentEBMTextConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is LatentEBMTextConfig
        assert {**loaded.to_dict(), "_name_or_path": ""} == config.to_dict()


def test_a_misspelt_key_in_a_file_is_found(tmp_path: Path) -> None:
    tiny_config().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "latent_dims": 9}))
    with pytest.raises(UsageError, match="no setting 'latent_dims'; did you mean 'latent_dim'"):
        LatentEBMTextConfig.from_pretrained(tmp_path)


def test_loading_takes_overrides(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    sampler = {"name": "langevin", "num_steps": 9, "step_size": 0.2}
    assert LatentEBMTextConfig.from_pretrained(tmp_path, prior_sampler=sampler).prior_sampler == sampler
    model = LatentEBMForTextGeneration.from_pretrained(tmp_path, prior_sampler=sampler)
    assert model.prior_sampler.num_steps == 9
    assert model.posterior_sampler.num_steps == tiny_config().posterior_sampler["num_steps"]
