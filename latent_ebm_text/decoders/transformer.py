"""A small causal transformer to be trained from scratch, in the form that transformers knows as Llama."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latent_ebm_text.configuration import LatentEBMTextConfig

#: Rotary positions hold for any length; a limit must be given all the same.
MAX_POSITIONS = 4096


def transformer_config(config: LatentEBMTextConfig) -> dict[str, Any]:
    """Root-mean-square norms before each block, rotary positions, gated feed-forward layers, and no biases.

    The feed-forward layers are 8/3 as wide as the model, so that their three matrices hold as many weights as the two
    of an ordinary layer of four times the width.

    New weights have a standard deviation of `1 / sqrt(width)`, so that a matrix gives out what is as large as what it
    takes in. The usual 0.02 suits widths of some thousand; at a width of 128 every product shrinks its input to a
    quarter, and the latent is given up before the layers have learned to hear it.
    """
    width = config.hidden_size
    return {
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": width,
        "intermediate_size": -(-8 * width // (3 * 32)) * 32,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_attention_heads,
        "attention_dropout": config.dropout,
        "initializer_range": width**-0.5,
        "max_position_embeddings": max(MAX_POSITIONS, config.max_sentence_length + config.prefix_length + 1),
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
    }
