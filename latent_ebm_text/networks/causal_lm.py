"""Causal language models of transformers, conditioned on a latent: a decoder and its sentence generator."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from latent_ebm_text.errors import UsageError
from latent_ebm_text.networks.base import (
    FrozenLikelihood,
    PredictedPositions,
    TextDecoder,
    TokenCache,
    frozen,
    is_exporting,
    predicted_mask,
)
from latent_ebm_text.networks.dropout import drop_features, drop_tokens
from latent_ebm_text.networks.generation import BLOCK_TOKENS, SentenceGenerator, TokenChoice, whole_blocks
from latent_ebm_text.networks.injection import (
    Injection,
    LatentAttention,
    LatentInjection,
    added_to_inputs,
    constant_additions,
)
from latent_ebm_text.networks.language_model import add_adapters, has_plain_head, list_of_layers, std_of_embeddings
from latent_ebm_text.networks.softmax import (
    FrozenSoftmaxOutput,
    chunked_log_prob,
    chunked_sum_log_prob,
    fill_rows,
    pick_log_prob,
)


class CausalLMDecoder(TextDecoder):
    """p(x | z) by a causal language model that sees z before the tokens, in their embeddings or in its layers.

    Args:
        lm: The language model.
        latent_dim: Size of the latent; with zero the decoder is the language model alone.
        latent_injection: `"prefix"` puts `prefix_length` vectors before the first token; `"embedding"` adds a vector
            to every token embedding; `"layers"` adds a vector to the input of every layer; `"attention"` adds what
            the tokens read of `num_latent_vectors` vectors, an equal share of them at the input of every layer.
        prefix_length: Length of the prefix.
        num_latent_vectors: Number of vectors that attention reads, a divisor of `latent_dim`.
        latent_std: Initial standard deviation of these vectors; by default that of the token embeddings, so that a
            pretrained model gives the latent and its tokens equal weight.
        decoder_training: Which weights of the language model are trained: `"full"`, all of them; `"lora"`, low-rank
            adapters only (extra `lora`); `"frozen"`, none, and its dropout is off.
        lora_rank: Rank of the adapters.
        max_sequence_length: Maximum number of tokens of a sentence, with its end, that must fit into the positions.
        dropout: In training, dropout rate of the last hidden states, with one mask for all tokens of a sentence.
        embedding_dropout: Dropout rate of the token embeddings, with one mask per sentence; by default `dropout`.
        token_dropout: Probability that a vocabulary entry is dropped from the input of a batch.
        frequent_tokens: In training mode, the softmax is taken over this many of the lowest ids, the targets, and
            `drawn_tokens` of the others, see [`~latent_ebm_text.networks.softmax.CandidateTokens`]; zero means over
            all tokens.
        drawn_tokens: Number of other tokens that are drawn at random, see `frequent_tokens`.

    Raises:
        UsageError: If the language model cannot be conditioned in this way, or has too few positions.
    """

    #: Chains need float32, so these modules keep it for any precision of the language model. transformers reads this
    #: attribute when it loads weights.
    _keep_in_fp32_modules_strict = frozenset({"prior", "encoder", "injection"})

    def __init__(
        self,
        lm: PreTrainedModel,
        latent_dim: int,
        *,
        latent_injection: Injection = "prefix",
        prefix_length: int = 4,
        num_latent_vectors: int = 1,
        latent_std: float | None = None,
        decoder_training: Literal["full", "lora", "frozen"] = "full",
        lora_rank: int = 8,
        max_sequence_length: int = 1,
        dropout: float = 0.0,
        embedding_dropout: float | None = None,
        token_dropout: float = 0.0,
        frequent_tokens: int = 0,
        drawn_tokens: int = 0,
    ) -> None:
        super().__init__()
        self.latent_injection, self.decoder_training = latent_injection, decoder_training
        self.dropout, self.token_dropout = dropout, token_dropout
        self.embedding_dropout = dropout if embedding_dropout is None else embedding_dropout
        self.frequent_tokens, self.drawn_tokens = frequent_tokens, drawn_tokens
        self.prefix_length = prefix_length if latent_injection == "prefix" and latent_dim > 0 else 0
        if decoder_training == "lora":
            add_adapters(lm, lora_rank)
        if lm.device.type != "meta":
            for module in lm.modules():
                module._is_hf_initialized = True  # transformers draws no new weights for it
        self.lm = lm
        num_vectors, width = self.prefix_length, lm.get_input_embeddings().weight.shape[1]
        if latent_injection == "embedding":
            num_vectors = 1
        elif latent_injection == "layers":
            num_vectors, width = len(list_of_layers(lm)), lm.config.get_text_config().hidden_size
        self.injection: LatentInjection | LatentAttention | None = None
        if latent_dim > 0:
            std = std_of_embeddings(lm) if latent_std is None else latent_std
            if latent_injection == "attention":
                self.injection = _attention(lm, latent_dim, num_latent_vectors, std)
            else:
                self.injection = LatentInjection(latent_dim, num_vectors, width, std)
        self._has_plain_head: bool | None = None
        self.require_positions(max_sequence_length)
        self.train()

    @property
    def all_tied_weights_keys(self) -> dict[str, str]:
        """The tied weights of the language model, which transformers saves and loads only once."""
        return {f"lm.{name}": f"lm.{source}" for name, source in self.lm.all_tied_weights_keys.items()}

    def train(self, mode: bool = True) -> CausalLMDecoder:
        """Sets the mode. Weights that are not trained never have gradients, and a frozen model never has dropout."""
        super().train(mode)
        if self.decoder_training == "frozen":
            self.lm.eval()
        if self.decoder_training != "full":
            for name, weight in self.lm.named_parameters():
                weight.requires_grad_(self.decoder_training == "lora" and ".lora_" in name)
        return self

    @property
    def token_embedding(self) -> nn.Module:
        """The embedding layer, which maps token ids to vectors."""
        embedding: nn.Module = self.lm.get_input_embeddings()
        return embedding

    def set_token_embedding(self, embedding: nn.Embedding) -> None:
        """Replaces the embedding layer, and the output layer if the two are tied."""
        self.lm.set_input_embeddings(embedding)
        self.lm.tie_weights()

    @property
    def latent_dtype(self) -> torch.dtype:
        """The precision of the latents: float32 even if the language model has a lower precision."""
        if self.injection is not None:  # float32 unless the whole model was cast
            return next(self.injection.parameters()).dtype
        return torch.promote_types(self.token_embedding.get_parameter("weight").dtype, torch.float32)

    def require_positions(self, num_tokens: int) -> None:
        """Raises a `UsageError` if the language model has too few positions for sentences of `num_tokens` tokens."""
        positions = getattr(self.lm.config.get_text_config(), "max_position_embeddings", None)
        if positions is not None and num_tokens + self.prefix_length > positions:
            prefix = f" and a prefix of {self.prefix_length}" if self.prefix_length else ""
            raise UsageError(
                f"sentences of {num_tokens} tokens{prefix} do not fit into the {positions} positions of this "
                f"{self.lm.config.model_type} decoder: make max_length (max_sequence_length of the configuration) "
                f"{positions - self.prefix_length} or less"
            )

    # Hidden states

    def embed(self, input_ids: Tensor) -> Tensor:
        """Token embeddings, with dropout in training; `(batch, length)` to `(batch, length, width)`."""
        embedded: Tensor = self.token_embedding(input_ids)
        if not self.training or self.decoder_training == "frozen":
            return embedded
        embedded = embedded.transpose(0, 1)
        if self.token_dropout > 0:
            embedded = drop_tokens(embedded, input_ids.t(), self.token_dropout, self.vocab_size)
        if self.embedding_dropout > 0:
            embedded = drop_features(embedded, self.embedding_dropout)
        return embedded.transpose(0, 1)

    def features(
        self,
        embedded: Tensor,
        latents: Tensor,
        *,
        cache: CausalLMCache | None = None,
        attention_mask: Tensor | None = None,
        states: dict[str, Any] | None = None,
    ) -> Tensor:
        """Returns the last hidden states, or the logits if the output layer is more than a matrix product.

        Args:
            embedded: `(batch, length, width)`, token embeddings; those after the tokens in the cache, if any.
            latents: `(batch, latent_dim)`.
            cache: The cache, which is advanced past these tokens.
            attention_mask: The mask of `next_token_logits`; `None` if no row is padded on the left.
            states: That of `next_token_logits`.

        Returns:
            `(batch, length, hidden_size or vocab_size)`.
        """
        around: AbstractContextManager[None] = nullcontext()
        is_first = cache is None or cache.num_tokens == 0
        prefix = self.prefix_length
        if self.injection is not None and (prefix == 0 or is_first):
            vectors = self.injection(latents)  # (batch, vectors, width), or what attention adds at each layer
            if self.latent_injection in ("layers", "attention"):
                additions = vectors if self.latent_injection == "attention" else constant_additions(vectors)
                around = added_to_inputs(list_of_layers(self.lm), additions)
            elif self.latent_injection == "embedding":
                embedded = embedded + vectors.to(embedded.dtype)
            else:
                embedded = torch.cat([vectors.to(embedded.dtype), embedded], dim=1)
        options: dict[str, Any] = {"use_cache": cache is not None}
        if cache is not None:
            options["past_key_values"] = cache.keys_and_values
            cache.num_tokens += embedded.shape[1] - (prefix if is_first else 0)
        if attention_mask is not None:  # the prefix comes before the padding, which has no positions
            mask = nn.functional.pad(attention_mask, (prefix, 0), value=1)
            options["attention_mask"] = mask
            options["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -embedded.shape[1] :]
        options.update({f"output_{name}": wanted for name, wanted in (states or {}).items()})
        with around:
            output = (self.lm.base_model if self.has_plain_head else self.lm)(inputs_embeds=embedded, **options)
        features = output.last_hidden_state if self.has_plain_head else output.logits
        features = features[:, prefix:] if is_first else features
        for name in states or {}:
            assert states is not None
            states[name] = _without_prefix(name, output[name], prefix if is_first else 0)
        if self.training and self.dropout > 0 and self.has_plain_head and self.decoder_training != "frozen":
            features = drop_features(features.transpose(0, 1), self.dropout).transpose(0, 1)
        return features

    @property
    def has_plain_head(self) -> bool:
        """Whether the logits are a product of the last hidden states and a matrix, as in most models.

        Some models scale or bound their logits, which no attribute reveals, so it is tested on two vectors.
        """
        if self._has_plain_head is None and is_exporting():
            return False  # which is right for any model
        if self._has_plain_head is None:
            with torch.inference_mode(False), torch.no_grad(), frozen(self):
                embedded = self.token_embedding.get_parameter("weight")[None, :2].clone()
                self._has_plain_head = has_plain_head(self.lm, embedded)
        return self._has_plain_head and isinstance(self.lm.get_output_embeddings(), nn.Linear)  # no adapter since

    def output_layer(self) -> tuple[Tensor, Tensor]:
        """Matrix and bias of a plain output layer, `(vocab_size, hidden_size)` and `(vocab_size,)`."""
        head = self.lm.get_output_embeddings()
        bias = getattr(head, "bias", None)
        return head.weight, head.weight.new_zeros(len(head.weight)) if bias is None else bias

    def logits(self, features: Tensor) -> Tensor:
        """Unnormalised log-probabilities of the next token; `(..., hidden_size)` to `(..., vocab_size)`."""
        return nn.functional.linear(features, *self.output_layer()) if self.has_plain_head else features

    # log p(x | z)

    def log_prob(self, inputs: dict[str, Tensor], latents: Tensor) -> Tensor:
        """`log p(x | z)` in nats per sentence, with its end, `(batch,)`; differentiable in weights and latents."""
        features, targets, positions = self._predictions(inputs, latents)
        if self.has_plain_head:
            values = chunked_log_prob(fill_rows(features), *self.output_layer(), targets, self.candidates(targets))
        else:
            values = pick_log_prob(features, targets)
        return positions.sum_tokens(values, dim=1)

    def mean_log_prob(self, inputs: dict[str, Tensor], latents: Tensor) -> Tensor:
        """`log p(x | z)` in nats, averaged over the batch, a scalar; its gradient costs less than that of each."""
        features, targets, positions = self._predictions(inputs, latents)
        if self.has_plain_head:
            layer, candidates = self.output_layer(), self.candidates(targets)
            total = chunked_sum_log_prob(fill_rows(features), *layer, targets, candidates, positions.counted)
        else:
            total = positions.keep_counted(pick_log_prob(features, targets)).sum()
        return total / len(latents)

    def _predictions(self, inputs: dict[str, Tensor], latents: Tensor) -> tuple[Tensor, Tensor, PredictedPositions]:
        """The features `(tokens, width)` before the predicted tokens, these tokens `(tokens,)`, and their places."""
        input_ids, positions = inputs["input_ids"], PredictedPositions(predicted_mask(inputs))
        self.require_positions(input_ids.shape[1] - 1)
        # Tokens attend only to those before them, so padding on the right needs no mask.
        hidden = self.features(self.embed(input_ids[:, :-1]), latents)
        return positions.take(hidden), positions.take(input_ids[:, 1:]), positions

    def likelihood(self, inputs: dict[str, Tensor]) -> CausalLMLikelihood:
        """`log p(x | z)` as a function of z alone, see [`CausalLMLikelihood`]."""
        return CausalLMLikelihood(self, inputs)

    # Generation

    def make_cache(self, implementation: str | None = None) -> CausalLMCache:
        """Creates an empty cache of keys and values."""
        if implementation not in (None, "dynamic"):
            raise UsageError(f"cache_implementation {implementation!r} is not supported, only 'dynamic' is: drop it")
        return CausalLMCache(DynamicCache(config=self.lm.config))

    def next_token_logits(
        self,
        input_ids: Tensor,
        latents: Tensor,
        *,
        cache: Any = None,
        attention_mask: Tensor | None = None,
        logits_to_keep: int = 0,
        states: dict[str, Any] | None = None,
    ) -> Tensor:
        """Unnormalised log-probabilities of the next token; `(batch, length)` to `(batch, length, vocab_size)`."""
        past = 0 if cache is None else cache.num_tokens
        self.require_positions(past + input_ids.shape[1])
        # Only a prompt can be padded on the left; the cache remembers whether it was.
        is_padded = attention_mask is not None and not bool(attention_mask.all()) if past == 0 else cache.is_padded
        if cache is not None:
            cache.is_padded = is_padded
        features = self.features(
            self.embed(input_ids),
            latents,
            cache=cache,
            attention_mask=attention_mask if is_padded else None,
            states=states,
        )
        return self.logits(features[:, -logits_to_keep:])

    def sentence_generator(self, choice: TokenChoice, num_sentences: int) -> SentenceGenerator:
        """Creates the fast loop of plain sampling, see [`CausalLMGenerator`]."""

        return CausalLMGenerator(self, choice)


def _attention(lm: PreTrainedModel, latent_dim: int, num_vectors: int, std: float) -> LatentAttention:
    """The attention of a language model's layers to its latent; a `UsageError` if they cannot share the vectors."""
    config, num_layers = lm.config.get_text_config(), len(list_of_layers(lm))
    if num_vectors % num_layers != 0:
        raise UsageError(
            f"num_latent_vectors must be a multiple of the {num_layers} layers that share them, got {num_vectors}"
        )
    num_heads = math.gcd(config.hidden_size, config.num_attention_heads)
    return LatentAttention(latent_dim, num_vectors, num_layers, config.hidden_size, num_heads, std)


def _without_prefix(name: str, layers: tuple[Tensor | None, ...], length: int) -> tuple[Tensor | None, ...]:
    """Hidden states or attentions of every layer, without those that the vectors of a prefix have themselves."""
    if name == "attentions":
        if not layers or layers[0] is None:
            raise UsageError(
                "only the attention of attn_implementation='eager' returns its weights: load the model with that, or "
                "leave output_attentions out"
            )
        return tuple(layer if layer is None or length == 0 else layer[:, :, length:] for layer in layers)
    return tuple(layer if layer is None or length == 0 else layer[:, length:] for layer in layers)


class CausalLMCache(TokenCache):
    """Keys and values of the tokens so far, with those of a prefix.

    Args:
        keys_and_values: An empty cache.
    """

    def __init__(self, keys_and_values: DynamicCache) -> None:
        super().__init__()
        self.keys_and_values, self.is_padded = keys_and_values, False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keeps the rows `beam_idx`, as beam search requires."""
        self.keys_and_values.reorder_cache(beam_idx)


class CausalLMLikelihood(FrozenLikelihood):
    """`log p(x | z)` of a batch of sentences as a function of z, for the inner loop of posterior sampling.

    Weights are frozen and dropout is off. Tokens are embedded once per chain. The gradient in the last hidden states
    is computed for a few hundred tokens at a time, and autograd carries it on to z, without a gradient of any weight.

    Args:
        decoder: The decoder.
        inputs: `input_ids` and `attention_mask` of shape `(batch, length)`.
    """

    def __init__(self, decoder: CausalLMDecoder, inputs: dict[str, Tensor]) -> None:
        decoder.require_positions(inputs["input_ids"].shape[1] - 1)
        self._decoder = decoder
        # Tensors made in inference mode cannot be part of a graph, hence the clones.
        with torch.inference_mode(False), torch.no_grad():
            input_ids = inputs["input_ids"].clone()
            self._positions = PredictedPositions(predicted_mask(inputs).clone())
            self._targets = self._positions.take(input_ids[:, 1:])
            candidates = decoder.candidates(self._targets)
            with frozen(decoder):
                self._embedded = decoder.embed(input_ids[:, :-1])
            self._output = None
            if decoder.has_plain_head:
                self._output = FrozenSoftmaxOutput(*decoder.output_layer(), candidates=candidates)

    @torch.no_grad()
    def _value(self, latents: Tensor) -> Tensor:
        with frozen(self._decoder):
            features = self._positions.take(self._decoder.features(self._embedded, latents))
        if self._output is None:
            return self._positions.sum_tokens(pick_log_prob(features, self._targets), dim=1)
        return self._positions.sum_tokens(self._output.log_prob(features, self._targets), dim=1)

    def _evaluate(self, latents: Tensor, with_value: bool) -> tuple[Tensor | None, Tensor]:
        with torch.inference_mode(False), torch.enable_grad(), frozen(self._decoder):
            latents = latents.detach().clone().requires_grad_()
            features = self._positions.take(self._decoder.features(self._embedded, latents))
            if not features.requires_grad:  # there is no latent
                return self._value(latents.detach()) if with_value else None, torch.zeros_like(latents)
            if self._output is None:
                values: Tensor | None = self._positions.keep_counted(pick_log_prob(features, self._targets))
                assert values is not None
                (score,) = torch.autograd.grad(values.sum(), latents)
            else:
                values, gradient = self._output.score(features.detach(), self._targets, with_value)
                (score,) = torch.autograd.grad(features, latents, self._positions.keep_counted(gradient))
        value = self._positions.sum_tokens(values.detach(), dim=1) if with_value and values is not None else None
        return value, score


State = tuple[CausalLMCache, Tensor]


class CausalLMGenerator(SentenceGenerator):
    """Generates sentences from latents token by token, with a cache of keys and values.

    Args:
        decoder: The decoder.
        choice: How tokens are chosen.

    Raises:
        UsageError: If a weight of the decoder is nan, or it has too few positions.
    """

    @torch.no_grad()
    def __init__(self, decoder: CausalLMDecoder, choice: TokenChoice) -> None:
        super().__init__(decoder, choice, decoder.vocab_size)
        decoder.require_positions(choice.max_new_tokens)
        self._decoder = decoder
        self._output = whole_blocks(*decoder.output_layer()) if decoder.has_plain_head else None

    def generate(self, latents: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Generates one sentence per latent, as in the base class."""
        with frozen(self._decoder):
            return super().generate(latents, generator)

    def begin(self, latents: Tensor) -> State:
        """Returns an empty cache and the latents."""
        return self._decoder.make_cache(), latents

    def keep(self, state: State, rows: Tensor) -> State:
        """Returns the state of the given rows only."""
        cache, latents = state
        cache.reorder_cache(rows)
        return cache, latents[rows]

    def advance(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Returns the last hidden state and the whole state after `tokens` of shape `(rows,)`."""
        cache, latents = state
        return self._decoder.features(self._decoder.embed(tokens[:, None]), latents, cache=cache)[:, -1], state

    def logits(self, features: Tensor) -> Tensor:
        """`(rows, width)` to `(rows, tokens)`."""
        if self._output is not None:
            return self._output(features)
        return nn.functional.pad(features, (0, -features.shape[1] % BLOCK_TOKENS), value=float("-inf"))
