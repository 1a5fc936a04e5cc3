"""The decoder and the encoder of a text model, built from its configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latent_ebm_text.errors import UsageError
from latent_ebm_text.networks.base import LatentEncoder, TextDecoder
from latent_ebm_text.networks.causal_lm import CausalLMDecoder
from latent_ebm_text.networks.language_model import build_language_model
from latent_ebm_text.networks.lstm import LSTMDecoder
from latent_ebm_text.networks.lstm_encoder import LSTMEncoder
from latent_ebm_text.networks.sentence_encoder import SentenceEmbeddingEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from latent_ebm_text.models.configuration import LatentEBMTextConfig

#: Rotary positions hold for any length, but transformers needs a limit.
MAX_POSITIONS = 4096


def transformer_config(config: LatentEBMTextConfig) -> dict[str, Any]:
    """Configuration of a small causal transformer, trained from scratch, of the architecture of Llama.

    It has root-mean-square norms before each block, rotary positions, gated feed-forward layers, and no biases. The
    feed-forward layers are 8/3 as wide as the model, so that their three matrices have as many weights as the two
    matrices of an ordinary layer of four times the width.

    New weights have a standard deviation of `1 / sqrt(width)`, so that the output of a matrix is as large as its
    input. The usual 0.02 suits widths of a few thousand; at a width of 128 every product shrinks its input to a
    quarter, and the latent is ignored before the layers have learned to use it.
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
        "max_position_embeddings": max(MAX_POSITIONS, config.max_sequence_length + config.prefix_length + 1),
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
    }


def build_text_decoder(
    config: LatentEBMTextConfig, language_model: PreTrainedModel | None = None, attn_implementation: str | None = None
) -> TextDecoder:
    """The decoder that a configuration describes.

    Args:
        config: The configuration.
        language_model: The pretrained model of `decoder_type="causal_lm"`. By default one is built from
            `config.decoder_config`, for weights to be loaded into.
        attn_implementation: The attention of the language model, as transformers names it; by default its own choice.

    Raises:
        UsageError: If the latent cannot enter the language model in the way that the configuration says.
    """
    dropout: dict[str, Any] = {
        "dropout": config.dropout,
        "embedding_dropout": config.embedding_dropout,
        "token_dropout": config.token_dropout,
        "frequent_tokens": config.frequent_tokens,
        "drawn_tokens": config.drawn_tokens,
    }
    if config.decoder_type == "lstm":
        return LSTMDecoder(
            config.vocab_size,
            config.latent_dim,
            embedding_size=config.embedding_size,
            hidden_size=config.hidden_size,
            output_rank=config.output_rank,
            tie_word_embeddings=config.tie_word_embeddings,
            **dropout,
        )
    if language_model is None:
        is_transformer = config.decoder_type == "transformer"
        language_model = build_language_model(
            transformer_config(config) if is_transformer else config.decoder_config or {}, attn_implementation
        )
    elif attn_implementation is not None:
        language_model.set_attn_implementation(attn_implementation)
    assert config.latent_injection is not None
    return CausalLMDecoder(
        language_model,
        config.latent_dim,
        latent_injection=config.latent_injection,
        prefix_length=config.prefix_length,
        num_latent_vectors=config.num_latent_vectors,
        decoder_training=config.decoder_training,
        lora_rank=config.lora_rank,
        max_sequence_length=config.max_sequence_length,
        **dropout,
    )


def build_encoder(config: LatentEBMTextConfig) -> LatentEncoder:
    """The encoder that a configuration describes.

    Raises:
        UsageError: If it reads embeddings, and the configuration does not say how wide they are.
    """
    assert config.encoder_hidden_size is not None
    dropout = config.dropout if config.embedding_dropout is None else config.embedding_dropout
    tokens = LSTMEncoder(
        config.vocab_size,
        config.latent_dim,
        embedding_size=config.embedding_size,
        hidden_size=config.encoder_hidden_size,
        embedding_dropout=dropout,
    )
    if config.sentence_encoder is None:
        return tokens
    if config.sentence_embedding_size is None:
        raise UsageError(
            f"the width of the embeddings of sentence_encoder {config.sentence_encoder!r} is missing: give "
            "sentence_embedding_size, which is 384 for all-MiniLM-L6-v2"
        )
    return SentenceEmbeddingEncoder(
        tokens,
        config.sentence_embedding_size,
        config.latent_dim,
        hidden_size=config.encoder_hidden_size,
        dropout=dropout,
    )
