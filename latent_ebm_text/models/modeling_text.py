"""Text from a latent with an energy-based prior, as a Hugging Face model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel, PreTrainedTokenizerBase
from transformers import initialization as init
from transformers.utils import ModelOutput, logging

from latent_ebm_text.data.inputs import each_sentence
from latent_ebm_text.data.statistics import CorpusStatistics
from latent_ebm_text.data.tokenizers import make_tokenizer
from latent_ebm_text.errors import UsageError
from latent_ebm_text.models.configuration import LatentEBMTextConfig
from latent_ebm_text.models.defaults import completed, recommended_settings, text_config
from latent_ebm_text.models.forward_arguments import check_extra_arguments
from latent_ebm_text.models.text_decoders import build_encoder, build_text_decoder
from latent_ebm_text.models.text_generation import SentenceGenerationModel
from latent_ebm_text.networks.base import TokenCache, is_exporting, predicted_mask
from latent_ebm_text.networks.causal_lm import CausalLMDecoder
from latent_ebm_text.networks.injection import LatentAttention, LatentInjection
from latent_ebm_text.networks.language_model import architecture
from latent_ebm_text.networks.lstm import LSTMDecoder
from latent_ebm_text.networks.sentence_encoder import SentenceEmbeddingEncoder, scaled_embeddings
from latent_ebm_text.networks.softmax import SoftmaxOutput

logger = logging.get_logger(__name__)
#: Parts that serve training alone.
_HEADS = ("bag_of_tokens", "embedding_head")


@dataclass
class LatentEBMTextOutput(ModelOutput):
    """Output of [`LatentEBMForTextGeneration`].

    Args:
        loss: Scalar, with `labels`: `reconstruction_loss + prior_loss + penalty`, and what trains an encoder where
            there is one, in nats per sentence.
        reconstruction_loss: Scalar, `-log p(x | z+)`.
        prior_loss: Scalar, `E(z+) - E(z-)`, the posterior-prior energy gap; `KL(q || N(0, I))` for a VAE.
        penalty: Scalar, the weighted squared tilt.
        logits: `(batch, length, vocab_size)`, without `labels` or in evaluation mode: logits of the next token at
            every position.
        past_key_values: The decoder's state after the tokens so far, for generation.
        latents: `(batch, latent_dim)`, the latents that were used.
        hidden_states: With `output_hidden_states`, the token embeddings that enter the decoder's first layer and the
            output of every layer, each `(batch, length, width)`.
        attentions: With `output_attentions`, the attention weights of every layer of a transformer, each `(batch,
            heads, length, prefix + all tokens so far)`.
    """

    loss: Tensor | None = None
    reconstruction_loss: Tensor | None = None
    prior_loss: Tensor | None = None
    penalty: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: TokenCache | None = None
    latents: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class LatentEBMForTextGeneration(SentenceGenerationModel, GenerationMixin):
    """A text decoder p(x | z) under an energy-based prior p(z).

    ```python
    >>> from latent_ebm_text import LatentEBMForTextGeneration, LatentEBMTextConfig

    >>> model = LatentEBMForTextGeneration(LatentEBMTextConfig(vocab_size=50, hidden_size=16, embedding_size=8))
    >>> model.generate(num_samples=4, max_new_tokens=5).shape[0]
    4

    ```
    """

    config_class = LatentEBMTextConfig
    #: The tokenizer of a model that `from_texts` has made.
    tokenizer: PreTrainedTokenizerBase | None = None
    main_input_name = "input_ids"
    #: Whether labels have counted an end token that padding shares its id with; a collator that does goes on doing so.
    _has_counted_ends = False
    _keys_to_ignore_on_load_missing = tuple(rf"{name}\." for name in _HEADS)
    # Whether it does is for the language model of the decoder to say, which is asked when it is made.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True

    def __init__(self, config: LatentEBMTextConfig, language_model: PreTrainedModel | None = None) -> None:
        attn_implementation = config._attn_implementation  # as asked for; transformers puts its own choice there
        super().__init__(config)
        self.prior = self._build_prior()
        self.prior_flow = self._build_prior_flow()
        self.decoder = build_text_decoder(config, language_model, attn_implementation)
        if isinstance(self.decoder, CausalLMDecoder):
            config._attn_implementation = self.decoder.lm.config._attn_implementation
            self.supports_gradient_checkpointing = self.decoder.lm.supports_gradient_checkpointing
        self.encoder = None if config.encoder_hidden_size is None else build_encoder(config)
        # What they predict from z teaches the encoder what to tell: they serve training alone, and are not saved.
        self.bag_of_tokens = nn.Linear(config.latent_dim, config.vocab_size) if config.bag_of_tokens_weight else None
        self.embedding_head = None
        if config.sentence_embedding_size is not None and config.sentence_embedding_weight:
            self.embedding_head = nn.Linear(config.latent_dim, config.sentence_embedding_size)
        self._keys_to_ignore_on_save = [name for name, _ in self.named_parameters() if name.startswith(_HEADS)]
        self.post_init()
        # The model is defined by ancestral sampling at temperature 1; other decodings are the caller's choice.
        self.generation_config.update(do_sample=True, top_k=0, max_new_tokens=config.max_sequence_length)

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        *,
        tokenizer: PreTrainedTokenizerBase | str | None = None,
        pretrained_decoder: str | PathLike[str] | None = None,
        max_length: int = 100,
        **settings: Any,
    ) -> LatentEBMForTextGeneration:
        """A new model of the size that suits a corpus, with its tokenizer as `model.tokenizer`; not yet trained.

        [`LatentEBMTrainer`] trains it.

        ```python
        >>> model = LatentEBMForTextGeneration.from_texts(["a cat sleeps", "a dog barks"] * 50, sentence_encoder=None)
        >>> model.tokenizer("a cat barks")["input_ids"][0] == model.config.bos_token_id
        True

        ```

        Args:
            texts: The training texts, in any form that `score` takes.
            tokenizer: A tokenizer; or the kind that is trained on the texts, `"bpe"` by default, `"word"` or
                `"unigram"`. A pretrained decoder brings its own.
            pretrained_decoder: Causal language model that becomes the decoder: a Hub id, a folder, or a GGUF file; by
                default an LSTM that is trained from scratch.
            max_length: Longest sentence in tokens, the end token included.
            **settings: Settings of [`LatentEBMTextConfig`] in place of those that suit the corpus.

        Raises:
            UsageError: If the texts are no texts, there is no such decoder, or a setting cannot be right.
            DataError: If they are too few for a tokenizer.
        """
        sentences = list(each_sentence(texts, "texts"))
        if pretrained_decoder is not None:
            from latent_ebm_text.models import pretrained

            pretrained.refuse_what_it_brings({"tokenizer": tokenizer, **settings})
            name, where = pretrained.split_gguf(pretrained_decoder)
            own = pretrained.load_decoder_tokenizer(name, **where)
        elif tokenizer is None or isinstance(tokenizer, str):
            own, _ = make_tokenizer(tokenizer or "bpe", sentences, max_length=max_length)
        else:
            own = tokenizer
        encoded = own(sentences, add_special_tokens=False, return_attention_mask=False, verbose=False)
        rows = (np.array([*ids[: max_length - 1], own.eos_token_id]) for ids in encoded["input_ids"])
        statistics = CorpusStatistics.of_rows(rows, len(sentences))
        settings = recommended_settings(
            statistics,
            on_gpu=torch.cuda.is_available(),
            is_pretrained=pretrained_decoder is not None,
            **{"max_sequence_length": max_length, **settings},
        )
        if pretrained_decoder is None:
            model = cls(text_config(own, **settings)).eval()
        else:
            model = cls.from_decoder_pretrained(name, **where, tokenizer=own, **settings)
        model.tokenizer = own
        return model

    @classmethod
    def from_decoder_pretrained(
        cls,
        name_or_path: str | PathLike[str],
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        revision: str | None = None,
        gguf_file: str | None = None,
        dtype: torch.dtype | str | None = None,
        **settings: Any,
    ) -> LatentEBMForTextGeneration:
        """A model whose decoder is a pretrained causal language model, under a new prior.

        ```python
        tokenizer = load_decoder_tokenizer("gpt2")  # from latent_ebm_text.models.pretrained
        model = LatentEBMForTextGeneration.from_decoder_pretrained("gpt2", tokenizer=tokenizer, latent_dim=32)
        ```

        Args:
            name_or_path: Hub id or folder of any model that `AutoModelForCausalLM` loads.
            tokenizer: The model's tokenizer; by default the one beside it. Without one, the model's configuration
                says which token ends a sentence.
            revision: Revision of a model on the Hub.
            gguf_file: Name of a GGUF file among the model's files, which is loaded in place of its weights.
            dtype: Precision of the language model, by default that of its weights, or float32 where all of them learn:
                bfloat16 loses small steps. Prior and latents are in float32.
            **settings: Settings of [`LatentEBMTextConfig`], such as `latent_dim`, `latent_injection` or
                `decoder_training`.

        Raises:
            UsageError: If there is no such model, it cannot be a decoder, or a setting cannot be right.
        """
        from latent_ebm_text.models import pretrained

        if dtype is None:
            dtype = "auto" if settings.get("decoder_training", "full") != "full" else "float32"
        where = {key: value for key, value in (("revision", revision), ("gguf_file", gguf_file)) if value is not None}
        language_model = pretrained.load_language_model(name_or_path, dtype=dtype, **where)
        if tokenizer is None:
            tokenizer = pretrained.find_decoder_tokenizer(name_or_path, **where)
        settings = completed({**pretrained.decoder_settings(language_model, tokenizer), **settings})
        return cls(LatentEBMTextConfig(**settings), language_model=language_model).eval()

    def pretrained_weights(self) -> list[nn.Parameter]:
        """The weights of a pretrained language model, without adapters."""
        if not isinstance(self.decoder, CausalLMDecoder) or self.config.decoder_type != "causal_lm":
            return []
        return [weight for name, weight in self.decoder.lm.named_parameters() if ".lora_" not in name]

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, LatentInjection | LatentAttention):
            module.reset_parameters()
        elif isinstance(module, SoftmaxOutput):
            if module.weight is not None:
                init.uniform_(module.weight, -0.1, 0.1)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.uniform_(module.weight, -0.1, 0.1)
        elif isinstance(module, nn.LSTM):
            init.uniform_(module.weight_ih_l0, -0.1, 0.1)
            init.uniform_(module.weight_hh_l0, -0.1, 0.1)
            init.zeros_(module.bias_hh_l0)
            # A forget gate that is open at the start lets the gradient reach the latent through every token.
            forget_open = torch.zeros_like(module.get_parameter("bias_ih_l0"))
            forget_open[module.hidden_size : 2 * module.hidden_size] = 1.0
            init.copy_(module.bias_ih_l0, forget_open)
        else:
            super()._init_weights(module)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the decoder's weights, in which the model is saved and loaded."""
        return self.decoder.token_embedding.get_parameter("weight").dtype

    @property
    def vocab_size(self) -> int:
        """Number of tokens in the vocabulary."""
        return self.decoder.vocab_size

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.decoder.token_embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replaces the decoder's token embedding, and a tied output layer with it, by one of the same shape.

        Raises:
            UsageError: If the shape is another.
        """
        old, new = (embedding.get_parameter("weight").shape for embedding in (self.get_input_embeddings(), value))
        if old != new:
            raise UsageError(
                f"set_input_embeddings takes an embedding of shape {tuple(old)}, got {tuple(new)}; the number of "
                "tokens is changed by resize_token_embeddings"
            )
        self.decoder.set_token_embedding(value)

    def get_output_embeddings(self) -> nn.Module | None:
        """The output layer of a language model; `None` for an LSTM, whose output layer is no plain matrix."""
        return self.decoder.lm.get_output_embeddings() if isinstance(self.decoder, CausalLMDecoder) else None

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Module:
        """Changes the number of tokens, in the embeddings of decoder and encoder, the output layer, and `config`.

        Args:
            new_num_tokens: The number of tokens; tokens are added or cut off at the end.
            pad_to_multiple_of: A number that the number of tokens is rounded up to a multiple of.
            mean_resizing: Whether new tokens start at the mean of the others, or at new random weights.

        Returns:
            The decoder's token embedding.

        Raises:
            UsageError: If a special token would be cut off.
        """
        if new_num_tokens is None and pad_to_multiple_of is None:
            return self.get_input_embeddings()
        ends = self.config.eos_token_id
        special = {self.config.bos_token_id, self.config.pad_token_id, *(ends if isinstance(ends, list) else [ends])}
        last = max(token for token in special if token is not None)
        if new_num_tokens is not None and new_num_tokens <= last:
            raise UsageError(f"new_num_tokens={new_num_tokens} would cut off the special token {last}: give more")
        size = (new_num_tokens, pad_to_multiple_of, mean_resizing)
        decoder = self.decoder
        if isinstance(decoder, CausalLMDecoder):
            decoder.lm.resize_token_embeddings(*size)
            decoder.train(decoder.training)  # new weights of a decoder that does not learn must not learn either
            if self.config.decoder_config is not None:
                self.config.decoder_config = architecture(decoder.lm)
        elif isinstance(decoder, LSTMDecoder):
            self._resize(decoder.embedding, *size)
            for name, weight in decoder.output.named_parameters(recurse=False):  # no weight if it is tied
                setattr(decoder.output, name, self._resized(weight, *size))
        if self.encoder is not None:
            tokens = self.encoder.tokens if isinstance(self.encoder, SentenceEmbeddingEncoder) else self.encoder
            self._resize(tokens.embedding, *size)
        if self.bag_of_tokens is not None:
            for name, weight in self.bag_of_tokens.named_parameters():
                setattr(self.bag_of_tokens, name, self._resized(weight, *size))
        self.config.vocab_size = self.vocab_size
        return self.get_input_embeddings()

    def _resize(self, embedding: Any, *size: Any) -> None:
        embedding.weight = self._resized(embedding.weight, *size)
        embedding.num_embeddings = len(embedding.weight)

    def _resized(self, weight: Tensor, *size: Any) -> nn.Parameter:
        """A weight with a row or a number per token, with the rows of new tokens as transformers makes them."""
        rows = weight.detach().view(len(weight), -1)
        rows = self._get_resized_embeddings(nn.Embedding.from_pretrained(rows), *size).weight.detach()
        return nn.Parameter(rows.view(-1, *weight.shape[1:]), weight.requires_grad)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        latents: Tensor | None = None,
        prior_latents: Tensor | None = None,
        likelihood_weight: float | None = None,
        sentence_embeddings: Tensor | None = None,
        past_key_values: TokenCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        generator: torch.Generator | None = None,
        return_dict: bool | None = None,
        output_hidden_states: bool | list[int] | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> LatentEBMTextOutput | tuple[Any, ...]:
        """The learning objective with `labels`, and the logits of the next tokens without them.

        In evaluation mode `labels` give both: the logits are then those of the latents that the objective used.

        Args:
            input_ids: `(batch, length)`, from the beginning-of-sentence token on.
            attention_mask: `(batch, length)`, 0 at padding, on whichever side.
            labels: `(batch, length)`, equal to `input_ids` where a token counts and -100 where it does not. They are
                shifted inside, as everywhere in transformers.
            latents: `(batch, latent_dim)`. The default is posterior draws with labels, and prior draws without.
            prior_latents: `(samples, latent_dim)`, the prior draws of the objective; drawn if not given.
            likelihood_weight: `w` in place of the model's own, for the draws that are made here.
            sentence_embeddings: `(batch, width)`, what the encoder reads of the sentences under `labels`, if it reads
                embeddings; see [`~latent_ebm_text.data.embeddings.add_embeddings`].
            past_key_values: The decoder's state after the previous tokens, in generation.
            use_cache: Whether to return that state.
            logits_to_keep: Number of last positions whose logits are returned; 0 for all.
            generator: Random number generator of the latents that are drawn here.
            return_dict: Whether to return a [`LatentEBMTextOutput`] or a tuple; by default `config.return_dict`.
            output_hidden_states: Whether to return the hidden states behind the logits, or a list of layers.
            output_attentions: Whether to return the attention weights behind the logits.
            **kwargs: What transformers and peft give every model: `position_ids`, `token_type_ids` and
                `cache_position` are accepted where they change nothing, and refused by name otherwise.

        Raises:
            UsageError: If latents have the wrong shape or are not finite; if there are neither labels nor latents
                in training, since the logits of prior draws would train another model; or if an argument cannot be
                obeyed.
        """
        if past_key_values is not None and (labels is not None or not isinstance(past_key_values, TokenCache)):
            raise UsageError(
                "past_key_values is the state that forward() itself returned with use_cache=True, and goes without "
                "labels: leave it out. peft's prefix tuning is not possible; LoRA is"
            )
        num_past_tokens = 0 if past_key_values is None else past_key_values.get_seq_length()
        check_extra_arguments(kwargs, input_ids, attention_mask, num_past_tokens)
        assert input_ids is not None
        if is_exporting() and (latents is None or labels is not None or attention_mask is not None):
            raise UsageError(
                "torch.export records the logits of whole sentences for given latents: give input_ids and latents, "
                "and neither labels nor an attention_mask"
            )
        if labels is None and latents is None and self.training and torch.is_grad_enabled():
            raise UsageError(
                "in training, forward needs labels, from which it computes the whole objective, or the latents of "
                "the sentences. transformers.Trainer takes labels away under label_smoothing_factor and "
                "compute_loss_func: leave these out"
            )
        if latents is not None and past_key_values is None:  # later steps of a generation bring the same latents
            latents = self.check_latents(latents, input_ids.shape[0])
        states = self._wanted_states(output_hidden_states=output_hidden_states, output_attentions=output_attentions)
        output = LatentEBMTextOutput()
        if labels is not None:
            output = self._loss(
                input_ids,
                attention_mask,
                labels,
                latents,
                prior_latents,
                likelihood_weight,
                generator,
                sentence_embeddings,
            )
        if labels is None or not self.training:
            latents = latents if output.latents is None else output.latents
            if latents is None:
                if self.config.latent_dim > 0:
                    logger.warning_once(
                        "forward() was given neither labels nor latents: its logits are those of latents drawn from "
                        "the prior, not of these sentences, and no measure of their likelihood; model.score() gives it"
                    )
                latents = self.sample_prior(len(input_ids), generator=generator).latents
            if past_key_values is None and use_cache:
                past_key_values = self.decoder.make_cache()
            output.logits = self.decoder.next_token_logits(
                input_ids,
                latents,
                cache=past_key_values,
                attention_mask=attention_mask,
                logits_to_keep=logits_to_keep,
                states=states,
            )
            output.past_key_values, output.latents = past_key_values, latents
            output.hidden_states, output.attentions = states.get("hidden_states"), states.get("attentions")
        elif states:
            raise UsageError(
                f"output_{next(iter(states))} is for logits, which forward() does not compute in training with "
                "labels: leave it out, or call model.eval()"
            )
        is_dict = self.config.return_dict if return_dict is None else return_dict
        return output if is_dict else output.to_tuple()

    def _wanted_states(self, **wanted: bool | list[int] | None) -> dict[str, Any]:
        """`hidden_states` and `attentions`, if the caller or else the configuration asks for them."""
        return {
            name.removeprefix("output_"): value
            for name, given in wanted.items()
            if (value := getattr(self.config, name) if given is None else given)
        }

    def _loss(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor,
        latents: Tensor | None,
        prior_latents: Tensor | None,
        likelihood_weight: float | None,
        generator: torch.Generator | None,
        sentence_embeddings: Tensor | None,
    ) -> LatentEBMTextOutput:
        counted = labels != -100
        ends = self.config.eos_token_id if isinstance(self.config.eos_token_id, list) else [self.config.eos_token_id]
        if self.config.pad_token_id in ends and attention_mask is not None and not self._has_counted_ends:
            is_end = (input_ids == self.config.pad_token_id) & attention_mask.bool()
            self._has_counted_ends = bool((is_end & counted)[:, 1:].any())
            if not self._has_counted_ends and bool(is_end[:, 1:].any()):
                raise UsageError(
                    "labels leave out the end token of every sentence, as DataCollatorForLanguageModeling does where "
                    f"padding has the same id, {self.config.pad_token_id}: give tokenizer and model another pad token"
                )
        if attention_mask is None:  # everything after the last token that counts is padding
            attention_mask = counted.flip(1).cumsum(dim=1).flip(1) > 0
        mask = attention_mask.bool()
        order = mask.logical_not().int().argsort(dim=1, stable=True)  # of the positions of a row, padding last
        inputs = {
            "input_ids": input_ids.gather(1, order),
            "attention_mask": mask.gather(1, order),
            "counted": (counted & mask).gather(1, order),
        }
        if sentence_embeddings is not None:
            inputs["sentence_embeddings"] = sentence_embeddings
        loss = self.learning_objective(inputs, latents, prior_latents, likelihood_weight, generator)
        return LatentEBMTextOutput(**vars(loss))

    def _auxiliary_loss(self, inputs: dict[str, Tensor], latents: Tensor) -> Tensor:
        """The nats of the sentence's tokens in any order, and the squared error of its embedding, predicted from z."""
        loss = super()._auxiliary_loss(inputs, latents)
        if self.bag_of_tokens is not None:
            log_probs = self.bag_of_tokens(latents.to(self.bag_of_tokens.weight.dtype)).float().log_softmax(dim=-1)
            log_probs = log_probs.gather(1, inputs["input_ids"][:, 1:])  # (batch, length - 1)
            nll = -log_probs.masked_fill(~predicted_mask(inputs), 0.0).sum(dim=1).mean()
            loss = loss + self.config.bag_of_tokens_weight * nll
        if self.embedding_head is not None:
            embeddings = scaled_embeddings(inputs, self.embedding_head.out_features)
            error = self.embedding_head(latents.to(self.embedding_head.weight.dtype)).float() - embeddings
            loss = loss + self.config.sentence_embedding_weight * error.square().sum(dim=1).mean()
        return loss


AutoModelForCausalLM.register(LatentEBMTextConfig, LatentEBMForTextGeneration, exist_ok=True)
