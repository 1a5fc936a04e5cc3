"""The interface of a decoder p(x | z): the only thing, beside a collator, that a new modality writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from latent_ebm_text.decoders.softmax import CandidateWords
from latent_ebm_text.samplers.base import ScoredLogDensity

if TYPE_CHECKING:
    from latent_ebm_text.decoders.generation import SentenceGenerator, WordChoice


class LatentDecoder(nn.Module):
    """A conditional density of data given latents. It knows nothing of priors and samplers."""

    def log_prob(self, inputs: dict[str, Tensor], latents: Tensor) -> Tensor:
        """`log p(x | z)` in nats, summed over tokens or pixels, shape `(batch,)`; differentiable in the weights."""
        raise NotImplementedError

    def likelihood(self, inputs: dict[str, Tensor]) -> ScoredLogDensity:
        """`log p(x | z)` as a function of z alone, with its score.

        Computes once whatever does not depend on z; weights are frozen and dropout is off. Made once per chain, it
        is what the inner loop of posterior sampling calls.
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
    """A decoder of words: whatever a text model needs of it, so that the model need not know which one it has.

    `inputs` are everywhere a dictionary with `input_ids` of shape `(batch, length)`, from the beginning-of-sentence
    token to the end-of-sentence token and padded on the right, and `attention_mask` of the same shape. Every token
    but the first is predicted; padding never changes a number.

    Attributes:
        frequent_words: In training mode, the softmax is taken over the first so many ids, the words to be predicted
            and `drawn_words` of the others; zero for all.
        drawn_words: See `frequent_words`.
    """

    frequent_words: int
    drawn_words: int

    def candidates(self, targets: Tensor) -> CandidateWords | None:
        """In training mode, the words that the softmax is taken over, if these are not all; targets `(rows,)`."""
        if not self.training or self.frequent_words == 0:
            return None
        frequent = torch.arange(self.frequent_words, device=targets.device)
        return CandidateWords.draw(targets, frequent, self.vocab_size, self.drawn_words, None)

    @property
    def word_embedding(self) -> nn.Module:
        """The layer that maps ids to vectors."""
        raise NotImplementedError

    @property
    def vocab_size(self) -> int:
        """Number of words."""
        return len(self.word_embedding.get_parameter("weight"))

    def make_cache(self, implementation: str | None = None) -> WordCache:
        """What generation carries from word to word.

        Args:
            implementation: The kind of cache that the caller of `generate` asks for, in the words of transformers.

        Raises:
            UsageError: If this decoder has no such cache.
        """
        raise NotImplementedError

    def next_word_logits(
        self,
        input_ids: Tensor,
        latents: Tensor,
        *,
        cache: Any = None,
        attention_mask: Tensor | None = None,
        logits_to_keep: int = 0,
    ) -> Tensor:
        """Unnormalised log-probabilities of the next word at every place.

        Args:
            input_ids: `(batch, length)`, the words; with a cache that holds words, those that come after them.
            latents: `(batch, latent_dim)`.
            cache: Made by `make_cache`, and moved on behind `input_ids`; `None` to keep nothing.
            attention_mask: `(batch, length)`, the words of the cache included, 0 at padding on the left, as prompts
                of several lengths have.
            logits_to_keep: How many of the last places to score; 0 for all.

        Returns:
            `(batch, length or logits_to_keep, vocab_size)`.
        """
        raise NotImplementedError

    def sentence_generator(self, choice: WordChoice, num_sentences: int) -> SentenceGenerator:
        """The fast loop of plain sampling, with weights as they are now.

        Args:
            choice: How words are chosen.
            num_sentences: How many sentences it will generate in all, about.

        Raises:
            UsageError: If a weight is not a number.
        """
        raise NotImplementedError


class WordCache:
    """What generation carries from word to word, in the form that `GenerationMixin` takes along and reorders."""

    is_compileable = False
    is_croppable = False

    def __init__(self) -> None:
        self.num_words = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Words seen so far."""
        return self.num_words

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keeps the rows `beam_idx`, as beam search asks."""
        raise NotImplementedError


class FrozenLikelihood:
    """`log p(x | z)` of a batch as a function of z alone. Subclasses compute value and score; autograd may use it."""

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
        """The value, where it is wanted too, and the score."""
        raise NotImplementedError


class _ValueWithScore(torch.autograd.Function):
    """Lets autograd use the score where a likelihood is a part of somebody else's log-density."""

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
    """Without dropout and without gradients of weights, for a while: autograd then keeps nothing for them either."""
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
    """Which of the tokens after the first are predicted; `(batch, length - 1)` booleans.

    Those of `counted`, where it is among the inputs, else all that are no padding.
    """
    mask = inputs.get("counted", inputs.get("attention_mask"))
    if mask is None:
        return torch.ones_like(inputs["input_ids"][:, 1:], dtype=torch.bool)
    return mask[:, 1:].bool()
