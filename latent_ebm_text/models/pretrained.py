"""Pretrained causal language models and their tokenizers, checked before they become decoders."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import cached_file

from latent_ebm_text.errors import UsageError, in_one_line, some_of
from latent_ebm_text.hub.folders import check_model
from latent_ebm_text.models.configuration import FROM_DECODER, refuse_quantization
from latent_ebm_text.networks.base import frozen
from latent_ebm_text.networks.language_model import architecture

logger = logging.getLogger(__name__)

PAD_TOKEN, EOS_TOKEN = "<pad>", "<eos>"


def load_language_model(name_or_path: str | PathLike[str], **options: Any) -> PreTrainedModel:
    """A causal language model from the Hub or from a folder.

    Args:
        name_or_path: Hub id or folder.
        **options: Options of `AutoModelForCausalLM.from_pretrained`, such as `revision`, `dtype` or `gguf_file`.

    Raises:
        UsageError: If there is no such model, or it cannot be a decoder (see `check_language_model`).
    """
    name = fspath(name_or_path)
    check_model(name, **options)
    refuse_quantization(options.get("quantization_config"))
    # Neither code that comes with a model nor a pickle is run.
    options = {"trust_remote_code": False, **options}
    if "gguf_file" not in options:
        options = {**options, "use_safetensors": True}
    where = {key: value for key, value in options.items() if key not in ("dtype", "use_safetensors")}
    try:
        config = AutoConfig.from_pretrained(name, **where)
    except Exception as error:  # what transformers and gguf stumble over in damaged files has no limits
        raise _not_found(name, error) from error
    if config.is_encoder_decoder:
        raise UsageError(
            f"{name} ({config.model_type}) is an encoder-decoder model; a decoder here is a causal language model, "
            "such as GPT-2, Llama or Qwen"
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UsageError(f"{name} ({config.model_type}) is no causal language model: use one such as GPT-2 or Llama")
    refuse_quantization(getattr(config, "quantization_config", None))
    try:
        lm, info = AutoModelForCausalLM.from_pretrained(
            name, output_loading_info=True, **options, **_unpacked(options)
        )
    except Exception as error:
        raise _not_found(name, error) from error
    check_language_model(lm)
    if info["missing_keys"]:  # transformers would draw them at random
        raise UsageError(f"the weights of the language model {name} lack {some_of(sorted(info['missing_keys']))}")
    return lm


def _unpacked(options: dict[str, Any]) -> dict[str, Any]:
    """Options that unpack GGUF weights, which transformers would otherwise leave quantised: they must learn."""
    if "gguf_file" not in options or not hasattr(transformers, "GgufConfig"):  # older releases always unpack
        return {}
    return {"quantization_config": transformers.GgufConfig(dequantize=True)}


def split_gguf(name_or_path: str | PathLike[str]) -> tuple[str, dict[str, str]]:
    """The folder of a GGUF file and the option that names the file; any other name as it is, without options."""
    path = Path(name_or_path)
    if path.suffix != ".gguf":
        return fspath(name_or_path), {}
    return str(path.parent), {"gguf_file": path.name}


def _not_found(name: str, error: Exception) -> UsageError:
    reason = in_one_line(error)
    if Path(name).is_dir():
        return UsageError(f"the folder {name} holds no language model that transformers can load: {reason}")
    return UsageError(
        f"the pretrained decoder {name!r} is neither a folder on disk nor a model on the Hugging Face Hub: {reason}"
    )


def check_language_model(lm: PreTrainedModel) -> None:
    """Raises a `UsageError` unless a model can be a decoder: it takes embeddings, is causal, and has a cache."""
    name = f"{type(lm).__name__} ({lm.config.model_type})"
    try:
        embedding = lm.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        embedding = None
    if embedding is None or "inputs_embeds" not in inspect.signature(lm.forward).parameters:
        raise UsageError(f"{name} takes no input embeddings, through which a latent could enter: use another model")
    if getattr(lm, "_is_stateful", False):
        raise UsageError(f"{name} keeps a recurrent state in place of keys and values, which is not supported")
    with torch.enable_grad(), frozen(lm):
        tokens = embedding.weight[None, :3].detach().clone().requires_grad_()
        logits = lm(inputs_embeds=tokens, use_cache=False).logits[0, :2]
        (gradient,) = torch.autograd.grad(logits.float().square().sum(), tokens)
    if bool(gradient[0, 2].any()):
        raise UsageError(f"{name} is not causal, its tokens see those after them: use a model such as GPT-2 or Llama")


def load_decoder_tokenizer(name_or_path: str | PathLike[str], **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a causal language model, with the special tokens that sentences need.

    Every sentence is encoded from a beginning to an end token. If the tokenizer has no end or padding token, one is
    added; if it has no beginning token, the end token also begins sentences. The log says so.

    Args:
        name_or_path: Hub id or folder.
        **options: Options of `AutoTokenizer.from_pretrained`, such as `revision` or `gguf_file`.

    Raises:
        UsageError: If there is no such tokenizer.
    """
    name = fspath(name_or_path)
    if "gguf_file" not in options and not _has_tokenizer(name, **options):
        raise UsageError(f"there is no tokenizer beside the decoder {name!r}: save one there, or give tokenizer=...")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **{"trust_remote_code": False, **options})
    except Exception as error:  # tokenizers raise errors of whatever library they need
        raise UsageError(f"no tokenizer for the decoder {name!r}: {in_one_line(error)}") from error
    added = {}
    if tokenizer.eos_token is None:
        added["eos_token"] = EOS_TOKEN
    if tokenizer.pad_token is None:
        added["pad_token"] = PAD_TOKEN
    if added:
        tokenizer.add_special_tokens(added)
        logger.warning("the tokenizer of %s had no %s: added %s", name, " and no ".join(added), added)
    if tokenizer.bos_token is None:
        tokenizer.bos_token = tokenizer.eos_token
        logger.warning("the tokenizer of %s has no bos_token: %s also begins sentences", name, tokenizer.eos_token)
    return _with_both_ends(tokenizer) if tokenizer.is_fast else tokenizer


def _has_tokenizer(name: str, **options: Any) -> bool:
    """Whether the model comes with a tokenizer; if not, transformers would make an empty one of the model's type."""
    files = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")
    quiet = {f"_raise_exceptions_for_{problem}": False for problem in ("missing_entries", "connection_errors")}
    try:
        return any(cached_file(name, file, **quiet, **options) is not None for file in files)
    except OSError:
        return False


def find_decoder_tokenizer(name_or_path: str | PathLike[str], **options: Any) -> PreTrainedTokenizerBase | None:
    """The result of `load_decoder_tokenizer`, or `None` if there is no tokenizer."""
    try:
        return load_decoder_tokenizer(name_or_path, **options)
    except UsageError:
        return None


def _with_both_ends(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """A plain fast tokenizer with the same tokens, which adds both ends and loads from disk as it was saved."""
    from tokenizers import processors

    backend = tokenizer.backend_tokenizer
    ends = {token: tokenizer.convert_tokens_to_ids(token) for token in (tokenizer.bos_token, tokenizer.eos_token)}
    backend.post_processor = processors.TemplateProcessing(
        single=[tokenizer.bos_token, "$A", tokenizer.eos_token], special_tokens=list(ends.items())
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token,
        unk_token=tokenizer.unk_token,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def refuse_what_it_brings(given: Mapping[str, Any]) -> None:
    """Raises a `UsageError` if something is given that a pretrained decoder brings along; `None` is not given."""
    for name in ("tokenizer", *FROM_DECODER):
        if given.get(name) is not None:
            raise UsageError(f"a pretrained decoder brings {name} along: leave {name} out")


def decoder_settings(lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    """The entries of a text configuration that a language model and its tokenizer determine.

    The model's embedding is enlarged if the tokenizer has more tokens.

    Raises:
        UsageError: If nothing says how sentences end.
    """
    ends = tokenizer if tokenizer is not None else lm.config.get_text_config()
    bos, eos, pad = ends.bos_token_id, ends.eos_token_id, ends.pad_token_id
    if eos is None:
        raise UsageError("the language model has no end token and no tokenizer was given: give tokenizer=...")
    first_eos = eos[0] if isinstance(eos, list) else eos
    if tokenizer is not None and max(tokenizer.get_vocab().values()) >= lm.get_input_embeddings().weight.shape[0]:
        lm.resize_token_embeddings(max(tokenizer.get_vocab().values()) + 1, mean_resizing=False)
    return {
        "decoder_type": "causal_lm",
        "decoder_config": architecture(lm),
        "vocab_size": lm.get_input_embeddings().weight.shape[0],
        "hidden_size": lm.config.get_text_config().hidden_size,
        "tie_word_embeddings": False,  # the language model ties its own
        "bos_token_id": first_eos if bos is None else bos,
        "eos_token_id": eos,
        "pad_token_id": first_eos if pad is None else pad,
        "unk_token_id": None if tokenizer is None else tokenizer.unk_token_id,
        "dropout": 0.0,
    }
