"""The output layer of a decoder of words: log-probabilities of given words, and their gradients, at low cost.

With a vocabulary of ten thousand words this layer, not the recurrent network, is where the time goes. Everything here
works on a few hundred rows of logits at a time: such a chunk stays in the cache between its matrix products, and the
whole `(tokens, vocabulary)` array is never in memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

#: Rows of logits computed at a time.
CHUNK_ROWS = 256


class SoftmaxOutput(nn.Module):
    """Scores every word given a hidden state: `softmax(W P h + b)`.

    `W` is a matrix of its own, or the word embedding (`tied_weight`); `P` projects the hidden state to the width of
    `W` where the two differ, which makes the output layer low-rank: `hidden * rank + rank * vocabulary`
    multiplications a token rather than `hidden * vocabulary`.

    Args:
        hidden_size: Width of the hidden states.
        vocab_size: Number of words.
        rank: Width of `W`; `None` for `hidden_size`, without a projection.
        tied: Whether `W` is handed in at every call (the embedding matrix) rather than owned.
    """

    def __init__(self, hidden_size: int, vocab_size: int, rank: int | None = None, tied: bool = False) -> None:
        super().__init__()
        rank = hidden_size if rank is None else rank
        self.projection = nn.Linear(hidden_size, rank, bias=False) if rank != hidden_size else None
        self.weight = None if tied else nn.Parameter(torch.empty(vocab_size, rank).uniform_(-0.1, 0.1))
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def _parts(self, hidden: Tensor, tied_weight: Tensor | None) -> tuple[Tensor, Tensor]:
        weight = tied_weight if self.weight is None else self.weight
        assert weight is not None, "a tied output layer is called with the embedding matrix"
        return (hidden if self.projection is None else self.projection(hidden)), weight

    def logits(self, hidden: Tensor, tied_weight: Tensor | None = None) -> Tensor:
        """Unnormalised log-probabilities of every word; `(..., hidden_size)` to `(..., vocab_size)`."""
        features, weight = self._parts(hidden, tied_weight)
        return nn.functional.linear(features, weight, self.bias)

    def log_prob(self, hidden: Tensor, targets: Tensor, tied_weight: Tensor | None = None) -> Tensor:
        """`log p(target | hidden)` in nats, differentiable; `(rows, hidden_size)` and `(rows,)` to `(rows,)`."""
        features, weight = self._parts(hidden, tied_weight)
        result: Tensor = _ChunkedLogProb.apply(features, weight, self.bias, targets)
        return result

    @torch.no_grad()
    def score(
        self, hidden: Tensor, targets: Tensor, tied_weight: Tensor | None = None, with_value: bool = False
    ) -> tuple[Tensor | None, Tensor]:
        """The gradient of `log p(target | hidden)` in the hidden state, without a graph.

        Args:
            hidden: `(rows, hidden_size)`.
            targets: `(rows,)`.
            tied_weight: The embedding matrix, where the layer is tied.
            with_value: Whether the log-probability is wanted too.

        Returns:
            Log-probabilities of shape `(rows,)` or `None`, and gradients of shape `(rows, hidden_size)`.
        """
        features, weight = self._parts(hidden, tied_weight)
        gradient = weight[targets]  # d logit_target / d features; the expected embedding is taken off below
        value = hidden.new_empty(len(targets), dtype=_value_dtype(hidden)) if with_value else None
        for rows, logits in _logit_chunks(features, weight, self.bias):
            if value is not None:
                value[rows] = _pick_log_prob(logits, targets[rows])
            torch.softmax(logits, dim=-1, out=logits)
            gradient[rows].addmm_(logits, weight, alpha=-1)
        if self.projection is not None:
            gradient = gradient @ self.projection.weight
        return value, gradient


class _ChunkedLogProb(torch.autograd.Function):
    """`log_softmax(features @ weight.T + bias)[targets]`, with the logits of a chunk computed again in the backward.

    One matrix product more than keeping them, and faster on a CPU all the same: no array of tokens times vocabulary
    is allocated, written and read.
    """

    @staticmethod
    def forward(ctx, features: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:  # type: ignore
        ctx.save_for_backward(features, weight, bias, targets)
        value = features.new_empty(len(targets), dtype=_value_dtype(features))
        for rows, logits in _logit_chunks(features, weight, bias):
            value[rows] = _pick_log_prob(logits, targets[rows])
        return value

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore
        features, weight, bias, targets = ctx.saved_tensors
        grad_features, grad_weight = torch.empty_like(features), torch.zeros_like(weight)
        grad_bias = torch.zeros_like(bias)
        for rows, logits in _logit_chunks(features, weight, bias):
            torch.softmax(logits, dim=-1, out=logits)
            row_grad = grad[rows, None].to(logits.dtype)
            grad_logits = logits.mul_(-row_grad).scatter_add_(1, targets[rows, None], row_grad)
            torch.mm(grad_logits, weight, out=grad_features[rows])
            grad_weight.addmm_(grad_logits.t(), features[rows])
            grad_bias.add_(grad_logits.sum(dim=0))
        return grad_features, grad_weight, grad_bias, None


def _logit_chunks(features: Tensor, weight: Tensor, bias: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Slices of rows with their logits, in one buffer that each chunk overwrites."""
    buffer = features.new_empty(min(CHUNK_ROWS, len(features)), len(weight))  # (rows, vocab_size)
    for first in range(0, len(features), CHUNK_ROWS):
        rows = slice(first, min(first + CHUNK_ROWS, len(features)))
        logits = buffer[: rows.stop - first]
        torch.mm(features[rows], weight.t(), out=logits)
        yield rows, logits.add_(bias)


def _pick_log_prob(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.log_softmax(logits, dim=-1, dtype=_value_dtype(logits)).gather(1, targets[:, None]).squeeze(1)


def _value_dtype(tensor: Tensor) -> torch.dtype:
    """Log-probabilities are kept in float32 at least, whatever the weights are in."""
    return torch.promote_types(tensor.dtype, torch.float32)
