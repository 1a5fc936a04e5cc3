"""The interfaces of decoders p(x | z) and encoders q(z | x), all that a new modality needs besides a collator."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latent_ebm_text.latents.density import ScoredLogDensity
from latent_ebm_text.latents.rng import normal_
from latent_ebm_text.networks import placement
from latent_ebm_text.networks.generation import SentenceGenerator, TokenChoice
from latent_ebm_text.networks.softmax import CandidateTokens

#: Logits computed at a time where those of every token are needed: 256 MiB of them.
_MAX_LOGITS = 2**26
#: Whether `torch.export` is recording a graph, in which values are not known; torch before 2.7 does not say.
is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)


class LatentDecoder(nn.Module):
    """A conditional density p(x | z) of data given latents. It knows nothing about priors and samplers."""

    def log_prob(self, inputs: dict[str, Tensor], latents: Tensor) -> Tensor:
        """`log p(x | z)` in nats, summed over tokens or pixels, shape `(batch,)`; differentiable in the weights."""
        raise NotImplementedError

    def mean_log_prob(self, inputs: dict[str, Tensor], latents: Tensor) -> Tensor:
        """`log p(x | z)` in nats, averaged over the batch, a scalar: what a decoder learns by."""
        return self.log_prob(inputs, latents).mean()

    def likelihood(self, inputs: dict[str, Tensor]) -> ScoredLogDensity:
        """`log p(x | z)` as a function of z alone, with its score.

        Whatever does not depend on z is computed once; weights are frozen and dropout is off. Posterior sampling makes
        one per chain and calls it at every step.
        """
        raise NotImplementedError

    def averaged_log_prob(self, inputs: dict[str, Tensor], latents: Tensor) -> Tensor:
        """The log-density of data in nats, `(batch,)`, when the decoder's prediction is averaged over several latents.

        With the latents of other examples this is the decoder with z averaged out, and what an example's own latent
        gains over it is what the latent tells. No gradient is formed; dropout must be off.

        Args:
            inputs: The data.
            latents: `(num_latents, batch, latent_dim)`.
        """
        raise NotImplementedError

    def score(self, inputs: dict[str, Tensor], latents: Tensor) -> Tensor:
        """`d log p(x | z) / d z` of shape `(batch, latent_dim)`, with frozen weights and without dropout."""
        return self.likelihood(inputs).score(latents)

    @property
    def latent_dtype(self) -> torch.dtype:
        """The precision of the latents."""
        return next(self.parameters()).dtype


class TextDecoder(LatentDecoder):
    """A decoder of token sequences, with all that a text model needs from it.

    `inputs` is always a dictionary with `input_ids` of shape `(batch, length)`, from the beginning-of-sentence token
    to the end-of-sentence token and padded on the right, and `attention_mask` of the same shape. Every token but the
    first is predicted; padding never changes a result.

    Attributes:
        frequent_tokens: In training mode, the softmax is taken over this many of the lowest ids, the targets, and
            `drawn_tokens` of the others; zero means over all tokens.
        drawn_tokens: Number of other tokens that are drawn at random, see `frequent_tokens`.
    """

    frequent_tokens: int
    drawn_tokens: int

    def candidates(self, targets: Tensor) -> CandidateTokens | None:
        """Draws the tokens that the softmax is taken over in training; `None` for all. Targets are `(rows,)`."""
        if not self.training or self.frequent_tokens == 0:
            return None
        frequent = torch.arange(min(self.frequent_tokens, self.vocab_size), device=targets.device)
        return CandidateTokens.draw(targets, frequent, self.vocab_size, self.drawn_tokens, None)

    @property
    def token_embedding(self) -> nn.Module:
        """The embedding layer, which maps token ids to vectors."""
        raise NotImplementedError

    def set_token_embedding(self, embedding: nn.Embedding) -> None:
        """Replaces the embedding layer."""
        raise NotImplementedError

    @property
    def vocab_size(self) -> int:
        """Number of tokens in the vocabulary."""
        return len(self.token_embedding.get_parameter("weight"))

    def make_cache(self, implementation: str | None = None) -> TokenCache:
        """Creates the state that generation carries from token to token.

        Args:
            implementation: The `cache_implementation` passed to `generate` of transformers.

        Raises:
            UsageError: If this decoder has no such cache.
        """
        raise NotImplementedError

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
        """Unnormalised log-probabilities of the next token at every position.

        Args:
            input_ids: `(batch, length)`, tokens; those after the ones in the cache, if it holds any.
            latents: `(batch, latent_dim)`.
            cache: Made by `make_cache` and advanced past `input_ids`; `None` to keep nothing.
            attention_mask: `(batch, length)` with the tokens of the cache included; 0 at the padding on the left that
                prompts of different lengths have.
            logits_to_keep: Number of last positions to score; 0 for all.
            states: A dictionary whose entries `hidden_states` and `attentions`, where it has them, are replaced by
                tuples with a tensor per layer. `hidden_states` may be a list of layers; the others are `None`.

        Returns:
            `(batch, length or logits_to_keep, vocab_size)`.

        Raises:
            UsageError: If `states` asks for attentions that the decoder does not have.
        """
        raise NotImplementedError

    @torch.no_grad()
    def averaged_log_prob(self, inputs: dict[str, Tensor], latents: Tensor) -> Tensor:
        """Each token's probability, given those before it, is averaged over the latents; see [`LatentDecoder`]."""
        return -self.token_surprise(inputs, latents).sum(dim=1)

    @torch.no_grad()
    def token_surprise(self, inputs: dict[str, Tensor], latents: Tensor) -> Tensor:
        """`-log p` of every token in nats, given those before it, its probability averaged over several latents.

        No gradient is formed; dropout must be off.

        Args:
            inputs: The sentences, `(batch, length)` tokens.
            latents: `(num_latents, batch, latent_dim)`.

        Returns:
            `(batch, length - 1)`, 0 where a token is not predicted.
        """
        ids, mask = inputs["input_ids"], predicted_mask(inputs)
        rows = max(1, _MAX_LOGITS // (mask.shape[1] * self.vocab_size))
        parts = []
        for part, predicted, latents_of_part in zip(
            ids.split(rows), mask.split(rows), latents.split(rows, dim=1), strict=True
        ):
            nlls = []  # each (rows, length - 1)
            for z in latents_of_part:
                logits = self.next_token_logits(part[:, :-1], z)
                logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).transpose(1, 2)
                nlls.append(F.cross_entropy(logits, part[:, 1:], reduction="none"))
            log_probs = torch.logsumexp(-torch.stack(nlls), dim=0) - math.log(len(nlls))
            parts.append(-log_probs.masked_fill(~predicted, 0.0))
        return torch.cat(parts)

    def sentence_generator(self, choice: TokenChoice, num_sentences: int) -> SentenceGenerator:
        """Creates the fast loop of plain sampling, with the current weights frozen.

        Args:
            choice: How tokens are chosen.
            num_sentences: Approximate total number of sentences that will be generated.

        Raises:
            UsageError: If a weight is nan.
        """
        raise NotImplementedError


class TokenCache:
    """The state that generation carries from token to token, in the form that `GenerationMixin` expects."""

    is_compileable = False
    is_croppable = False

    def __init__(self) -> None:
        self.num_tokens = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of tokens seen so far."""
        return self.num_tokens

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keeps the rows `beam_idx`, as beam search requires."""
        raise NotImplementedError


class FrozenLikelihood:
    """`log p(x | z)` of a batch as a function of z. Subclasses compute value and score; autograd uses the score."""

    def __call__(self, latents: Tensor) -> Tensor:
        """`log p(x | z)` in nats, `(batch, latent_dim)` to `(batch,)`; differentiable in the latents, once."""
        if not (torch.is_grad_enabled() and latents.requires_grad):
            return self._value(latents)
        value: Tensor = _ValueWithScore.apply(latents, self)
        return value

    def score(self, latents: Tensor) -> Tensor:
        """`d log p(x | z) / d z`; `(batch, latent_dim)` to the same shape."""
        return self._evaluate(latents, with_value=False)[1]

    def value_and_score(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """`log p(x | z)` of shape `(batch,)` and its score of shape `(batch, latent_dim)`."""
        value, score = self._evaluate(latents, with_value=True)
        assert value is not None
        return value, score

    def _value(self, latents: Tensor) -> Tensor:
        raise NotImplementedError

    def _evaluate(self, latents: Tensor, with_value: bool) -> tuple[Tensor | None, Tensor]:
        """Returns the value, or `None` without `with_value`, and the score."""
        raise NotImplementedError


class _ValueWithScore(torch.autograd.Function):
    """Lets autograd use the closed-form score when a likelihood is a term of another log-density."""

    @staticmethod
    def forward(ctx, latents: Tensor, likelihood: FrozenLikelihood) -> Tensor:  # type: ignore
        value, score = likelihood.value_and_score(latents)
        ctx.save_for_backward(score)
        return value

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore
        (score,) = ctx.saved_tensors
        return grad[:, None] * score, None


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Switches off dropout and gradients of weights, for which autograd then keeps nothing; restores both on exit."""
    training = [part for part in module.modules() if part.training]
    learning = [weight for weight in module.parameters() if weight.requires_grad]
    for part in training:
        part.training = False
    for weight in learning:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for part in training:
            part.training = True
        for weight in learning:
            weight.requires_grad_(True)


def predicted_mask(inputs: dict[str, Tensor]) -> Tensor:
    """Returns which of the tokens after the first are predicted, `(batch, length - 1)` booleans.

    They are those of the input `counted` if it is given, and else all tokens that are not padding.
    """
    mask = inputs.get("counted", inputs.get("attention_mask"))
    if mask is None:
        return torch.ones_like(inputs["input_ids"][:, 1:], dtype=torch.bool)
    return mask[:, 1:].bool()


class PredictedPositions:
    """The predicted tokens among those of a batch, for which alone the output layer is computed on a CPU.

    Elsewhere the host would wait for their number. There the output layer is computed for every position, and what it
    gives for the others is replaced by zeros.

    Args:
        predicted: `(batch, length)` booleans, or the same with time first.

    Attributes:
        counted: `(tokens,)` booleans, which of the tokens that `take` returns are predicted; `None` if all are.
    """

    def __init__(self, predicted: Tensor) -> None:
        self._shape, flat = predicted.shape, predicted.reshape(-1)
        self._indices = flat.nonzero().squeeze(1) if placement.is_at_host(flat) else None
        self.counted = flat if self._indices is None else None

    def take(self, values: Tensor) -> Tensor:
        """The tokens to compute; values of the shape of `predicted`, or of more, to `(tokens, ...)`."""
        flat = values.reshape(-1, *values.shape[2:])
        return flat if self._indices is None else flat.index_select(0, self._indices)

    def keep_counted(self, values: Tensor) -> Tensor:
        """Values of every token `(tokens, ...)`, with zeros for those that are not predicted."""
        if self.counted is None:
            return values
        return values.masked_fill(~self.counted.view(-1, *[1] * (values.dim() - 1)), 0.0)

    def sum_tokens(self, values: Tensor, dim: int) -> Tensor:
        """Sums over the predicted tokens of every sentence; `(tokens,)` to `(batch,)`. `dim` is that of the time."""
        if self._indices is None:
            return self.keep_counted(values).view(self._shape).sum(dim=dim)
        per_token = values.new_zeros(self._shape.numel()).index_copy(0, self._indices, values)
        return per_token.view(self._shape).sum(dim=dim)


@dataclass(frozen=True)
class GaussianPosterior:
    """A diagonal Gaussian per example, the output of an encoder q(z | x).

    Attributes:
        mean: `(batch, latent_dim)`.
        log_std: `(batch, latent_dim)`.
    """

    mean: Tensor
    log_std: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One draw per example, `(batch, latent_dim)`, differentiable in mean and standard deviation."""
        noise = normal_(torch.empty_like(self.mean), generator)
        return self.mean + self.log_std.exp() * noise

    def log_prob(self, latents: Tensor) -> Tensor:
        """`log q(z | x)` in nats; `(batch, latent_dim)` to `(batch,)`."""
        standardised = (latents - self.mean) * (-self.log_std).exp()
        return -(0.5 * standardised.square() + self.log_std + 0.5 * math.log(2 * math.pi)).sum(dim=-1)

    def divergence(self) -> Tensor:
        """`KL(q(z | x) || N(0, I))` of every dimension in nats, `(batch, latent_dim)`."""
        return 0.5 * (self.mean.square() + (2 * self.log_std).exp() - 1.0) - self.log_std


class LatentEncoder(nn.Module):
    """A network that proposes latents for data: an approximate posterior q(z | x)."""

    def forward(self, inputs: dict[str, Tensor]) -> GaussianPosterior:
        """Returns the proposal for a batch of data."""
        raise NotImplementedError

    @torch.no_grad()
    def propose(self, inputs: dict[str, Tensor]) -> GaussianPosterior:
        """Returns the proposal without dropout and without a graph, from which chains start."""
        was_training = self.training
        self.eval()
        try:
            proposal: GaussianPosterior = self(inputs)
        finally:
            self.train(was_training)
        return proposal
