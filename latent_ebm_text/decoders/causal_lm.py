"""Any causal language model of transformers, conditioned on a latent: a pretrained one, or one from scratch."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from latent_ebm_text.decoders.base import FrozenLikelihood, TextDecoder, WordCache, frozen, predicted_mask
from latent_ebm_text.decoders.injection import Injection, LatentInjection, added_to_inputs
from latent_ebm_text.decoders.language_model import add_adapters, has_plain_head, list_of_layers, std_of_embeddings
from latent_ebm_text.decoders.softmax import (
    FrozenSoftmaxOutput,
    chunked_log_prob,
    fill_rows,
    pick_log_prob,
)
from latent_ebm_text.dropout import drop_features, drop_words
from latent_ebm_text.errors import UsageError

if TYPE_CHECKING:
    from latent_ebm_text.decoders.generation import SentenceGenerator, WordChoice


class CausalLMDecoder(TextDecoder):
    """p(x | z) by a causal language model that sees z in front of the words, in their embeddings or in its layers.

    Args:
        lm: The language model.
        latent_dim: Size of the latent; with zero it is the language model alone.
        latent_injection: `"prefix"`, `prefix_length` vectors before the first word; `"embedding"`, a vector added to
            every word's embedding; `"layers"`, a vector for every layer, added to what the layer is given.
        prefix_length: Length of the prefix.
        latent_std: Standard deviation of these vectors at the start; by default that of the word embeddings, so that
            a pretrained model hears the latent and its words alike.
        decoder_training: What of the language model learns: `"full"`, all of it; `"lora"`, low-rank adapters beside
            its weights (extra `lora`); `"frozen"`, nothing, and it works without dropout.
        lora_rank: Rank of the adapters.
        max_sentence_length: Most words of a sentence, its end counted, for which there must be positions.
        dropout: In training, the part of the last hidden states that the output layer does not see; one mask for all
            words of a sentence, as the following.
        embedding_dropout: The part of the word embedding that the first layer does not see; like `dropout` by default.
        word_dropout: Probability that a word is absent from the input, wherever it stands in the batch.
        frequent_words: In training mode, the softmax is taken over the first so many ids, the words to be predicted
            and `drawn_words` of the others, see [`~latent_ebm_text.decoders.softmax.CandidateWords`]; zero for all.
        drawn_words: See `frequent_words`.

    Raises:
        UsageError: If the language model cannot be conditioned in this way, or has too few positions.
    """

    #: The latents and what is around them stay in float32, whatever the precision of the language model: chains need
    #: it. transformers reads this where it loads weights.
    _keep_in_fp32_modules_strict = frozenset({"prior", "encoder", "injection"})

    def __init__(
        self,
        lm: PreTrainedModel,
        latent_dim: int,
        *,
        latent_injection: Injection = "prefix",
        prefix_length: int = 4,
        latent_std: float | None = None,
        decoder_training: Literal["full", "lora", "frozen"] = "full",
        lora_rank: int = 8,
        max_sentence_length: int = 1,
        dropout: float = 0.0,
        embedding_dropout: float | None = None,
        word_dropout: float = 0.0,
        frequent_words: int = 0,
        drawn_words: int = 0,
    ) -> None:
        super().__init__()
        self.latent_injection, self.decoder_training = latent_injection, decoder_training
        self.dropout, self.word_dropout = dropout, word_dropout
        self.embedding_dropout = dropout if embedding_dropout is None else embedding_dropout
        self.frequent_words, self.drawn_words = frequent_words, drawn_words
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
        self.injection = None
        if latent_dim > 0:
            std = std_of_embeddings(lm) if latent_std is None else latent_std
            self.injection = LatentInjection(latent_dim, num_vectors, width, std)
        self._has_plain_head: bool | None = None
        self.require_positions(max_sentence_length)
        self.train()

    @property
    def all_tied_weights_keys(self) -> dict[str, str]:
        """Which weights of the language model are one; transformers asks, so as to save and load them once."""
        return {f"lm.{name}": f"lm.{source}" for name, source in self.lm.all_tied_weights_keys.items()}

    def train(self, mode: bool = True) -> CausalLMDecoder:
        """Training or evaluation mode; what does not learn has no gradients in either, a frozen model no dropout."""
        super().train(mode)
        if self.decoder_training == "frozen":
            self.lm.eval()
        if self.decoder_training != "full":
            for name, weight in self.lm.named_parameters():
                weight.requires_grad_(self.decoder_training == "lora" and ".lora_" in name)
        return self

    @property
    def word_embedding(self) -> nn.Module:
        """The layer that maps ids to vectors."""
        embedding: nn.Module = self.lm.get_input_embeddings()
        return embedding

    @property
    def latent_dtype(self) -> torch.dtype:
        """The precision of the latents: float32 also under a language model of lower precision."""
        if self.injection is not None:  # in float32 unless the whole model was cast
            return next(self.injection.parameters()).dtype
        return torch.promote_types(self.word_embedding.get_parameter("weight").dtype, torch.float32)

    def require_positions(self, num_words: int) -> None:
        """Raises a `UsageError` if the language model has too few positions for a sentence of so many words."""
        positions = getattr(self.lm.config.get_text_config(), "max_position_embeddings", None)
        if positions is not None and num_words + self.prefix_length > positions:
            prefix = f" and a prefix of {self.prefix_length}" if self.prefix_length else ""
            raise UsageError(
                f"sentences of {num_words} words{prefix} do not fit into the {positions} positions of this "
                f"{self.lm.config.model_type} decoder: make max_length (max_sentence_length of the configuration) "
                f"{positions - self.prefix_length} or less"
            )

    # -------- hidden states

    def embed(self, input_ids: Tensor) -> Tensor:
        """Word embeddings, with dropout in training; `(batch, length)` to `(batch, length, width)`."""
        words: Tensor = self.word_embedding(input_ids)
        if not self.training or self.decoder_training == "frozen":
            return words
        words = words.transpose(0, 1)
        if self.word_dropout > 0:
            words = drop_words(words, input_ids.t(), self.word_dropout, self.vocab_size)
        if self.embedding_dropout > 0:
            words = drop_features(words, self.embedding_dropout)
        return words.transpose(0, 1)

    def features(
        self,
        words: Tensor,
        latents: Tensor,
        *,
        cache: CausalLMCache | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """What the output layer sees at every word: the last hidden states, or the logits of a model whose output
        layer is more than a matrix product.

        Args:
            words: `(batch, length, width)`, embeddings of the words, after those of the cache.
            latents: `(batch, latent_dim)`.
            cache: Moved on behind the words.
            attention_mask: As in `next_word_logits`; `None` where no row is padded on the left.

        Returns:
            `(batch, length, hidden_size or vocab_size)`.
        """
        around: AbstractContextManager[None] = nullcontext()
        is_first = cache is None or cache.num_words == 0
        prefix = self.prefix_length
        if self.injection is not None and (prefix == 0 or is_first):
            vectors = self.injection(latents)  # (batch, vectors, width)
            if self.latent_injection == "layers":
                around = added_to_inputs(list_of_layers(self.lm), vectors)
            elif self.latent_injection == "embedding":
                words = words + vectors.to(words.dtype)
            else:
                words = torch.cat([vectors.to(words.dtype), words], dim=1)
        options: dict[str, Any] = {"use_cache": cache is not None}
        if cache is not None:
            options["past_key_values"] = cache.keys_and_values
            cache.num_words += words.shape[1] - (prefix if is_first else 0)
        if attention_mask is not None:  # the prefix comes before the padding, and places are counted without it
            mask = nn.functional.pad(attention_mask, (prefix, 0), value=1)
            options["attention_mask"] = mask
            options["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -words.shape[1] :]
        with around:
            if self.has_plain_head:
                features = self.lm.base_model(inputs_embeds=words, **options).last_hidden_state
            else:
                features = self.lm(inputs_embeds=words, **options).logits
        features = features[:, prefix:] if is_first else features
        if self.training and self.dropout > 0 and self.has_plain_head and self.decoder_training != "frozen":
            features = drop_features(features.transpose(0, 1), self.dropout).transpose(0, 1)
        return features

    @property
    def has_plain_head(self) -> bool:
        """Whether logits are a product of the last hidden states and a matrix, as those of most models are.

        Some scale their logits or bound them; no interface says which. Two vectors show it.
        """
        if self._has_plain_head is None:
            with torch.inference_mode(False), torch.no_grad(), frozen(self):
                words = self.word_embedding.get_parameter("weight")[None, :2].clone()
                self._has_plain_head = has_plain_head(self.lm, words)
        return self._has_plain_head

    def output_layer(self) -> tuple[Tensor, Tensor]:
        """Matrix and bias of a plain output layer, `(vocab_size, hidden_size)` and `(vocab_size,)`."""
        head = self.lm.get_output_embeddings()
        bias = getattr(head, "bias", None)
        return head.weight, head.weight.new_zeros(len(head.weight)) if bias is None else bias

    def logits(self, features: Tensor) -> Tensor:
        """Unnormalised log-probabilities of the next word; `(..., hidden_size)` to `(..., vocab_size)`."""
        return nn.functional.linear(features, *self.output_layer()) if self.has_plain_head else features

    # -------- log p(x | z)

    def log_prob(self, inputs: dict[str, Tensor], latents: Tensor) -> Tensor:
        """`log p(x | z)` in nats per sentence, the end counted; `(batch,)`, differentiable in weights and latents."""
        input_ids, places = inputs["input_ids"], PredictedPlaces(predicted_mask(inputs))
        self.require_positions(input_ids.shape[1] - 1)
        # Words see only those before them: padding on the right needs no mask.
        features = places.take(
            self.features(self.embed(input_ids[:, :-1]), latents)
        )  # (predicted tokens, hidden_size)
        targets = places.take(input_ids[:, 1:])
        if self.has_plain_head:
            weight, bias = self.output_layer()
            values = chunked_log_prob(fill_rows(features), weight, bias, targets, self.candidates(targets))
        else:
            values = pick_log_prob(features, targets)
        return places.sum_words(values)

    def likelihood(self, inputs: dict[str, Tensor]) -> CausalLMLikelihood:
        """`log p(x | z)` as a function of z alone, see [`CausalLMLikelihood`]."""
        return CausalLMLikelihood(self, inputs)

    # -------- generation

    def make_cache(self, implementation: str | None = None) -> CausalLMCache:
        """Keys and values of no words."""
        if implementation not in (None, "dynamic"):
            raise UsageError(f"cache_implementation {implementation!r} is not supported, only 'dynamic' is: drop it")
        return CausalLMCache(DynamicCache(config=self.lm.config))

    def next_word_logits(
        self,
        input_ids: Tensor,
        latents: Tensor,
        *,
        cache: Any = None,
        attention_mask: Tensor | None = None,
        logits_to_keep: int = 0,
    ) -> Tensor:
        """Unnormalised log-probabilities of the next word; `(batch, length)` to `(batch, length, vocab_size)`."""
        past = 0 if cache is None else cache.num_words
        self.require_positions(past + input_ids.shape[1])
        # Only the words of a prompt can be padded on the left: a cache that holds words knows.
        is_padded = attention_mask is not None and not bool(attention_mask.all()) if past == 0 else cache.is_padded
        if cache is not None:
            cache.is_padded = is_padded
        features = self.features(
            self.embed(input_ids), latents, cache=cache, attention_mask=attention_mask if is_padded else None
        )
        return self.logits(features[:, -logits_to_keep:])

    def sentence_generator(self, choice: WordChoice, num_sentences: int) -> SentenceGenerator:
        """The loop of plain sampling, see [`~latent_ebm_text.decoders.causal_lm_generation.CausalLMGenerator`]."""
        from latent_ebm_text.decoders.causal_lm_generation import CausalLMGenerator

        return CausalLMGenerator(self, choice)


class CausalLMCache(WordCache):
    """Keys and values of the words so far, those of a prefix included.

    Args:
        keys_and_values: Of no words.
    """

    def __init__(self, keys_and_values: DynamicCache) -> None:
        super().__init__()
        self.keys_and_values, self.is_padded = keys_and_values, False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keeps the rows `beam_idx`, as beam search asks."""
        self.keys_and_values.reorder_cache(beam_idx)


class CausalLMLikelihood(FrozenLikelihood):
    """`log p(x | z)` of a batch of sentences as a function of z, for the inner loop of posterior sampling.

    Weights are frozen and dropout is off. Words are embedded once per chain; the gradient in the last hidden states is
    formed a few hundred words at a time, and autograd carries it from there to z, without a gradient of any weight.

    Args:
        decoder: The decoder.
        inputs: `input_ids` and `attention_mask` of shape `(batch, length)`.
    """

    def __init__(self, decoder: CausalLMDecoder, inputs: dict[str, Tensor]) -> None:
        decoder.require_positions(inputs["input_ids"].shape[1] - 1)
        self._decoder = decoder
        # Tensors of inference mode could not be part of a graph.
        with torch.inference_mode(False), torch.no_grad():
            input_ids, self._places = inputs["input_ids"].clone(), PredictedPlaces(predicted_mask(inputs).clone())
            self._targets = self._places.take(input_ids[:, 1:])
            candidates = decoder.candidates(self._targets)
            with frozen(decoder):
                self._words = decoder.embed(input_ids[:, :-1])
            self._output = None
            if decoder.has_plain_head:
                self._output = FrozenSoftmaxOutput(*decoder.output_layer(), candidates=candidates)

    @torch.no_grad()
    def _value(self, latents: Tensor) -> Tensor:
        with frozen(self._decoder):
            features = self._places.take(self._decoder.features(self._words, latents))
        if self._output is None:
            return self._places.sum_words(pick_log_prob(features, self._targets))
        return self._places.sum_words(self._output.log_prob(features, self._targets))

    def _evaluate(self, latents: Tensor, with_value: bool) -> tuple[Tensor | None, Tensor]:
        with torch.inference_mode(False), torch.enable_grad(), frozen(self._decoder):
            latents = latents.detach().clone().requires_grad_()
            features = self._places.take(self._decoder.features(self._words, latents))
            if not features.requires_grad:  # there is no latent
                return self._value(latents.detach()) if with_value else None, torch.zeros_like(latents)
            if self._output is None:
                values: Tensor | None = pick_log_prob(features, self._targets)
                assert values is not None
                (score,) = torch.autograd.grad(values.sum(), latents)
            else:
                values, gradient = self._output.score(features.detach(), self._targets, with_value)
                (score,) = torch.autograd.grad(features, latents, gradient)
        value = self._places.sum_words(values.detach()) if with_value and values is not None else None
        return value, score


class PredictedPlaces:
    """Where the predicted words of a batch stand, as numbers found once: a step of a chain does not wait for the host.

    Args:
        predicted: `(batch, length)` booleans.
    """

    def __init__(self, predicted: Tensor) -> None:
        self._shape = predicted.shape
        self._numbers = predicted.flatten().nonzero().squeeze(1)

    def take(self, values: Tensor) -> Tensor:
        """The rows of the predicted words; `(batch, length, ...)` to `(words, ...)`."""
        return values.flatten(0, 1).index_select(0, self._numbers)

    def sum_words(self, values: Tensor) -> Tensor:
        """Sums over the predicted words of every sentence; `(words,)` to `(batch,)`."""
        per_word = values.new_zeros(self._shape.numel()).index_copy(0, self._numbers, values)
        return per_word.view(self._shape).sum(dim=1)
