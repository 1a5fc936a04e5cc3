"""The text decoder of the paper (section 4.2), a one-layer LSTM; its likelihood in a chain, and its generator."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from latent_ebm_text.errors import UsageError
from latent_ebm_text.networks import placement
from latent_ebm_text.networks.base import (
    FrozenLikelihood,
    PredictedPositions,
    TextDecoder,
    TokenCache,
    predicted_mask,
)
from latent_ebm_text.networks.dropout import drop_features, drop_tokens
from latent_ebm_text.networks.frozen import FrozenLinear
from latent_ebm_text.networks.generation import CHUNK_ROWS, SentenceGenerator, TokenChoice, whole_blocks
from latent_ebm_text.networks.softmax import SoftmaxOutput

#: Maximum size of the table of input projections of all tokens (128 MiB in float32).
MAX_TABLE_SIZE = 2**25

_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
_tanh_backward = torch.ops.aten.tanh_backward.grad_input


class LSTMDecoder(TextDecoder):
    """p(x | z) by an LSTM; z sets the initial hidden and cell state and is part of the input at every step.

    Args:
        vocab_size: Number of tokens in the vocabulary.
        latent_dim: Size of the latent.
        embedding_size: Width of the token embedding.
        hidden_size: Width of the LSTM.
        output_rank: Rank of the output layer; `None` for full rank. A tied layer has the rank `embedding_size`.
        tie_word_embeddings: Whether the output layer uses the token embedding as its matrix.
        dropout: In training, dropout rate of the hidden states, with one mask for all tokens of a sentence.
        embedding_dropout: Dropout rate of the token embeddings, with one mask per sentence; by default `dropout`.
        token_dropout: Probability that a vocabulary entry is dropped from the input of a batch.
        frequent_tokens: In training mode, the softmax is taken over this many of the lowest ids, the targets, and
            `drawn_tokens` of the others, see [`~latent_ebm_text.networks.softmax.CandidateTokens`]; zero means over
            all tokens.
        drawn_tokens: Number of other tokens that are drawn by torch's global random number generator.
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
        token_dropout: float = 0.0,
        frequent_tokens: int = 0,
        drawn_tokens: int = 0,
    ) -> None:
        super().__init__()
        self.latent_dim, self.embedding_size, self.hidden_size = latent_dim, embedding_size, hidden_size
        self.dropout, self.token_dropout = dropout, token_dropout
        self.embedding_dropout = dropout if embedding_dropout is None else embedding_dropout
        self.frequent_tokens, self.drawn_tokens = frequent_tokens, drawn_tokens
        self.embedding = nn.Embedding(vocab_size, embedding_size)
        with warnings.catch_warnings():  # without a latent these layers have empty weights, of which torch warns
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            self.initial_hidden = nn.Linear(latent_dim, hidden_size)
            self.initial_cell = nn.Linear(latent_dim, hidden_size)
        self.lstm = nn.LSTM(embedding_size + latent_dim, hidden_size)
        rank = embedding_size if tie_word_embeddings else output_rank
        self.output = SoftmaxOutput(hidden_size, vocab_size, rank, tied=tie_word_embeddings)

    @property
    def token_embedding(self) -> nn.Module:
        """The embedding layer, which maps token ids to vectors."""
        return self.embedding

    def set_token_embedding(self, embedding: nn.Embedding) -> None:
        """Replaces the embedding layer."""
        self.embedding = embedding

    def initial_state(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden and cell state before the first token; `(batch, latent_dim)` to twice `(1, batch, hidden_size)`."""
        return self.initial_hidden(latents).unsqueeze(0), self.initial_cell(latents).unsqueeze(0)

    def hidden_states(
        self,
        input_ids: Tensor,
        latents: Tensor,
        state: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        states: dict[str, Any] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Runs the LSTM over `input_ids` of shape `(batch, length)`.

        Args:
            input_ids: Token ids.
            latents: `(batch, latent_dim)`.
            state: Hidden and cell state to continue from; by default set by the latents.
            attention_mask: Needed only if rows are padded on the left (prompts of different lengths); padding then
                leaves the state unchanged.
            states: That of `next_token_logits`.

        Returns:
            Hidden states of shape `(length, batch, hidden_size)`, time first, and the state after the last token.
        """
        embedded = self._embed(input_ids.t())
        batch_first = embedded.transpose(0, 1)
        if states:  # what is returned must lie on the way to the logits, for whoever wants its gradient
            embedded = batch_first.transpose(0, 1)
        repeated = latents.to(embedded.dtype).expand(len(embedded), *latents.shape)
        state = self.initial_state(latents) if state is None else state
        features = torch.cat([embedded, repeated], dim=-1)
        if attention_mask is None:
            hidden, state = self.lstm(features, state)
        else:
            hidden, state = self._run_left_padded(features, state, attention_mask)
        if self.training and self.dropout > 0:
            hidden = drop_features(hidden, self.dropout)
        if states:
            wanted = states["hidden_states"]
            both = (batch_first, hidden.transpose(0, 1))
            states["hidden_states"] = tuple(
                layer if wanted is True or number in wanted or number - 2 in wanted else None
                for number, layer in enumerate(both)
            )
        return hidden, state

    def _embed(self, input_ids: Tensor) -> Tensor:
        """Token embeddings, with dropout in training; `(length, batch)` to `(length, batch, embedding_size)`."""
        embedded: Tensor = self.embedding(input_ids)
        if not self.training:
            return embedded
        if self.token_dropout > 0:
            embedded = drop_tokens(embedded, input_ids, self.token_dropout, self.embedding.num_embeddings)
        return drop_features(embedded, self.embedding_dropout) if self.embedding_dropout > 0 else embedded

    def _run_left_padded(
        self, features: Tensor, state: tuple[Tensor, Tensor], attention_mask: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Runs the LSTM with the padding moved to the right, where a packed sequence skips it, and moves it back."""
        lengths = attention_mask.sum(dim=1).clamp(min=1)
        total = len(features)
        steps = torch.arange(total, device=features.device)[:, None]  # (length, 1)
        to_front = ((steps + (total - lengths)) % total)[..., None]  # (length, batch, 1)
        rolled = features.gather(0, to_front.expand_as(features))
        packed = nn.utils.rnn.pack_padded_sequence(rolled, lengths.cpu(), enforce_sorted=False)
        packed, state = self.lstm(packed, state)
        hidden, _ = nn.utils.rnn.pad_packed_sequence(packed, total_length=total)
        return torch.zeros_like(hidden).scatter(0, to_front.expand_as(hidden), hidden), state

    def logits(self, hidden: Tensor) -> Tensor:
        """Unnormalised log-probabilities of the next token; `(..., hidden_size)` to `(..., vocab_size)`."""
        return self.output.logits(hidden, self._tied_weight())

    def _tied_weight(self) -> Tensor | None:
        return self.embedding.weight if self.output.weight is None else None

    def log_prob(self, inputs: dict[str, Tensor], latents: Tensor) -> Tensor:
        """`log p(x | z)` in nats per sentence, with its end, `(batch,)`; differentiable in weights and latents."""
        features, targets, positions = self._predictions(inputs, latents)
        values = self.output.log_prob(features, targets, self._tied_weight(), self.candidates(targets))
        return positions.sum_tokens(values, dim=0)

    def mean_log_prob(self, inputs: dict[str, Tensor], latents: Tensor) -> Tensor:
        """`log p(x | z)` in nats, averaged over the batch, a scalar; its gradient costs less than that of each."""
        features, targets, positions = self._predictions(inputs, latents)
        candidates = self.candidates(targets)
        total = self.output.sum_log_prob(features, targets, self._tied_weight(), candidates, positions.counted)
        return total / len(latents)

    def _predictions(self, inputs: dict[str, Tensor], latents: Tensor) -> tuple[Tensor, Tensor, PredictedPositions]:
        """Hidden states `(tokens, hidden_size)` before the predicted tokens, these `(tokens,)`, and their places."""
        input_ids, positions = inputs["input_ids"], PredictedPositions(predicted_mask(inputs).t())
        hidden, _ = self.hidden_states(input_ids[:, :-1], latents)
        return positions.take(hidden), positions.take(input_ids[:, 1:].t()), positions

    def likelihood(self, inputs: dict[str, Tensor]) -> FrozenLikelihood:
        """`log p(x | z)` as a function of z alone: [`LSTMLikelihood`] on a CPU, [`FusedLSTMLikelihood`] elsewhere."""
        at_host = placement.is_at_host(inputs["input_ids"])
        return LSTMLikelihood(self, inputs) if at_host else FusedLSTMLikelihood(self, inputs)

    def make_cache(self, implementation: str | None = None) -> LSTMCache:
        """Creates a cache for the recurrent state."""
        if implementation is not None:
            raise UsageError("cache_implementation is for key-value caches; a recurrent decoder has none: drop it")
        return LSTMCache()

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
        if states is not None and "attentions" in states:
            raise UsageError("output_attentions is for transformers; a recurrent decoder has no attention: drop it")
        state = None if cache is None else cache.state
        # Only a prompt can be padded on the left; the tokens after it come one at a time.
        mask = attention_mask if state is None and attention_mask is not None and input_ids.shape[1] > 1 else None
        if mask is not None and bool(mask[:, 0].all()):
            mask = None
        hidden, state = self.hidden_states(input_ids, latents, state, mask, states)
        if cache is not None:
            cache.state, cache.num_tokens = state, cache.num_tokens + input_ids.shape[1]
        return self.logits(hidden[-logits_to_keep:].transpose(0, 1))

    def sentence_generator(self, choice: TokenChoice, num_sentences: int) -> SentenceGenerator:
        """Creates the fast loop of plain sampling, see [`LSTMGenerator`]."""

        return LSTMGenerator(self, choice, num_sentences)


class LSTMCache(TokenCache):
    """The recurrent state between two tokens of generation."""

    def __init__(self) -> None:
        super().__init__()
        self.state: tuple[Tensor, Tensor] | None = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keeps the rows `beam_idx`, as beam search requires."""
        if self.state is not None:
            hidden, cell = self.state
            self.state = hidden.index_select(1, beam_idx), cell.index_select(1, beam_idx)


class LSTMLikelihood(FrozenLikelihood):
    """`log p(x | z)` of a batch of sentences as a function of z, for the inner loop of posterior sampling.

    Weights are frozen and dropout is off. The forward and backward passes through time are written out by hand: the
    tokens are projected and the weights packed once per chain, and no gradient of a weight is formed. This suits a
    CPU; a GPU would spend more time on starting some thirty small kernels a token than on computing.

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
        embedded = decoder.embedding(input_ids[:, :-1].t())  # (time, batch, embedding_size)
        #: The part of the gates' pre-activations that does not depend on z; (time, batch, 4 * hidden_size).
        self._token_gates = nn.functional.linear(embedded, input_weight[:, :width], bias)
        self._latent_weight = input_weight[:, width:]  # (4 * hidden_size, latent_dim)
        recurrent_weight = decoder.lstm.get_parameter("weight_hh_l0")  # (4 * hidden_size, hidden_size)
        self._recurrent = FrozenLinear(recurrent_weight, None, len(input_ids))
        self._recurrent_backward = FrozenLinear(recurrent_weight.t(), None, len(input_ids))
        self._rows = rows.reshape(-1).nonzero().squeeze(1)  # predicted positions in the flattened (time, batch)
        self._targets = input_ids[:, 1:].t().reshape(-1)[self._rows]
        self._output = decoder.output.frozen(decoder._tied_weight(), decoder.candidates(self._targets))
        time, batch, size = *rows.shape, decoder.hidden_size
        self._gates = torch.empty_like(self._token_gates)
        self._hidden = embedded.new_empty(time + 1, batch, size)
        self._cell = embedded.new_empty(time + 1, batch, size)
        self._tanh_cell = embedded.new_empty(time, batch, size)
        self._grad_hidden = embedded.new_zeros(time, batch, size)

    @torch.no_grad()
    def _value(self, latents: Tensor) -> Tensor:
        self._forward(latents)
        return self._sum_tokens(self._output.log_prob(self._hidden[1:].flatten(0, 1)[self._rows], self._targets))

    def _sum_tokens(self, values: Tensor) -> Tensor:
        """Sums over the predicted tokens of every sentence; `(tokens,)` to `(batch,)`."""
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
        """Fills the gates (i, f, g, o after their activation functions), cells and hidden states of every step."""
        size, decoder = self.decoder.hidden_size, self.decoder
        gates, hidden, cell = self._gates, self._hidden, self._cell
        torch.add(self._token_gates, latents @ self._latent_weight.t(), out=gates)
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
        """Returns the gradient in z, given the output layer's gradient of every step in `self._grad_hidden`."""
        decoder, gates, cell = self.decoder, self._gates, self._cell
        batch, size = cell.shape[1:]
        grad_gate, total = torch.empty_like(gates[0]), torch.zeros_like(gates[0])
        grad_i, grad_f, grad_g, grad_o = grad_gate.chunk(4, dim=1)
        carried = cell.new_zeros(batch, size)  # gradient in the hidden state from the next step
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


class FusedLSTMLikelihood(FrozenLikelihood):
    """The same function as [`LSTMLikelihood`], by the device's own kernels for LSTMs (cuDNN), as suits a GPU.

    Weights are detached, so that autograd goes through the recurrence to z alone; the gradient in the hidden states
    comes from the output layer, in closed form.

    Args:
        decoder: The decoder.
        inputs: `input_ids` and `attention_mask` of shape `(batch, length)`.
    """

    def __init__(self, decoder: LSTMDecoder, inputs: dict[str, Tensor]) -> None:
        # Tensors made in inference mode cannot be part of a graph, hence the clones.
        with torch.inference_mode(False), torch.no_grad():
            input_ids, rows = inputs["input_ids"].clone(), predicted_mask(inputs).clone().t()
            self._embedded = decoder.embedding(input_ids[:, :-1].t())  # (time, batch, embedding_size)
            self._positions = PredictedPositions(rows)
            self._targets = self._positions.take(input_ids[:, 1:].t())
            self._output = decoder.output.frozen(decoder._tied_weight(), decoder.candidates(self._targets))
            self._weights = [weight.detach() for weight in decoder.lstm.all_weights[0]]
            self._initial = [
                [weight.detach() for weight in layer.parameters()]  # matrix and bias
                for layer in (decoder.initial_hidden, decoder.initial_cell)
            ]

    def _features(self, latents: Tensor) -> Tensor:
        """Hidden states before the predicted tokens, `(predicted tokens, hidden_size)`."""
        state = [nn.functional.linear(latents, *layer).unsqueeze(0) for layer in self._initial]
        inputs = torch.cat([self._embedded, latents.expand(len(self._embedded), *latents.shape)], dim=-1)
        # As in training even where the decoder is not: cuDNN keeps what its backward pass needs only then.
        hidden, *_ = torch.lstm(inputs, state, self._weights, True, 1, 0.0, True, False, False)
        return self._positions.take(hidden)

    @torch.no_grad()
    def _value(self, latents: Tensor) -> Tensor:
        values = self._output.log_prob(self._features(latents), self._targets)
        return self._positions.sum_tokens(values, dim=0)

    def _evaluate(self, latents: Tensor, with_value: bool) -> tuple[Tensor | None, Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            latents = latents.detach().clone().requires_grad_()
            features = self._features(latents)
            values, gradient = self._output.score(features.detach(), self._targets, with_value)
            (score,) = torch.autograd.grad(features, latents, self._positions.keep_counted(gradient))
        return None if values is None else self._positions.sum_tokens(values, dim=0), score


class LSTMGenerator(SentenceGenerator):
    """Generates sentences from latents token by token, at the cost of little more than the matrix products.

    Args:
        decoder: The decoder.
        choice: How tokens are chosen.
        num_sentences: Approximate total number of sentences, which decides whether a table of projections pays off.

    Raises:
        UsageError: If a weight of the decoder is nan.
    """

    @torch.no_grad()
    def __init__(self, decoder: LSTMDecoder, choice: TokenChoice, num_sentences: int) -> None:
        width, embedding = decoder.embedding_size, decoder.embedding.weight.detach()
        super().__init__(decoder, choice, len(embedding))
        self._decoder = decoder
        input_weight = decoder.lstm.get_parameter("weight_ih_l0")  # (4 * hidden_size, embedding_size + latent_dim)
        self._latent_weight = input_weight[:, width:]
        self._bias = decoder.lstm.get_parameter("bias_ih_l0") + decoder.lstm.get_parameter("bias_hh_l0")
        self._recurrent = FrozenLinear(decoder.lstm.get_parameter("weight_hh_l0"), None, CHUNK_ROWS)
        self._token_gates = FrozenLinear(input_weight[:, :width], None, CHUNK_ROWS)
        #: `(vocab_size, 4 * hidden_size)`, every token's contribution to the gates, if it will be used often enough.
        self._table: Tensor | None = None
        often = num_sentences * choice.max_new_tokens >= 10 * len(embedding)
        if often and len(embedding) * len(input_weight) <= MAX_TABLE_SIZE:
            self._table = self._token_gates(embedding)
        output = decoder.output
        weight = embedding if output.weight is None else output.weight.detach()  # (vocab_size, rank)
        self._projection = (
            None if output.projection is None else FrozenLinear(output.projection.weight, None, CHUNK_ROWS)
        )
        self._logits = whole_blocks(weight, output.bias)

    def begin(self, latents: Tensor) -> tuple[Tensor, ...]:
        """Returns hidden and cell state, and the latents' contribution to the gates, the same at every step."""
        gates = nn.functional.linear(latents, self._latent_weight, self._bias)
        return self._decoder.initial_hidden(latents), self._decoder.initial_cell(latents), gates

    def keep(self, state: tuple[Tensor, ...], rows: Tensor) -> tuple[Tensor, ...]:
        """Returns the state of the given rows only."""
        return tuple(values[rows] for values in state)

    def advance(self, tokens: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Returns the hidden state `(rows, hidden_size)` and the whole state after `tokens` of shape `(rows,)`."""
        hidden, cell, latent_gates = state
        size = self._decoder.hidden_size
        gates = self._recurrent(hidden).add_(latent_gates)
        if self._table is None:
            gates += self._token_gates(self._decoder.embedding(tokens))
        else:
            gates += self._table.index_select(0, tokens)
        gates[:, : 2 * size].sigmoid_()
        gates[:, 2 * size : 3 * size].tanh_()
        gates[:, 3 * size :].sigmoid_()
        i, f, g, o = gates.chunk(4, dim=1)
        cell = (f * cell).addcmul_(i, g)
        hidden = o * cell.tanh()
        return hidden, (hidden, cell, latent_gates)

    def logits(self, features: Tensor) -> Tensor:
        """`(rows, hidden_size)` to `(rows, tokens)`."""
        return self._logits(features if self._projection is None else self._projection(features))
