"""`generate` of a text model: draws from the prior, decoded by a loop of its own or by that of transformers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import torch
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.utils import ModelOutput

from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents import Control
from latent_ebm_text.models.attributes import STRENGTH
from latent_ebm_text.models.plain_sampling import check_options, naming_saved_options, plain_options
from latent_ebm_text.models.sentences import SentenceModel
from latent_ebm_text.networks.base import TextDecoder
from latent_ebm_text.networks.generation import TokenChoice

#: Sentences that plain sampling generates at a time.
GENERATION_BATCH_SIZE = 512


class SentenceGenerationModel(SentenceModel, GenerationMixin):
    """A text model that draws sentences, with every option of `GenerationMixin.generate`."""

    # The decoder's state cannot be cropped, which rules out assisted generation; transformers then says so.
    _is_stateful = True
    decoder: TextDecoder

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
        attributes: Mapping[str, str | float] | None = None,
        strength: float | Mapping[str, float] = STRENGTH,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> Tensor | ModelOutput:
        """Draws latents from the prior and decodes them; every option of `GenerationMixin.generate` works.

        With `attributes` the latents are drawn from the prior times what the model reads from them, `p(z) p(c | z)^w`.

        Plain sampling, the default, and greedy decoding have their own loop. It is several times as fast, and needs
        the memory of a few hundred sentences however many are generated. Prompts, and options that
        [`~latent_ebm_text.models.plain_sampling.plain_options`] does not know, take the loop of transformers, which
        draws different tokens for the same seed.

        Args:
            inputs: `(batch, length)` beginnings of sentences to be continued; by default the beginning token alone.
                An end token that the tokenizer put at the end of a row is replaced by padding on the left.
            num_samples: Number of sentences, if neither `inputs` nor `latents` determine it.
            latents: `(batch, latent_dim)` to decode, in place of draws from the prior.
            attributes: What is wanted of each attribute, such as `{"sentiment": "positive", "topic": "not sports"}`,
                after [`~latent_ebm_text.models.attributes.AttributeModel.fit_attributes`].
            strength: The exponent `w`, one for all attributes or one per attribute; 1 is Bayes' rule.
            generator: Random number generator of the prior's chains and of the tokens. With it, torch's global random
                number generator keeps its state.
            **kwargs: Options of [`~transformers.GenerationMixin.generate`], such as `max_new_tokens`, `do_sample`,
                `temperature`, `top_p`, `num_beams`, `num_return_sequences`, `streamer`, `return_dict_in_generate`.

        Returns:
            Token ids of shape `(batch, length)`. With `return_dict_in_generate` the usual output of `generate`, which
            then also holds `latents` of shape `(batch, latent_dim)` and their `energies` of shape `(batch,)` in nats
            (one row per latent, not per returned sequence).

        Raises:
            UsageError: If the numbers of samples, latents and inputs contradict each other, latents are not finite
                or of the wrong shape, an attribute is not known, or a seed is given in place of a generator.
        """
        if attributes is not None and latents is not None:
            raise UsageError("generate() draws latents with these attributes: leave out latents, or attributes")
        if "seed" in kwargs:
            raise UsageError("generate() takes a generator in place of a seed: torch.Generator().manual_seed(seed)")
        controls = [] if attributes is None else self.controls(attributes, strength)
        check_options(
            {**self.generation_config.to_dict(), **kwargs, "num_samples": num_samples}, self.decoder.vocab_size
        )
        if self.generation_config.stop_strings is not None and kwargs.get("tokenizer") is None:
            raise UsageError(
                "stop_strings of the model's generation configuration need a tokenizer: give tokenizer=..."
            )
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
        if not isinstance(batch, Integral) or batch < 1:
            what = "num_samples" if num_samples is not None else f"the number of {next(iter(sizes))}"
            raise UsageError(f"{what} must be a positive integer, got {batch!r}")
        if kwargs.get("inputs_embeds") is not None:
            raise UsageError("generate() continues token ids: give input_ids in place of inputs_embeds")
        if kwargs.get("stop_strings") is not None and _is_word_level(kwargs.get("tokenizer")):
            raise UsageError(
                "stop_strings needs a tokenizer that can spell any string, and this one knows whole words only: give "
                "the ids of the words that shall end a sentence as eos_token_id"
            )
        max_length = kwargs.get("max_length")
        if max_length is not None and kwargs.get("max_new_tokens") is None:
            length = 1 if inputs is None else inputs.shape[1]
            if max_length <= length:
                what = "beginning token" if inputs is None else f"prompt of {length} tokens"
                raise UsageError(f"max_length={max_length} leaves no room after the {what}: give more than {length}")
            # The model's own max_new_tokens would take precedence over max_length.
            kwargs["max_new_tokens"] = kwargs.pop("max_length") - length
        # The plain loop works on frozen weights, without dropout and autocast.
        if inputs is None and not self.training and not torch.is_autocast_enabled(self.device.type):
            options = plain_options({**self.generation_config.to_dict(), **kwargs})
            if options is not None:
                return self._generate_plainly(batch, latents, controls, generator, **options)
        if latents is None:
            latents = self._draw_latents(batch, controls, generator)
        if inputs is None:
            inputs = torch.full((batch, 1), self.config.bos_token_id, device=self.device)
        else:
            inputs, kwargs["attention_mask"] = self._open_prompt(inputs, kwargs.get("attention_mask"))
        saved = naming_saved_options(self.generation_config.to_dict(), kwargs)
        with saved, _global_generator(generator, self.device):
            output = super().generate(inputs.to(self.device), latents=latents, **kwargs)
        if isinstance(output, ModelOutput):
            output["latents"], output["energies"] = latents, self.prior.energy(latents)
        return output

    def _generate_plainly(
        self,
        num_latents: int,
        latents: Tensor | None,
        controls: Sequence[Control],
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
            part = self._draw_latents(size, controls, generator) if latents is None else latents[first:][:size]
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

    def _draw_latents(self, num: int, controls: Sequence[Control], generator: torch.Generator | None) -> Tensor:
        if controls:
            return self.sample_controlled(controls, num, generator=generator).latents
        return self.sample_prior(num, generator=generator).latents

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


def _is_word_level(tokenizer: Any) -> bool:
    return isinstance(getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None), WordLevel)


@contextmanager
def _global_generator(generator: torch.Generator | None, device: torch.device) -> Iterator[None]:
    """Seeds torch's global random number generator, which `GenerationMixin` draws tokens from, and restores it."""
    if generator is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator, device=generator.device)))
        yield
