"""Sentences drawn from an LSTM decoder word by word, at the cost of little more than its matrix products."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latent_ebm_text.decoders.frozen import FrozenLinear
from latent_ebm_text.decoders.generation import CHUNK_ROWS, SentenceGenerator, WordChoice, whole_blocks
from latent_ebm_text.decoders.lstm import LSTMDecoder

#: Most numbers in the table of the words' input projections (128 MiB in float32).
MAX_TABLE_SIZE = 2**25


class LSTMGenerator(SentenceGenerator):
    """Generates sentences from latents, see [`~latent_ebm_text.decoders.generation.SentenceGenerator`].

    Args:
        decoder: The decoder.
        choice: How words are chosen.
        num_sentences: How many sentences will be generated in all, about: what is worth preparing depends on it.

    Raises:
        UsageError: If a weight of the decoder is not a number.
    """

    @torch.no_grad()
    def __init__(self, decoder: LSTMDecoder, choice: WordChoice, num_sentences: int) -> None:
        width, embedding = decoder.embedding_size, decoder.embedding.weight.detach()
        super().__init__(decoder, choice, len(embedding))
        self._decoder = decoder
        input_weight = decoder.lstm.get_parameter("weight_ih_l0")  # (4 * hidden_size, embedding_size + latent_dim)
        self._latent_weight = input_weight[:, width:]
        self._bias = decoder.lstm.get_parameter("bias_ih_l0") + decoder.lstm.get_parameter("bias_hh_l0")
        self._recurrent = FrozenLinear(decoder.lstm.get_parameter("weight_hh_l0"), None, CHUNK_ROWS)
        self._word_gates = FrozenLinear(input_weight[:, :width], None, CHUNK_ROWS)
        #: `(vocab_size, 4 * hidden_size)`, the share of every word in the gates, where it will be used often enough.
        self._table: Tensor | None = None
        often = num_sentences * choice.max_new_tokens >= 10 * len(embedding)
        if often and len(embedding) * len(input_weight) <= MAX_TABLE_SIZE:
            self._table = self._word_gates(embedding)
        output = decoder.output
        weight = embedding if output.weight is None else output.weight.detach()  # (vocab_size, rank)
        self._projection = (
            None if output.projection is None else FrozenLinear(output.projection.weight, None, CHUNK_ROWS)
        )
        self._logits = whole_blocks(weight, output.bias)

    def begin(self, latents: Tensor) -> tuple[Tensor, ...]:
        """Hidden and cell state, and the latents' share in the gates, which is the same at every step."""
        gates = nn.functional.linear(latents, self._latent_weight, self._bias)
        return self._decoder.initial_hidden(latents), self._decoder.initial_cell(latents), gates

    def keep(self, state: tuple[Tensor, ...], rows: Tensor) -> tuple[Tensor, ...]:
        """The state of some of the rows."""
        return tuple(values[rows] for values in state)

    def advance(self, words: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Hidden state `(rows, hidden_size)`, and the whole state, after `words` of shape `(rows,)`."""
        hidden, cell, latent_gates = state
        size = self._decoder.hidden_size
        gates = self._recurrent(hidden).add_(latent_gates)
        if self._table is None:
            gates += self._word_gates(self._decoder.embedding(words))
        else:
            gates += self._table.index_select(0, words)
        gates[:, : 2 * size].sigmoid_()
        gates[:, 2 * size : 3 * size].tanh_()
        gates[:, 3 * size :].sigmoid_()
        i, f, g, o = gates.chunk(4, dim=1)
        cell = (f * cell).addcmul_(i, g)
        hidden = o * cell.tanh()
        return hidden, (hidden, cell, latent_gates)

    def logits(self, features: Tensor) -> Tensor:
        """`(rows, hidden_size)` to `(rows, words)`."""
        return self._logits(features if self._projection is None else self._projection(features))
