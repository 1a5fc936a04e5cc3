"""Decoders p(x | z). A decoder knows nothing of priors, samplers and training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latent_ebm_text.decoders.base import LatentDecoder as LatentDecoder
from latent_ebm_text.decoders.base import TextDecoder as TextDecoder
from latent_ebm_text.decoders.lstm import LSTMDecoder as LSTMDecoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from latent_ebm_text.configuration import LatentEBMTextConfig


def build_text_decoder(config: LatentEBMTextConfig, language_model: PreTrainedModel | None = None) -> TextDecoder:
    """The decoder that a configuration describes.

    Args:
        config: The configuration.
        language_model: For `decoder_type="causal_lm"` the pretrained model; by default one is built from
            `config.decoder_config`, for weights to be loaded into.

    Raises:
        UsageError: If the latent cannot enter the language model in the way that the configuration says.
    """
    dropout: dict[str, Any] = {
        "dropout": config.dropout,
        "embedding_dropout": config.embedding_dropout,
        "word_dropout": config.word_dropout,
        "frequent_words": config.frequent_words,
        "drawn_words": config.drawn_words,
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
    # Imported when needed: the LSTM does without transformers.
    from latent_ebm_text.decoders.causal_lm import CausalLMDecoder
    from latent_ebm_text.decoders.language_model import build_language_model
    from latent_ebm_text.decoders.transformer import transformer_config

    if language_model is None:
        is_transformer = config.decoder_type == "transformer"
        language_model = build_language_model(
            transformer_config(config) if is_transformer else config.decoder_config or {}
        )
    assert config.latent_injection is not None
    return CausalLMDecoder(
        language_model,
        config.latent_dim,
        latent_injection=config.latent_injection,
        prefix_length=config.prefix_length,
        decoder_training=config.decoder_training,
        lora_rank=config.lora_rank,
        max_sentence_length=config.max_sentence_length,
        **dropout,
    )
