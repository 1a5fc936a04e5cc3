"""Text from a latent with an energy-based prior, as a Hugging Face model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel, PreTrainedTokenizerBase
from transformers import initialization as init
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.utils import ModelOutput

from latent_ebm_text.errors import UsageError
from latent_ebm_text.models.configuration import LatentEBMTextConfig
from latent_ebm_text.models.plain_sampling import plain_options
from latent_ebm_text.models.sentences import SentenceModel
from latent_ebm_text.models.text_decoders import build_text_decoder
from latent_ebm_text.networks.base import TextDecoder, TokenCache
from latent_ebm_text.networks.generation import TokenChoice
from latent_ebm_text.networks.injection import LatentInjection
from latent_ebm_text.networks.lstm import LSTMEncoder
from latent_ebm_text.networks.softmax import SoftmaxOutput

#: Sentences that plain sampling generates at a time.
GENERATION_BATCH_SIZE = 512


@dataclass
class LatentEBMTextOutput(ModelOutput):
    """Output of [`LatentEBMForTextGeneration`].

    Args:
        loss: Scalar, with `labels`: `reconstruction_loss + prior_loss + penalty`, and what trains an encoder where
            there is one, in nats per sentence.
        reconstruction_loss: Scalar, `-log p(x | z+)`.
        prior_loss: Scalar, `E(z+) - E(z-)`, the posterior-prior energy gap; `KL(q || N(0, I))` for a VAE.
        penalty: Scalar, the weighted squared tilt.
        logits: `(batch, length, vocab_size)`, without `labels`: logits of the next token at every position.
        past_key_values: The decoder's state after the tokens so far, for generation.
        latents: `(batch, latent_dim)`, the latents that were used.
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


class LatentEBMForTextGeneration(SentenceModel, GenerationMixin):
    """A text decoder p(x | z) under an energy-based prior p(z).

    ```python
    >>> from latent_ebm_text import LatentEBMForTextGeneration, LatentEBMTextConfig

    >>> model = LatentEBMForTextGeneration(LatentEBMTextConfig(vocab_size=50, hidden_size=16, embedding_size=8))
    >>> model.generate(num_samples=4, max_new_tokens=5).shape[0]
    4

    ```
    """

    config_class = LatentEBMTextConfig
    main_input_name = "input_ids"
    # The decoder's state cannot be cropped, which rules out assisted generation; transformers then says so.
    _is_stateful = True
    decoder: TextDecoder

    def __init__(self, config: LatentEBMTextConfig, language_model: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.prior = self._build_prior()
        self.decoder = build_text_decoder(config, language_model)
        self.encoder = None
        if config.encoder_hidden_size is not None:
            self.encoder = LSTMEncoder(
                config.vocab_size,
                config.latent_dim,
                embedding_size=config.embedding_size,
                hidden_size=config.encoder_hidden_size,
                embedding_dropout=config.dropout if config.embedding_dropout is None else config.embedding_dropout,
            )
        self.post_init()
        # The model is defined by ancestral sampling at temperature 1; other decodings are the caller's choice.
        self.generation_config.update(do_sample=True, top_k=0, max_new_tokens=config.max_sequence_length)

    @classmethod
    def from_decoder_pretrained(
        cls,
        name_or_path: str | PathLike[str],
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        revision: str | None = None,
        gguf_file: str | None = None,
        dtype: torch.dtype | str = "auto",
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
            dtype: Precision of the language model, by default that of its weights. Prior and latents are in float32.
            **settings: Settings of [`LatentEBMTextConfig`], such as `latent_dim`, `latent_injection` or
                `decoder_training`.

        Raises:
            UsageError: If there is no such model, it cannot be a decoder, or a setting cannot be right.
        """
        from latent_ebm_text.models import pretrained

        where = {key: value for key, value in (("revision", revision), ("gguf_file", gguf_file)) if value is not None}
        language_model = pretrained.load_language_model(name_or_path, dtype=dtype, **where)
        if tokenizer is None:
            tokenizer = pretrained.find_decoder_tokenizer(name_or_path, **where)
        settings = {**pretrained.decoder_settings(language_model, tokenizer), **settings}
        return cls(LatentEBMTextConfig(**settings), language_model=language_model).eval()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, LatentInjection):
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

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.decoder.token_embedding

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        latents: Tensor | None = None,
        prior_latents: Tensor | None = None,
        likelihood_weight: float | None = None,
        past_key_values: TokenCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        generator: torch.Generator | None = None,
        return_dict: bool | None = None,
    ) -> LatentEBMTextOutput | tuple[Any, ...]:
        """The learning objective with `labels`, and the logits of the next tokens without them.

        Args:
            input_ids: `(batch, length)`, from the beginning-of-sentence token on.
            attention_mask: `(batch, length)`, 0 at padding, on whichever side.
            labels: `(batch, length)`, equal to `input_ids` where a token counts and -100 where it does not. They are
                shifted inside, as everywhere in transformers.
            latents: `(batch, latent_dim)`. The default is posterior draws with labels, and prior draws without.
            prior_latents: `(samples, latent_dim)`, the prior draws of the objective; drawn if not given.
            likelihood_weight: `w` in place of the model's own, for the draws that are made here.
            past_key_values: The decoder's state after the previous tokens, in generation.
            use_cache: Whether to return that state.
            logits_to_keep: Number of last positions whose logits are returned; 0 for all.
            generator: Random number generator of the latents that are drawn here.
            return_dict: Whether to return a [`LatentEBMTextOutput`] (the default) or a tuple.

        Raises:
            UsageError: If latents have the wrong shape or are not finite; or if there are neither labels nor latents
                in training, since the logits of prior draws would train another model.
        """
        if labels is None and latents is None and self.training and torch.is_grad_enabled():
            raise UsageError(
                "in training, forward needs labels, from which it computes the whole objective, or the latents of "
                "the sentences. transformers.Trainer takes labels away under label_smoothing_factor and "
                "compute_loss_func: leave these out"
            )
        if latents is not None and past_key_values is None:  # later steps of a generation bring the same latents
            latents = self.check_latents(latents, len(input_ids))
        if labels is not None:
            output = self._loss(
                input_ids, attention_mask, labels, latents, prior_latents, likelihood_weight, generator
            )
        else:
            output = self._logits(
                input_ids, attention_mask, latents, past_key_values, use_cache, logits_to_keep, generator
            )
        return output if return_dict is not False else output.to_tuple()

    def _loss(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor,
        latents: Tensor | None,
        prior_latents: Tensor | None,
        likelihood_weight: float | None,
        generator: torch.Generator | None,
    ) -> LatentEBMTextOutput:
        counted = labels != -100
        if attention_mask is None:  # everything after the last token that counts is padding
            attention_mask = counted.flip(1).cumsum(dim=1).flip(1) > 0
        mask = attention_mask.bool()
        order = _real_first(mask)
        inputs = {
            "input_ids": input_ids.gather(1, order),
            "attention_mask": mask.gather(1, order),
            "counted": (counted & mask).gather(1, order),
        }
        loss = self.learning_objective(inputs, latents, prior_latents, likelihood_weight, generator)
        return LatentEBMTextOutput(**vars(loss))

    def _logits(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        latents: Tensor | None,
        cache: TokenCache | None,
        use_cache: bool | None,
        logits_to_keep: int,
        generator: torch.Generator | None,
    ) -> LatentEBMTextOutput:
        if latents is None:
            latents = self.sample_prior(len(input_ids), generator=generator).latents
        if cache is None and use_cache:
            cache = self.decoder.make_cache()
        logits = self.decoder.next_token_logits(
            input_ids, latents, cache=cache, attention_mask=attention_mask, logits_to_keep=logits_to_keep
        )
        return LatentEBMTextOutput(logits=logits, past_key_values=cache, latents=latents)

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """Gives generation the decoder's own cache in place of the one that transformers would make."""
        cache = self.decoder.make_cache(generation_config.cache_implementation)
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = cache

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        *,
        num_samples: int | None = None,
        latents: Tensor | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> Tensor | ModelOutput:
        """Draws latents from the prior and decodes them; every option of `GenerationMixin.generate` works.

        Plain sampling, the default, and greedy decoding have their own loop. It is several times as fast, and needs
        the memory of a few hundred sentences however many are generated. Prompts, and options that
        [`~latent_ebm_text.models.plain_sampling.plain_options`] does not know, take the loop of transformers, which
        draws different tokens for the same seed.

        Args:
            inputs: `(batch, length)` beginnings of sentences to be continued; by default the beginning token alone.
                An end token that the tokenizer put at the end of a row is replaced by padding on the left.
            num_samples: Number of sentences, if neither `inputs` nor `latents` determine it.
            latents: `(batch, latent_dim)` to decode, in place of draws from the prior.
            generator: Random number generator of the prior's chains and of the tokens. With it, torch's global random
                number generator keeps its state.
            **kwargs: Options of [`~transformers.GenerationMixin.generate`], such as `max_new_tokens`, `do_sample`,
                `temperature`, `top_p`, `num_beams`, `num_return_sequences`, `streamer`, `return_dict_in_generate`.

        Returns:
            Token ids of shape `(batch, length)`. With `return_dict_in_generate` the usual output of `generate`, which
            then also holds `latents` of shape `(batch, latent_dim)` and their `energies` of shape `(batch,)` in nats
            (one row per latent, not per returned sequence).

        Raises:
            UsageError: If the numbers of samples, latents and inputs contradict each other, or latents are not
                finite or of the wrong shape.
        """
        if latents is not None:
            latents = self.check_latents(latents)
        inputs = kwargs.pop("input_ids", inputs)
        if inputs is not None:
            if isinstance(inputs, Tensor) and inputs.dim() == 1:
                inputs = inputs.unsqueeze(0)
                if kwargs.get("attention_mask") is not None:
                    kwargs["attention_mask"] = kwargs["attention_mask"].reshape(1, -1)
            self._check_ids(inputs, kwargs.get("attention_mask"))
        sizes = {
            name: size
            for name, size in (
                ("num_samples", num_samples),
                ("latents", None if latents is None else len(latents)),
                ("input_ids", None if inputs is None else len(inputs)),
            )
            if size is not None
        }
        if len(set(sizes.values())) > 1:
            raise UsageError(f"generate() was given contradicting numbers of sentences: {sizes}")
        batch = next(iter(sizes.values()), 1)
        if batch < 1:
            what = "num_samples" if num_samples is not None else f"the number of {next(iter(sizes))}"
            raise UsageError(f"{what} must be a positive integer, got {batch}")
        if kwargs.get("max_length") is not None and kwargs.get("max_new_tokens") is None:
            # The model's own max_new_tokens would take precedence over max_length.
            kwargs["max_new_tokens"] = kwargs.pop("max_length") - (1 if inputs is None else inputs.shape[1])
        # The plain loop works on frozen weights, without dropout and autocast.
        if inputs is None and not self.training and not torch.is_autocast_enabled(self.device.type):
            options = plain_options({**self.generation_config.to_dict(), **kwargs})
            if options is not None:
                return self._generate_plainly(batch, latents, generator, **options)
        if latents is None:
            latents = self.sample_prior(batch, generator=generator).latents
        if inputs is None:
            inputs = torch.full((batch, 1), self.config.bos_token_id, device=self.device)
        else:
            inputs, kwargs["attention_mask"] = self._open_prompt(inputs, kwargs.get("attention_mask"))
        with _global_generator(generator, self.device):
            output = super().generate(inputs.to(self.device), latents=latents, **kwargs)
        if isinstance(output, ModelOutput):
            output["latents"], output["energies"] = latents, self.prior.energy(latents)
        return output

    def _generate_plainly(
        self,
        num_latents: int,
        latents: Tensor | None,
        generator: torch.Generator | None,
        *,
        eos_token_id: int | list[int] | None,
        num_return_sequences: int,
        return_dict_in_generate: bool,
        **choice: Any,
    ) -> Tensor | ModelOutput:
        """`generate` by the decoder's own loop, one batch at a time: first the prior draws, then their tokens."""
        ends = [] if eos_token_id is None else [eos_token_id] if isinstance(eos_token_id, int) else eos_token_id
        token_choice = TokenChoice(bos_token_id=self.config.bos_token_id, eos_token_ids=tuple(ends), **choice)
        sentences = self.decoder.sentence_generator(token_choice, num_latents * num_return_sequences)
        ids: list[Tensor] = []
        used: list[Tensor] = []
        for first in range(0, num_latents, GENERATION_BATCH_SIZE):
            size = min(GENERATION_BATCH_SIZE, num_latents - first)
            part = self.sample_prior(size, generator=generator).latents if latents is None else latents[first:][:size]
            repeated = part.repeat_interleave(num_return_sequences, dim=0)
            ids += [sentences.generate(rows, generator) for rows in repeated.split(GENERATION_BATCH_SIZE)]
            used += [part] if return_dict_in_generate else []
        longest = max(part.shape[1] for part in ids)
        sequences = torch.cat(
            [nn.functional.pad(part, (0, longest - part.shape[1]), value=token_choice.pad_token_id) for part in ids]
        )
        if not return_dict_in_generate:
            return sequences
        output = GenerateDecoderOnlyOutput(sequences=sequences)
        output["latents"] = torch.cat(used)
        output["energies"] = self.prior.energy(output["latents"])
        return output

    def _open_prompt(self, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Prompts padded on the left, without the end token that may close one.

        Their length stays the same, because callers cut prompts off by it.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(input_ids.device)
        order = mask.bool().int().argsort(dim=1, stable=True)  # padding first
        input_ids, mask = input_ids.gather(1, order), mask.gather(1, order)
        ends = torch.tensor([] if self.config.eos_token_id is None else self.config.eos_token_id)
        closed = torch.isin(input_ids[:, -1], ends.to(input_ids)) & (mask.sum(dim=1) > 1)
        opened = input_ids.roll(1, dims=1)
        opened[:, 0] = self.config.pad_token_id or 0
        input_ids = torch.where(closed[:, None], opened, input_ids)
        mask = torch.where(closed[:, None], nn.functional.pad(mask, (1, -1)), mask)
        return input_ids, mask if attention_mask is not None or bool(closed.any()) else None


def _real_first(mask: Tensor) -> Tensor:
    """For every row, the order of positions in which padding, where the mask is 0, comes last; `(batch, length)`."""
    return mask.bool().logical_not().int().argsort(dim=1, stable=True)


@contextmanager
def _global_generator(generator: torch.Generator | None, device: torch.device) -> Iterator[None]:
    """Seeds torch's global random number generator, which `GenerationMixin` draws tokens from, and restores it."""
    if generator is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator, device=generator.device)))
        yield


AutoModelForCausalLM.register(LatentEBMTextConfig, LatentEBMForTextGeneration, exist_ok=True)
