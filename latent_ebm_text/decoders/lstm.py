"""A one-layer LSTM language model conditioned on a latent, the text decoder of the paper (section 4.2)."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from latent_ebm_text.decoders.base import FrozenLikelihood, TextDecoder, WordCache, predicted_mask
from latent_ebm_text.decoders.frozen import FrozenLinear
from latent_ebm_text.decoders.softmax import SoftmaxOutput
from latent_ebm_text.dropout import drop_features, drop_words
from latent_ebm_text.errors import UsageError

if TYPE_CHECKING:
    from latent_ebm_text.decoders.generation import SentenceGenerator, WordChoice

_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
_tanh_backward = torch.ops.aten.tanh_backward.grad_input


class LSTMDecoder(TextDecoder):
    """p(x | z): z sets the first hidden and cell state and joins the input of every step.

    Args:
        vocab_size: Number of words.
        latent_dim: Size of the latent.
        embedding_size: Width of the word embedding.
        hidden_size: Width of the LSTM.
        output_rank: Rank of the output layer; `None` for full rank. A tied layer has the rank `embedding_size`.
        tie_word_embeddings: Whether the output layer uses the word embedding as its matrix.
        dropout: In training, the part of the hidden states that the output layer does not see; one mask for all words
            of a sentence, as the following.
        embedding_dropout: The part of the word embedding that the LSTM does not see; like `dropout` by default.
        word_dropout: Probability that a word is absent from the input, wherever it stands in the batch.
        frequent_words: In training mode, the softmax is taken over the first so many ids, the words to be predicted
            and `drawn_words` of the others, drawn from torch's global stream, see
            [`~latent_ebm_text.decoders.softmax.CandidateWords`]; zero for all words.
        drawn_words: See `frequent_words`.
    """

    def __init__(
        self,
        vocab_size: int,
        latent_dim: int,
        *,
        embedding_size: int,
        hidden_size: int,
        output_rank: int | None = None,
        tie_word_embeddings: bool = False,
        dropout: float = 0.0,
        embedding_dropout: float | None = None,
        word_dropout: float = 0.0,
        frequent_words: int = 0,
        drawn_words: int = 0,
    ) -> None:
        super().__init__()
        self.latent_dim, self.embedding_size, self.hidden_size = latent_dim, embedding_size, hidden_size
        self.dropout, self.word_dropout = dropout, word_dropout
        self.embedding_dropout = dropout if embedding_dropout is None else embedding_dropout
        self.frequent_words, self.drawn_words = frequent_words, drawn_words
        self.embedding = nn.Embedding(vocab_size, embedding_size)
        with warnings.catch_warnings():  # without a latent these layers are biases, whose empty weights torch mentions
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            self.initial_hidden = nn.Linear(latent_dim, hidden_size)
            self.initial_cell = nn.Linear(latent_dim, hidden_size)
        self.lstm = nn.LSTM(embedding_size + latent_dim, hidden_size)
        rank = embedding_size if tie_word_embeddings else output_rank
        self.output = SoftmaxOutput(hidden_size, vocab_size, rank, tied=tie_word_embeddings)

    @property
    def word_embedding(self) -> nn.Module:
        """The layer that maps ids to vectors."""
        return self.embedding

    def initial_state(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden and cell state before the first word; `(batch, latent_dim)` to twice `(1, batch, hidden_size)`."""
        return self.initial_hidden(latents).unsqueeze(0), self.initial_cell(latents).unsqueeze(0)

    def hidden_states(
        self,
        input_ids: Tensor,
        latents: Tensor,
        state: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Runs the LSTM over `input_ids` of shape `(batch, length)`.

        Args:
            input_ids: Words.
            latents: `(batch, latent_dim)`.
            state: Hidden and cell state to go on from; set by the latents if `None`.
            attention_mask: Needed only where rows are padded on the left (prompts of several lengths): a padded
                place then leaves the state as it was.

        Returns:
            Hidden states of shape `(length, batch, hidden_size)`, time first, and the state after the last word.
        """
        words = self._embed(input_ids.t())
        repeated = latents.to(words.dtype).expand(len(words), *latents.shape)
        state = self.initial_state(latents) if state is None else state
        features = torch.cat([words, repeated], dim=-1)
        if attention_mask is None:
            hidden, state = self.lstm(features, state)
        else:
            hidden, state = self._run_left_padded(features, state, attention_mask)
        if self.training and self.dropout > 0:
            hidden = drop_features(hidden, self.dropout)
        return hidden, state

    def _embed(self, input_ids: Tensor) -> Tensor:
        """Word embeddings, with dropout in training; `(length, batch)` to `(length, batch, embedding_size)`."""
        words: Tensor = self.embedding(input_ids)
        if not self.training:
            return words
        if self.word_dropout > 0:
            words = drop_words(words, input_ids, self.word_dropout, self.embedding.num_embeddings)
        return drop_features(words, self.embedding_dropout) if self.embedding_dropout > 0 else words

    def _run_left_padded(
        self, features: Tensor, state: tuple[Tensor, Tensor], attention_mask: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Moves the padding to the right, where a packed sequence leaves it out, and back again."""
        lengths = attention_mask.sum(dim=1).clamp(min=1)
        total = len(features)
        places = torch.arange(total, device=features.device)[:, None]  # (length, 1)
        to_front = ((places + (total - lengths)) % total)[..., None]  # (length, batch, 1)
        rolled = features.gather(0, to_front.expand_as(features))
        packed = nn.utils.rnn.pack_padded_sequence(rolled, lengths.cpu(), enforce_sorted=False)
        packed, state = self.lstm(packed, state)
        hidden, _ = nn.utils.rnn.pad_packed_sequence(packed, total_length=total)
        return torch.zeros_like(hidden).scatter(0, to_front.expand_as(hidden), hidden), state

    def logits(self, hidden: Tensor) -> Tensor:
        """Unnormalised log-probabilities of the next word; `(..., hidden_size)` to `(..., vocab_size)`."""
        return self.output.logits(hidden, self._tied_weight())

    def _tied_weight(self) -> Tensor | None:
        return self.embedding.weight if self.output.weight is None else None

    def log_prob(self, inputs: dict[str, Tensor], latents: Tensor) -> Tensor:
        """`log p(x | z)` in nats per sentence, the end counted; `(batch,)`, differentiable in weights and latents."""
        input_ids, predicted = inputs["input_ids"], predicted_mask(inputs)
        hidden, _ = self.hidden_states(input_ids[:, :-1], latents)
        rows = predicted.t()  # (length - 1, batch)
        targets = input_ids[:, 1:].t()[rows]
        values = self.output.log_prob(hidden[rows], targets, self._tied_weight(), self.candidates(targets))
        per_token = torch.zeros(rows.shape, dtype=values.dtype, device=values.device).masked_scatter(rows, values)
        return per_token.sum(dim=0)

    def likelihood(self, inputs: dict[str, Tensor]) -> LSTMLikelihood:
        """`log p(x | z)` as a function of z alone, see [`LSTMLikelihood`]."""
        return LSTMLikelihood(self, inputs)

    def make_cache(self, implementation: str | None = None) -> LSTMCache:
        """The recurrent state before the first word."""
        if implementation is not None:
            raise UsageError("cache_implementation is for key-value caches; a recurrent decoder has none: drop it")
        return LSTMCache()

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
        state = None if cache is None else cache.state
        # Only a prompt can hold padding on the left; the words after it are fed one at a time.
        mask = attention_mask if state is None and attention_mask is not None and input_ids.shape[1] > 1 else None
        if mask is not None and bool(mask[:, 0].all()):
            mask = None
        hidden, state = self.hidden_states(input_ids, latents, state, mask)
        if cache is not None:
            cache.state, cache.num_words = state, cache.num_words + input_ids.shape[1]
        return self.logits(hidden[-logits_to_keep:].transpose(0, 1))

    def sentence_generator(self, choice: WordChoice, num_sentences: int) -> SentenceGenerator:
        """The fast loop of plain sampling, see [`~latent_ebm_text.decoders.lstm_generation.LSTMGenerator`]."""
        from latent_ebm_text.decoders.lstm_generation import LSTMGenerator

        return LSTMGenerator(self, choice, num_sentences)


class LSTMCache(WordCache):
    """The recurrent state between two words of generation."""

    def __init__(self) -> None:
        super().__init__()
        self.state: tuple[Tensor, Tensor] | None = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keeps the rows `beam_idx`, as beam search asks."""
        if self.state is not None:
            hidden, cell = self.state
            self.state = hidden.index_select(1, beam_idx), cell.index_select(1, beam_idx)


class LSTMLikelihood(FrozenLikelihood):
    """`log p(x | z)` of a batch of sentences as a function of z, for the inner loop of posterior sampling.

    Weights are frozen and dropout is off. The forward and backward passes through time are written out by hand: the
    projections of the words are computed and the weights packed once per chain, and no gradient of a weight is formed.

    Args:
        decoder: The decoder.
        inputs: `input_ids` and `attention_mask` of shape `(batch, length)`.
    """

    @torch.no_grad()
    def __init__(self, decoder: LSTMDecoder, inputs: dict[str, Tensor]) -> None:
        self.decoder = decoder
        width = decoder.embedding_size
        input_weight = decoder.lstm.get_parameter("weight_ih_l0")  # (4 * hidden_size, embedding_size + latent_dim)
        bias = decoder.lstm.get_parameter("bias_ih_l0") + decoder.lstm.get_parameter("bias_hh_l0")
        input_ids, rows = inputs["input_ids"], predicted_mask(inputs).t()
        words = decoder.embedding(input_ids[:, :-1].t())  # (time, batch, embedding_size)
        #: Share of the gates' pre-activations that does not depend on z; (time, batch, 4 * hidden_size).
        self._word_gates = nn.functional.linear(words, input_weight[:, :width], bias)
        self._latent_weight = input_weight[:, width:]  # (4 * hidden_size, latent_dim)
        recurrent_weight = decoder.lstm.get_parameter("weight_hh_l0")  # (4 * hidden_size, hidden_size)
        self._recurrent = FrozenLinear(recurrent_weight, None, len(input_ids))
        self._recurrent_backward = FrozenLinear(recurrent_weight.t(), None, len(input_ids))
        self._rows = rows.reshape(-1).nonzero().squeeze(1)  # predicted places of the flattened (time, batch)
        self._targets = input_ids[:, 1:].t().reshape(-1)[self._rows]
        self._output = decoder.output.frozen(decoder._tied_weight(), decoder.candidates(self._targets))
        time, batch, size = *rows.shape, decoder.hidden_size
        self._gates = torch.empty_like(self._word_gates)
        self._hidden = words.new_empty(time + 1, batch, size)
        self._cell = words.new_empty(time + 1, batch, size)
        self._tanh_cell = words.new_empty(time, batch, size)
        self._grad_hidden = words.new_zeros(time, batch, size)

    @torch.no_grad()
    def _value(self, latents: Tensor) -> Tensor:
        self._forward(latents)
        return self._sum_tokens(self._output.log_prob(self._hidden[1:].flatten(0, 1)[self._rows], self._targets))

    def _sum_tokens(self, values: Tensor) -> Tensor:
        """`(predicted tokens,)` to `(batch,)`."""
        per_token = values.new_zeros(self._grad_hidden.shape[:2])
        return per_token.view(-1).index_copy_(0, self._rows, values).view_as(per_token).sum(dim=0)

    @torch.no_grad()
    def _evaluate(self, latents: Tensor, with_value: bool) -> tuple[Tensor | None, Tensor]:
        self._forward(latents)
        hidden = self._hidden[1:].flatten(0, 1)[self._rows]  # (predicted tokens, hidden_size)
        values, grad = self._output.score(hidden, self._targets, with_value)
        self._grad_hidden.flatten(0, 1).index_copy_(0, self._rows, grad)
        value = None if values is None else self._sum_tokens(values)
        return value, self._backward()

    def _forward(self, latents: Tensor) -> None:
        """Fills the gates (i, f, g, o after their non-linearities), cells and hidden states of every step."""
        size, decoder = self.decoder.hidden_size, self.decoder
        gates, hidden, cell = self._gates, self._hidden, self._cell
        torch.add(self._word_gates, latents @ self._latent_weight.t(), out=gates)
        hidden[0] = decoder.initial_hidden(latents)
        cell[0] = decoder.initial_cell(latents)
        for t in range(len(gates)):
            gate = gates[t].add_(self._recurrent(hidden[t]))
            gate[:, : 2 * size].sigmoid_()
            gate[:, 2 * size : 3 * size].tanh_()
            gate[:, 3 * size :].sigmoid_()
            i, f, g, o = gate.chunk(4, dim=1)
            torch.mul(f, cell[t], out=cell[t + 1]).addcmul_(i, g)
            torch.tanh(cell[t + 1], out=self._tanh_cell[t])
            torch.mul(o, self._tanh_cell[t], out=hidden[t + 1])

    def _backward(self) -> Tensor:
        """The gradient in z from `self._grad_hidden`, which holds the output layer's gradient of every step."""
        decoder, gates, cell = self.decoder, self._gates, self._cell
        batch, size = cell.shape[1:]
        grad_gate, total = torch.empty_like(gates[0]), torch.zeros_like(gates[0])
        grad_i, grad_f, grad_g, grad_o = grad_gate.chunk(4, dim=1)
        carried = cell.new_zeros(batch, size)  # gradient in the hidden state, from the next step
        grad_cell, scratch = cell.new_zeros(batch, size), cell.new_empty(batch, size)
        for t in range(len(gates) - 1, -1, -1):
            i, f, g, o = gates[t].chunk(4, dim=1)
            grad_hidden = carried.add_(self._grad_hidden[t])
            _sigmoid_backward(torch.mul(grad_hidden, self._tanh_cell[t], out=scratch), o, grad_input=grad_o)
            _tanh_backward(torch.mul(grad_hidden, o, out=scratch), self._tanh_cell[t], grad_input=scratch)
            grad_cell.add_(scratch)
            _sigmoid_backward(torch.mul(grad_cell, g, out=scratch), i, grad_input=grad_i)
            _sigmoid_backward(torch.mul(grad_cell, cell[t], out=scratch), f, grad_input=grad_f)
            _tanh_backward(torch.mul(grad_cell, i, out=scratch), g, grad_input=grad_g)
            grad_cell.mul_(f)
            total.add_(grad_gate)
            carried = self._recurrent_backward(grad_gate)
        score = total @ self._latent_weight
        score.addmm_(carried, decoder.initial_hidden.weight)
        return score.addmm_(grad_cell, decoder.initial_cell.weight)
