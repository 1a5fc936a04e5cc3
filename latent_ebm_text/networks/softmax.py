"""The output layer of a text decoder: log-probabilities of given tokens, and their gradients, at low cost.

With a vocabulary of ten thousand words this layer, not the recurrent network, is where the time goes. Everything here
works on a chunk of the rows of logits at a time. On a CPU these are a few hundred, which stay in the cache between two
matrix products; on a GPU as many as take a small part of its memory, since few large kernels are faster than many.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latent_ebm_text.networks import placement
from latent_ebm_text.networks.frozen import FrozenLinear

#: Rows of logits that are computed at a time on a CPU, where they should stay in the cache.
CHUNK_ROWS = 256
#: The part of a device's memory that the logits of a chunk may take elsewhere.
_LOGITS_MEMORY = 1 / 32
#: Rows and candidate tokens are filled up to a multiple of this. CPU kernels are generated and kept for every shape,
#: and without filling every batch would bring new shapes, which costs time and, over an epoch, gigabytes.
SIZE_MULTIPLE = 64

#: Gradients in features, weight and bias.
Gradients = tuple[Tensor, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class CandidateTokens:
    """A part of the vocabulary, for an unbiased estimate of the softmax's normaliser.

    Attributes:
        tokens: `(candidates,)`, ids; every target is among them, and the last ones may be filling.
        log_weights: `(candidates,)`, zero for tokens that represent only themselves, the log of how many tokens it
            represents for a token drawn at random, and minus infinity for filling.
        positions: `(vocab_size,)`, the index of every token among the candidates, -1 if it is not one.
    """

    tokens: Tensor
    log_weights: Tensor
    positions: Tensor

    @classmethod
    def draw(
        cls, targets: Tensor, frequent: Tensor, vocab_size: int, num_drawn: int, generator: torch.Generator | None
    ) -> CandidateTokens:
        """Takes the frequent tokens, the targets, and some of the others, drawn uniformly.

        Frequent tokens have most of the probability in any context, so the drawn ones estimate only a small remainder.

        Args:
            targets: `(rows,)`.
            frequent: `(tokens,)`, ids that are always candidates.
            vocab_size: Number of tokens in the vocabulary.
            num_drawn: Number of others that are drawn; all of them if there are fewer.
            generator: Source of the draw.
        """
        is_kept = torch.zeros(vocab_size, dtype=torch.bool, device=targets.device)
        is_kept[frequent] = True
        is_kept[targets] = True
        if not placement.is_at_host(targets):
            return cls._of_fixed_number(is_kept, len(frequent) + len(targets), num_drawn, generator)
        kept, others = is_kept.nonzero().squeeze(1), (~is_kept).nonzero().squeeze(1)
        order = torch.randperm(len(others), generator=generator, device=targets.device)
        drawn = others[order[:num_drawn]]
        tokens = torch.cat([kept, drawn])
        log_weights = torch.zeros(len(tokens), device=targets.device)
        if len(drawn):
            log_weights[len(kept) :] = math.log(len(others) / len(drawn))
        positions = torch.full((vocab_size,), -1, device=targets.device)
        positions[tokens] = torch.arange(len(tokens), device=targets.device)
        filling = (0, -len(tokens) % SIZE_MULTIPLE)
        log_weights = nn.functional.pad(log_weights, filling, value=-math.inf)
        return cls(nn.functional.pad(tokens, filling), log_weights, positions)

    @classmethod
    def _of_fixed_number(
        cls, is_kept: Tensor, max_kept: int, num_drawn: int, generator: torch.Generator | None
    ) -> CandidateTokens:
        """The same where the host does not know how many tokens are kept: filling makes up for the difference.

        Args:
            is_kept: `(vocab_size,)`, which tokens represent themselves.
            max_kept: The largest number of them that there can be.
            num_drawn: Number of others that are drawn.
            generator: Source of the draw.
        """
        vocab_size = len(is_kept)
        number = min(vocab_size, max_kept + num_drawn)
        order = torch.randperm(vocab_size, generator=generator, device=is_kept.device)
        tokens = order.masked_fill(is_kept, -1).argsort(stable=True)[:number]  # those that are kept come first
        places, num_kept = torch.arange(number, device=is_kept.device), is_kept.sum()
        num_others = vocab_size - num_kept
        num_drawn_here = num_others.clamp(max=num_drawn)
        is_candidate = places < num_kept + num_drawn_here
        log_weights = (num_others.log() - num_drawn_here.log()).expand(number).masked_fill(places < num_kept, 0.0)
        log_weights = log_weights.masked_fill(~is_candidate, -math.inf)
        positions = torch.full((vocab_size,), -1, device=is_kept.device)
        positions[tokens] = places.masked_fill(~is_candidate, -1)
        filling = (0, -number % SIZE_MULTIPLE)
        log_weights = nn.functional.pad(log_weights, filling, value=-math.inf)
        return cls(nn.functional.pad(tokens, filling), log_weights, positions)


class SoftmaxOutput(nn.Module):
    """Scores every token given a hidden state: `softmax(W P h + b)`.

    `W` is a matrix of its own or the token embedding (`tied_weight`). `P` projects the hidden state to the width of
    `W` if the two differ, which makes the output layer low-rank: `hidden * rank + rank * vocabulary` multiplications
    per token instead of `hidden * vocabulary`.

    Args:
        hidden_size: Width of the hidden states.
        vocab_size: Number of tokens in the vocabulary.
        rank: Width of `W`; `None` for `hidden_size`, without a projection.
        tied: Whether `W` is the embedding matrix, passed at every call, instead of a parameter of this layer.
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
        """Unnormalised log-probabilities of every token; `(..., hidden_size)` to `(..., vocab_size)`."""
        features, weight = self._parts(hidden, tied_weight)
        return nn.functional.linear(features, weight, self.bias)

    def log_prob(
        self,
        hidden: Tensor,
        targets: Tensor,
        tied_weight: Tensor | None = None,
        candidates: CandidateTokens | None = None,
    ) -> Tensor:
        """`log p(target | hidden)` in nats, differentiable; `(rows, hidden_size)` and `(rows,)` to `(rows,)`.

        With `candidates` the normaliser is estimated from these tokens, which must include every target.
        """
        features, weight = self._parts(fill_rows(hidden), tied_weight)
        return chunked_log_prob(features, weight, self.bias, targets, candidates)

    def sum_log_prob(
        self,
        hidden: Tensor,
        targets: Tensor,
        tied_weight: Tensor | None = None,
        candidates: CandidateTokens | None = None,
        counted: Tensor | None = None,
    ) -> Tensor:
        """The sum of `log_prob` over the rows, or over those that `counted` `(rows,)` names; less work to learn by."""
        features, weight = self._parts(fill_rows(hidden), tied_weight)
        return chunked_sum_log_prob(features, weight, self.bias, targets, candidates, counted)

    def frozen(
        self, tied_weight: Tensor | None = None, candidates: CandidateTokens | None = None
    ) -> FrozenSoftmaxOutput:
        """Returns this layer for the inner loop of a chain, faster and without gradients of its weights."""
        weight = tied_weight if self.weight is None else self.weight
        assert weight is not None, "a tied output layer is called with the embedding matrix"
        projection = None if self.projection is None else self.projection.weight
        return FrozenSoftmaxOutput(weight, self.bias, projection, candidates)


def chunked_log_prob(
    features: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, candidates: CandidateTokens | None = None
) -> Tensor:
    """`log_softmax(features @ weight.T + bias)[targets]` in nats, differentiable, a chunk of rows at a time.

    Args:
        features: `(rows, rank)`; rows beyond the targets are filling.
        weight: `(vocab_size, rank)`.
        bias: `(vocab_size,)`.
        targets: `(rows,)`.
        candidates: The tokens from which the normaliser is estimated; by default all of them.
    """
    layer = _among_candidates(weight, bias, targets, candidates)
    result: Tensor = _ChunkedLogProb.apply(features, *layer)
    return result


def chunked_sum_log_prob(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    candidates: CandidateTokens | None = None,
    counted: Tensor | None = None,
) -> Tensor:
    """The sum of [`chunked_log_prob`] over the targets that count, a scalar; all of them by default.

    Args:
        features: `(rows, rank)`; rows beyond the targets are filling.
        weight: `(vocab_size, rank)`.
        bias: `(vocab_size,)`.
        targets: `(rows,)`.
        candidates: The tokens from which the normaliser is estimated; by default all of them.
        counted: `(rows,)` booleans.
    """
    layer = _among_candidates(weight, bias, targets, candidates)
    result: Tensor = _ChunkedSumLogProb.apply(features, *layer, counted)
    return result


def _among_candidates(
    weight: Tensor, bias: Tensor, targets: Tensor, candidates: CandidateTokens | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Weight and bias of the candidates alone, and the places of the targets among them."""
    if candidates is None:
        return weight, bias, targets
    tokens = candidates.tokens
    return weight[tokens], bias[tokens] + candidates.log_weights, candidates.positions[targets]


class FrozenSoftmaxOutput:
    """`log p(target | hidden)` and its gradient in the hidden state, with frozen weights.

    Args:
        weight: `(vocab_size, rank)`.
        bias: `(vocab_size,)`.
        projection: `(rank, hidden_size)`, if the hidden state is projected first.
        candidates: The tokens from which the normaliser is estimated; by default all of them.
    """

    @torch.no_grad()
    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        projection: Tensor | None = None,
        candidates: CandidateTokens | None = None,
    ) -> None:
        self._projection = None if projection is None else projection.detach()
        self._positions = None if candidates is None else candidates.positions
        if candidates is not None:
            weight, bias = weight[candidates.tokens], bias[candidates.tokens] + candidates.log_weights
        self._weight = weight.detach()
        self._logits = FrozenLinear(weight, bias, CHUNK_ROWS)
        self._expected_weight = FrozenLinear(weight.t(), None, CHUNK_ROWS)

    @torch.no_grad()
    def log_prob(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """`log p(target | hidden)` in nats; `(rows, hidden_size)` and `(rows,)` to `(rows,)`."""
        num_rows, features, targets = self._prepare(hidden, targets)
        value = hidden.new_empty(num_rows, dtype=value_dtype(hidden))
        for rows in _chunks(features, len(self._weight)):
            value[rows] = pick_log_prob(self._logits(features[rows]), targets[rows])
        return value

    def _prepare(self, hidden: Tensor, targets: Tensor) -> tuple[int, Tensor, Tensor]:
        """Returns the number of rows, their features with filling appended, and the positions of the targets."""
        hidden = fill_rows(hidden)
        features = hidden if self._projection is None else hidden @ self._projection.t()
        return len(targets), features, targets if self._positions is None else self._positions[targets]

    @torch.no_grad()
    def score(self, hidden: Tensor, targets: Tensor, with_value: bool = False) -> tuple[Tensor | None, Tensor]:
        """Returns the gradient, and the log-probability if `with_value`.

        Args:
            hidden: `(rows, hidden_size)`.
            targets: `(rows,)`.
            with_value: Whether to compute the log-probability.

        Returns:
            Log-probabilities of shape `(rows,)` in nats or `None`, and gradients of shape `(rows, hidden_size)`.
        """
        num_rows, features, targets = self._prepare(hidden, targets)
        gradient = torch.zeros_like(features)
        gradient[:num_rows] = self._weight[targets]  # d logit_target / d features; its expectation is subtracted below
        value = hidden.new_empty(num_rows, dtype=value_dtype(hidden)) if with_value else None
        for rows in _chunks(features, len(self._weight)):
            logits = self._logits(features[rows])
            if value is not None:
                value[rows] = pick_log_prob(logits, targets[rows])
            torch.softmax(logits, dim=-1, out=logits)
            gradient[rows] -= self._expected_weight(logits)
        gradient = gradient if self._projection is None else gradient @ self._projection
        return value, gradient[:num_rows]


class _ChunkedLogProb(torch.autograd.Function):
    """`log_softmax(features @ weight.T + bias)[targets]`, a chunk of rows at a time.

    The backward pass computes the logits again. Rows of `features` beyond the targets are filling. Under autocast,
    products are computed in the precision of the features, and the gradients of the weights are summed in that of the
    weights.
    """

    @staticmethod
    def forward(ctx, features: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:  # type: ignore
        value = features.new_empty(len(targets), dtype=value_dtype(features))
        for rows, logits in _logit_chunks(features, weight.to(features.dtype), bias):
            value[rows] = pick_log_prob(logits, targets[rows])
        ctx.save_for_backward(features, weight, bias, targets)
        return value

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore
        features, weight, bias, targets = ctx.saved_tensors
        gradients = _zero_gradients(ctx, features, weight, bias)
        factor = weight.to(features.dtype)
        for rows, logits in _logit_chunks(features, factor, bias):
            _add_gradients(gradients, logits, features, factor, targets, rows, grad[rows, None].to(logits.dtype))
        return *gradients, None


class _ChunkedSumLogProb(torch.autograd.Function):
    """The sum of [`_ChunkedLogProb`] over the rows that count.

    A sum weighs its rows alike whatever becomes of it. So gradients are formed in the forward pass, while the logits
    of a chunk exist, and the backward pass only scales them.
    """

    @staticmethod
    def forward(  # type: ignore
        ctx, features: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, counted: Tensor | None
    ) -> Tensor:
        value = features.new_empty(len(targets), dtype=value_dtype(features))
        gradients = _zero_gradients(ctx, features, weight, bias) if any(ctx.needs_input_grad) else None
        factor = weight.to(features.dtype)
        for rows, logits in _logit_chunks(features, factor, bias):
            value[rows] = pick_log_prob(logits, targets[rows])
            if gradients is not None:
                row_grad = None if counted is None else counted[rows, None].to(logits.dtype)
                _add_gradients(gradients, logits, features, factor, targets, rows, row_grad)
        ctx.save_for_backward(*(gradients or ()))
        return (value if counted is None else value.masked_fill(~counted, 0.0)).sum()

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore
        return *(None if each is None else each * grad for each in ctx.saved_tensors), None, None


def _zero_gradients(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor) -> Gradients:
    """Allocates the gradients that are needed: the weights of a frozen decoder need none."""
    _, of_weight, of_bias, *_ = ctx.needs_input_grad
    return (
        torch.empty_like(features),
        torch.zeros_like(weight) if of_weight else None,
        torch.zeros_like(bias) if of_bias else None,
    )


def _add_gradients(
    gradients: Gradients,
    logits: Tensor,
    features: Tensor,
    weight: Tensor,
    targets: Tensor,
    rows: slice,
    row_grad: Tensor | None,
) -> None:
    """Adds a chunk's contribution to the gradients in features, weight and bias; overwrites `logits`.

    `row_grad` of shape `(rows, 1)` is the incoming gradient; `None` means one in every row.
    """
    grad_features, grad_weight, grad_bias = gradients
    chosen = targets[rows, None]
    torch.softmax(logits, dim=-1, out=logits)
    grad_logits = logits.neg_()
    if row_grad is None:
        row_grad = logits.new_ones(len(chosen), 1)
    else:
        grad_logits[: len(chosen)].mul_(row_grad)
    grad_logits[: len(chosen)].scatter_add_(1, chosen, row_grad)
    grad_logits[len(chosen) :] = 0.0
    torch.mm(grad_logits, weight, out=grad_features[rows])
    if grad_weight is not None and grad_weight.dtype == features.dtype:
        grad_weight.addmm_(grad_logits.t(), features[rows])
    elif grad_weight is not None:
        grad_weight.add_(grad_logits.t() @ features[rows])
    if grad_bias is not None:
        grad_bias.add_(grad_logits.sum(dim=0))


def _logit_chunks(features: Tensor, weight: Tensor, bias: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yields slices of rows with their logits, in one buffer that every chunk overwrites."""
    chunks = list(_chunks(features, len(weight)))
    buffer = features.new_empty(chunks[0].stop if chunks else 0, len(weight))  # (rows, vocab_size)
    for rows in chunks:
        logits = buffer[: rows.stop - rows.start]
        torch.mm(features[rows], weight.t(), out=logits)
        yield rows, logits.add_(bias)


def _chunks(features: Tensor, vocab_size: int) -> Iterator[slice]:
    """Slices of the rows of features, whose logits are computed at a time."""
    size = chunk_rows(features.device, vocab_size)
    for first in range(0, len(features), size):
        yield slice(first, min(first + size, len(features)))


def chunk_rows(device: torch.device, vocab_size: int) -> int:
    """How many rows of logits are computed at a time: few on a CPU, and by the size of the memory on a GPU."""
    if device.type != "cuda":
        return CHUNK_ROWS
    memory = torch.cuda.get_device_properties(device).total_memory
    rows = int(memory * _LOGITS_MEMORY) // (4 * vocab_size)
    return max(SIZE_MULTIPLE, rows - rows % SIZE_MULTIPLE)


def fill_rows(hidden: Tensor) -> Tensor:
    """Appends zero rows to `(rows, hidden_size)`, up to a multiple of `SIZE_MULTIPLE`."""
    return nn.functional.pad(hidden, (0, 0, 0, -len(hidden) % SIZE_MULTIPLE))


def pick_log_prob(logits: Tensor, targets: Tensor) -> Tensor:
    """`log_softmax(logits)[targets]`, `(rows,)`; logits of further rows are ignored."""
    log_probs = torch.log_softmax(logits[: len(targets)], dim=-1, dtype=value_dtype(logits))
    return log_probs.gather(1, targets[:, None]).squeeze(1)


def value_dtype(tensor: Tensor) -> torch.dtype:
    """The type of log-probabilities: at least float32, whatever the precision of the weights."""
    return torch.promote_types(tensor.dtype, torch.float32)
