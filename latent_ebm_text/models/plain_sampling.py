"""The options of `generate`: those that cannot be right, and those that plain sampling can do without transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from latent_ebm_text.errors import UsageError, require_temperature

_DEFAULTS: dict[str, Any] = GenerationConfig._get_default_generation_params()

#: The largest numbers that can be meant; larger ones would take all memory or all day before they fail.
MOST = {"num_samples": 10_000_000, "num_return_sequences": 10_000_000, "num_beams": 1000}
#: Options that plain sampling obeys, with their defaults.
OBEYED: dict[str, Any] = {
    "do_sample": False, "temperature": 1.0, "max_new_tokens": None, "min_new_tokens": 0, "eos_token_id": None,
    "pad_token_id": None, "num_return_sequences": 1, "return_dict_in_generate": False,
}  # fmt: skip
#: Options that change nothing at these values. Any option that is not named here needs transformers.
IDLE: dict[str, Any] = {
    "top_k": 0, "top_p": 1.0, "num_beams": 1, "use_cache": True, "output_scores": False, "output_logits": False,
    "output_attentions": False, "output_hidden_states": False,
}  # fmt: skip
#: Entries of a generation configuration that do not affect a call: every sentence begins with the model's own token.
IGNORED = frozenset({"bos_token_id", "transformers_version", "_from_model_config"})


def check_options(options: dict[str, Any], vocab_size: int) -> None:
    """Raises a `UsageError` if an option of `generate` has a wrong type, or is a number that cannot be meant."""
    pad = options.get("pad_token_id")
    if isinstance(pad, int) and pad >= vocab_size:
        raise UsageError(f"pad_token_id of a generation must be a token of the vocabulary of {vocab_size}, got {pad}")
    for name, value in options.items():
        if value is not None and (problem := _problem_of(name, value)):
            raise UsageError(f"{name} of a generation must be {problem}, got {value!r}")
    for name, most in MOST.items():
        if isinstance(options.get(name), int) and options[name] > most:
            raise UsageError(f"{name} of a generation must be at most {most:,}, got {options[name]}")
    temperature = options.get("temperature")
    if isinstance(temperature, float | int) and temperature > 0:  # transformers says what is wrong with others
        require_temperature("temperature", temperature)


def _problem_of(name: str, value: Any) -> str | None:
    """What the value of an option should be, if it cannot be right."""
    if name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids = value if isinstance(value, list) else [value]
        is_right = isinstance(value, Tensor) or all(
            isinstance(token, Integral) and 0 <= int(token) < 2**31 for token in ids
        )
        return None if is_right else "a token id" + (" or a list of them" if name == "eos_token_id" else "")
    default = 1 if name == "max_new_tokens" else False if name.startswith("output_") else _DEFAULTS.get(name)
    if isinstance(default, bool) and name != "early_stopping":  # which may also be "never"
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, float):
        return None if isinstance(value, Real) else "a number"
    if isinstance(default, int) and not isinstance(default, bool):
        least = int(name.startswith("num_"))
        is_right = isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least
        return None if is_right else f"a whole number of at least {least}"
    return None


@contextmanager
def naming_saved_options(saved: dict[str, Any], given: dict[str, Any]) -> Iterator[None]:
    """Adds to an error of transformers the options that the model's generation configuration asks for.

    Nobody has typed them, so that an error on their account would otherwise speak of something the caller never gave.

    Raises:
        UsageError: In place of the error, if there are such options.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, ArithmeticError, AttributeError, LookupError, RuntimeError) as error:
        usual = {*OBEYED, *IGNORED, "top_k", *given}
        names = [name for name, value in saved.items() if value not in (None, IDLE.get(name)) and name not in usual]
        if not names:
            raise
        raise UsageError(
            f"cannot generate with {', '.join(names)} of the model's generation configuration: {error}"
        ) from error


def plain_options(options: dict[str, Any]) -> dict[str, Any] | None:
    """The values of the options in [`OBEYED`], or `None` if the options ask for anything else.

    The result is also `None` for values that cannot be right: transformers then says what is wrong with them.

    Args:
        options: Options of `generate` together with those of the model's generation configuration. A value of `None`
            means that the option is not given.
    """
    given = {name: value for name, value in options.items() if value is not None and name not in IGNORED}
    plain = {name: given.pop(name, default) for name, default in OBEYED.items()}
    has_other = any(name not in IDLE or value != IDLE[name] for name, value in given.items())
    # If `top_k` is not given, transformers uses 50.
    return None if has_other or "top_k" not in given or not _is_right(**plain) else plain


def _is_right(
    *,
    do_sample: Any,
    temperature: Any,
    max_new_tokens: Any,
    min_new_tokens: Any,
    eos_token_id: Any,
    pad_token_id: Any,
    num_return_sequences: Any,
    return_dict_in_generate: Any,
) -> bool:
    whole = (max_new_tokens, min_new_tokens, num_return_sequences, pad_token_id)
    return (
        all(isinstance(value, int) for value in whole)
        and max_new_tokens > 0
        and 0 <= min_new_tokens <= max_new_tokens
        and num_return_sequences > 0
        and isinstance(temperature, float | int)
        and temperature > 0
        and (do_sample is True or (do_sample is False and temperature == 1 and num_return_sequences == 1))
        and isinstance(eos_token_id, int | list | None)
        and isinstance(return_dict_in_generate, bool)
    )
