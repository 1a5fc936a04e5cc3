"""Builds, inspects and adapts causal language models of transformers, for use in a decoder."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from latent_ebm_text.errors import UsageError, in_one_line

#: Far more layers than any language model has; to build them would take minutes.
_MAX_LAYERS = 1000
#: Entries that say what a language model returns, which its decoder decides, or how many labels it would tell apart.
_NOT_ARCHITECTURE = ("return_dict", "output_hidden_states", "output_attentions", "num_labels")
#: Entries of a language model's configuration that do not describe its architecture. Its precision is that of the
#: whole model.
_ORIGIN = ("_name_or_path", "transformers_version", "architectures", "quantization_config", "dtype")


def build_language_model(config: dict[str, Any], attn_implementation: str | None = None) -> PreTrainedModel:
    """Creates a causal language model of this configuration, with new weights and the attention asked for, if any.

    Raises:
        UsageError: If transformers cannot make a causal language model of it.
    """
    settings = {key: value for key, value in config.items() if key not in _NOT_ARCHITECTURE}
    try:
        for key, value in settings.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{key} must be finite, got {value}")
        lm_config = AutoConfig.for_model(settings.pop("model_type", None), **settings)
        text = lm_config.get_text_config()
        if not (0 < text.num_hidden_layers <= _MAX_LAYERS and text.num_attention_heads > 0):
            raise ValueError(
                f"num_hidden_layers must lie between 1 and {_MAX_LAYERS:,} and num_attention_heads be positive, got "
                f"{text.num_hidden_layers} and {text.num_attention_heads}"
            )
        return AutoModelForCausalLM.from_config(lm_config, attn_implementation=attn_implementation)
    except Exception as error:  # whatever transformers stumbles over in settings that cannot be right
        raise UsageError(f"decoder_config cannot be built: {in_one_line(error)}") from error


def architecture(lm: PreTrainedModel) -> dict[str, Any]:
    """The configuration from which `build_language_model` makes a model of the same architecture."""
    return {key: value for key, value in lm.config.to_dict().items() if key not in _ORIGIN}


def list_of_layers(lm: PreTrainedModel) -> nn.ModuleList:
    """Returns the layers through which all tokens pass one after the other.

    Raises:
        UsageError: If the model has no such list.
    """
    config = lm.config.get_text_config()
    for module in lm.modules():
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers:
            return module
    raise UsageError(
        f"latent_injection 'layers' or 'attention' is not possible for a model of type {config.model_type!r}, which "
        "has no list of layers: use 'prefix' or 'embedding'"
    )


def has_plain_head(lm: PreTrainedModel, embedded: Tensor) -> bool:
    """Whether the logits of some embeddings `(1, length, width)` are the plain output layer of their hidden states.

    The comparison scales up the result of the output layer, because a bound on the logits does not show in small ones.
    """
    head = lm.get_output_embeddings()
    hidden = getattr(lm.base_model(inputs_embeds=embedded, use_cache=False), "last_hidden_state", None)
    if hidden is None or not isinstance(head, nn.Linear) or hidden.shape[-1] != head.in_features:
        return False
    with head.register_forward_hook(lambda layer, inputs, output: 1000 * output):
        return torch.allclose(lm(inputs_embeds=embedded, use_cache=False).logits, head(hidden), rtol=1e-3, atol=1e-2)


def std_of_embeddings(lm: PreTrainedModel) -> float:
    """Standard deviation of the token embeddings; that of new ones if they have no values yet."""
    weight = lm.get_input_embeddings().weight
    return 0.02 if weight.device.type == "meta" else float(weight.detach().float().std())


def add_adapters(lm: PreTrainedModel, rank: int) -> None:
    """Adds low-rank adapters to all linear layers but the output layer; initially they change nothing."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UsageError(
            "decoder_training 'lora' needs the package peft: pip install 'latent-ebm-text[lora]'"
        ) from error
    # `Conv1D` layers, as in GPT-2, store their matrices transposed.
    transposed = any(type(module).__name__ == "Conv1D" for module in lm.modules())
    settings = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", fan_in_fan_out=transposed, bias="none"
    )
    inject_adapter_in_model(settings, lm)
