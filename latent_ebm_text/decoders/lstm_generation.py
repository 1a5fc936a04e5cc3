"""Sentences drawn from an LSTM decoder word by word, at the cost of little more than its matrix products."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latent_ebm_text.decoders.frozen import FrozenLinear
from latent_ebm_text.decoders.lstm import LSTMDecoder
from latent_ebm_text.decoders.softmax import ROW_MULTIPLE
from latent_ebm_text.errors import UsageError

#: Rows of logits computed at a time: few enough to stay in the cache between the product, the softmax and the draw.
CHUNK_ROWS = 128
#: A word is drawn in two steps, its block of so many ids first: two short sums in place of one over the vocabulary.
BLOCK_WORDS = 128
#: Most numbers in the table of the words' input projections (128 MiB in float32).
MAX_TABLE_SIZE = 2**25
#: Steps between two looks at which sentences have ended: the look costs a CPU nothing, but makes other devices wait.
STEPS_PER_LOOK = {"cpu": 1, "other": 8}


@dataclass(frozen=True)
class WordChoice:
    """How words are chosen, and where sentences end.

    Args:
        bos_token_id: The word that begins every sentence.
        eos_token_ids: Words that end one.
        pad_token_id: What stands behind the end.
        max_new_tokens: Most words of a sentence, the end counted, the beginning not.
        min_new_tokens: So many words at least come before an end.
        do_sample: Whether to draw from the softmax, or to take the most probable word.
        temperature: Divides the logits before a draw.
    """

    bos_token_id: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    max_new_tokens: int
    min_new_tokens: int = 0
    do_sample: bool = True
    temperature: float = 1.0


class LSTMGenerator:
    """Generates sentences from latents. Weights are frozen, as they are when this is made, and dropout is off.

    Args:
        decoder: The decoder.
        choice: How words are chosen.
        num_sentences: How many sentences will be generated in all, about: what is worth preparing depends on it.

    Raises:
        UsageError: If a weight of the decoder is not a number.
    """

    @torch.no_grad()
    def __init__(self, decoder: LSTMDecoder, choice: WordChoice, num_sentences: int) -> None:
        broken = [name for name, weight in decoder.named_parameters() if bool(weight.isnan().any())]
        if broken:
            raise UsageError(f"the decoder's weights hold nan, first in {broken[0]}: its training has failed")
        self._decoder, self._choice = decoder, choice
        width, embedding = decoder.embedding_size, decoder.embedding.weight.detach()
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
        # Words that do not exist, and have no probability, fill the last block.
        filling = -len(weight) % BLOCK_WORDS
        bias = nn.functional.pad(output.bias, (0, filling), value=float("-inf"))
        self._logits = FrozenLinear(nn.functional.pad(weight, (0, 0, 0, filling)), bias, CHUNK_ROWS)
        ends = [word for word in choice.eos_token_ids if 0 <= word < len(embedding)]
        self._ends = torch.tensor(ends, dtype=torch.long, device=embedding.device)

    @torch.no_grad()
    def generate(self, latents: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One sentence for each of `latents`.

        Sentences that have ended are left out of the computation. A sentence draws the same words whether others
        have ended or not.

        Args:
            latents: `(batch, latent_dim)`.
            generator: Source of the draws, on the latents' device.

        Returns:
            Ids of shape `(batch, length)`, from the beginning token to the end token, then padding; as long as the
            longest.
        """
        choice, batch, device = self._choice, len(latents), latents.device
        steps_per_look = STEPS_PER_LOOK["cpu" if device.type == "cpu" else "other"]
        rows = torch.arange(batch, device=device)  # the sentences that are computed
        words = torch.full((batch,), choice.bos_token_id, device=device)
        ended = torch.zeros(batch, dtype=torch.bool, device=device)
        hidden, cell = self._decoder.initial_hidden(latents), self._decoder.initial_cell(latents)
        latent_gates = nn.functional.linear(latents, self._latent_weight, self._bias)
        columns = [words]
        for step in range(choice.max_new_tokens):
            hidden, cell = self._next_state(words, latent_gates, hidden, cell)
            # For all sentences, though those that ended need none: so that no sentence's draws depend on the others.
            uniforms = None
            if choice.do_sample:
                uniforms = torch.rand(batch, 2, generator=generator, device=device, dtype=torch.float32)[rows]
            words = self._choose(hidden, uniforms, may_end=step >= choice.min_new_tokens)
            columns.append(torch.full_like(columns[0], choice.pad_token_id).index_copy_(0, rows, words))
            ended |= torch.isin(words, self._ends)
            if (step + 1) % steps_per_look == 0:
                going_on = len(ended) - int(ended.sum())
                if going_on == 0:
                    break
                computed = -(-going_on // ROW_MULTIPLE) * ROW_MULTIPLE
                if computed < len(rows):
                    kept = ended.int().argsort(stable=True)[:computed]  # those that go on come first
                    rows, words, ended, hidden, cell, latent_gates = (
                        values[kept] for values in (rows, words, ended, hidden, cell, latent_gates)
                    )
        return self._close(torch.stack(columns, dim=1))

    def _next_state(self, words: Tensor, latent_gates: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden and cell state after `words` of shape `(rows,)`; states of shape `(rows, hidden_size)`."""
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
        return o * cell.tanh(), cell

    def _choose(self, hidden: Tensor, uniforms: Tensor | None, *, may_end: bool) -> Tensor:
        """The next words; `(rows, hidden_size)` to `(rows,)`, with `uniforms` of shape `(rows, 2)` to draw by."""
        features = hidden if self._projection is None else self._projection(hidden)
        words = []
        for first in range(0, len(features), CHUNK_ROWS):
            logits = self._logits(features[first : first + CHUNK_ROWS]).float()
            if not may_end:
                logits.index_fill_(1, self._ends, float("-inf"))
            if uniforms is None:
                words.append(logits.argmax(dim=-1))
                continue
            if self._choice.temperature != 1:
                logits /= self._choice.temperature
            probs = torch.softmax(logits, dim=-1, out=logits)
            words.append(draw_words(probs, uniforms[first : first + CHUNK_ROWS]))
        return torch.cat(words)

    def _close(self, ids: Tensor) -> Tensor:
        """Puts padding behind the first end of every row, and cuts off what is padding in all of them."""
        is_end = torch.isin(ids[:, 1:], self._ends).int()
        after_end = is_end.cumsum(dim=1) > is_end
        ids[:, 1:].masked_fill_(after_end, self._choice.pad_token_id)
        return ids[:, : 1 + int((~after_end).sum(dim=1).max())]


def draw_words(probs: Tensor, uniforms: Tensor) -> Tensor:
    """One draw from every row of probabilities, exact up to their rounding; never a word of probability zero.

    Args:
        probs: `(rows, words)`, a multiple of [`BLOCK_WORDS`] words; need not sum to one.
        uniforms: `(rows, 2)`, uniform on [0, 1). Two of them, since one of 24 bits is coarse for rare words.

    Returns:
        Ids of shape `(rows,)`.
    """
    blocks = probs.unflatten(1, (-1, BLOCK_WORDS))
    block = _draw(blocks.sum(dim=-1), uniforms[:, :1])
    word = _draw(blocks[torch.arange(len(blocks), device=blocks.device), block], uniforms[:, 1:])
    return block * BLOCK_WORDS + word


def _draw(weights: Tensor, uniforms: Tensor) -> Tensor:
    """The first place whose running sum exceeds the uniform's share of the total; `(rows, places)` to `(rows,)`."""
    sums = weights.cumsum(dim=-1)
    total = sums[:, -1:]
    # Rounding may carry the share up to the total, which no sum exceeds.
    shares = torch.minimum(uniforms * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(sums, shares, right=True).squeeze(1)
