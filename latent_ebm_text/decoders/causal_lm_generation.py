"""Sentences drawn from a causal language model word by word, with its cache of keys and values."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latent_ebm_text.decoders.base import frozen
from latent_ebm_text.decoders.causal_lm import CausalLMCache, CausalLMDecoder
from latent_ebm_text.decoders.generation import BLOCK_WORDS, SentenceGenerator, WordChoice, whole_blocks

State = tuple[CausalLMCache, Tensor]


class CausalLMGenerator(SentenceGenerator):
    """Generates sentences from latents, see [`~latent_ebm_text.decoders.generation.SentenceGenerator`].

    Args:
        decoder: The decoder.
        choice: How words are chosen.

    Raises:
        UsageError: If a weight of the decoder is not a number, or it has too few positions.
    """

    @torch.no_grad()
    def __init__(self, decoder: CausalLMDecoder, choice: WordChoice) -> None:
        super().__init__(decoder, choice, decoder.vocab_size)
        decoder.require_positions(choice.max_new_tokens)
        self._decoder = decoder
        self._output = whole_blocks(*decoder.output_layer()) if decoder.has_plain_head else None

    def generate(self, latents: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One sentence for each of `latents`, as in the base class."""
        with frozen(self._decoder):
            return super().generate(latents, generator)

    def begin(self, latents: Tensor) -> State:
        """An empty cache, and the latents."""
        return self._decoder.make_cache(), latents

    def keep(self, state: State, rows: Tensor) -> State:
        """The state of some of the rows."""
        cache, latents = state
        cache.reorder_cache(rows)
        return cache, latents[rows]

    def advance(self, words: Tensor, state: State) -> tuple[Tensor, State]:
        """The last hidden state, and the whole state, after `words` of shape `(rows,)`."""
        cache, latents = state
        return self._decoder.features(self._decoder.embed(words[:, None]), latents, cache=cache)[:, -1], state

    def logits(self, features: Tensor) -> Tensor:
        """`(rows, width)` to `(rows, words)`."""
        if self._output is not None:
            return self._output(features)
        return nn.functional.pad(features, (0, -features.shape[1] % BLOCK_WORDS), value=float("-inf"))
