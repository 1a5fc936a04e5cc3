"""The text model that the arguments of a recipe describe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latent_ebm_text.modeling_text import LatentEBMForTextGeneration
from latent_ebm_text.training.arguments import ModelArguments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Decoders that are trained from scratch; any other name is that of a pretrained one.
FROM_SCRATCH = ("lstm", "transformer")


def load_tokenizer(args: ModelArguments) -> PreTrainedTokenizerBase | None:
    """The tokeniser of a pretrained decoder; none for one from scratch, which leaves it to the corpus."""
    if args.decoder in FROM_SCRATCH:
        return None
    from latent_ebm_text.decoders.pretrained import load_decoder_tokenizer, split_gguf

    name, where = split_gguf(args.decoder)
    return load_decoder_tokenizer(name, **where)


def build_model(
    args: ModelArguments, tokenizer: PreTrainedTokenizerBase, max_sentence_length: int
) -> LatentEBMForTextGeneration:
    """The model, with weights drawn from torch's global stream where they are not pretrained.

    Args:
        args: The model's arguments.
        tokenizer: Of its words.
        max_sentence_length: Most words of a sentence, its end counted.

    Raises:
        UsageError: If an argument cannot be right, or there is no such pretrained decoder.
    """
    if args.decoder in FROM_SCRATCH:
        size = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values()))  # ids may have gaps
        config = args.text_config(size, max_sentence_length)
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            setattr(config, name, getattr(tokenizer, name))
        return LatentEBMForTextGeneration(config)
    from latent_ebm_text.decoders.pretrained import split_gguf

    name, where = split_gguf(args.decoder)
    return LatentEBMForTextGeneration.from_decoder_pretrained(
        name,
        **where,
        tokenizer=tokenizer,
        max_sentence_length=max_sentence_length,
        dtype="float32" if args.decoder_training == "full" else "auto",  # small steps are lost in bfloat16
        **args.common_settings(),
    )
