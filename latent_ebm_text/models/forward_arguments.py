"""What transformers and peft give `forward` of a text model besides its own arguments; nothing is ignored unread."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from latent_ebm_text.errors import UsageError

#: Arguments that cannot be obeyed, with what to do instead.
REFUSED = {
    "inputs_embeds": "p(x | z) is a density of token ids: give input_ids. peft's methods that learn a prompt need "
    "inputs_embeds; LoRA does not",
    "num_items_in_batch": "the loss is a mean over sentences, not a sum over tokens: leave it out, and "
    "model_accepts_loss_kwargs of a transformers.Trainer as it is",
}
#: Arguments that change nothing: the decoder's cache knows its own length, and `generate` hands on the tokenizer in
#: which it has looked up `stop_strings`.
IDLE = frozenset({"cache_position", "tokenizer"})


def check_extra_arguments(
    extra: dict[str, Any], input_ids: Tensor | None, attention_mask: Tensor | None, num_past_tokens: int
) -> None:
    """Raises a `UsageError` that names the argument, unless everything in `extra` would change nothing.

    Args:
        extra: The arguments by name; `None` means that one is not given.
        input_ids: `(batch, length)`.
        attention_mask: `(batch, past tokens + length)` or `None`.
        num_past_tokens: Number of tokens in the cache.
    """
    given = {name: value for name, value in extra.items() if value is not None and name not in IDLE}
    for name, reason in REFUSED.items():
        if name in given:
            raise UsageError(f"forward() takes no {name}: {reason}")
    if input_ids is None:
        raise UsageError("forward() needs input_ids, token ids of shape (batch, length)")
    token_types, positions = given.pop("token_type_ids", None), given.pop("position_ids", None)
    if given:
        raise UsageError(f"forward() has no argument {next(iter(given))!r}")
    if token_types is not None and bool(token_types.any()):
        raise UsageError("forward() knows no token types: leave token_type_ids out, or make all of them 0")
    if positions is not None:
        mask = attention_mask
        if mask is None:
            mask = input_ids.new_ones(len(input_ids), num_past_tokens + input_ids.shape[1])
        usual = mask.cumsum(dim=1) - 1
        real, usual = (rows[:, -input_ids.shape[1] :] for rows in (mask.bool(), usual))
        if positions.shape[-1] != usual.shape[1] or bool((torch.where(real, positions, usual) != usual).any()):
            raise UsageError(
                "position_ids must count the tokens of every row from 0 on, as forward() does by itself: leave them "
                "out, and give every sentence a row of its own"
            )
