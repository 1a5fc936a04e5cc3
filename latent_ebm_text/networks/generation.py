"""The loop of plain sampling: draws sentences token by token and drops those that have ended from the computation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latent_ebm_text.errors import DivergenceError, UsageError
from latent_ebm_text.networks.frozen import FrozenLinear
from latent_ebm_text.networks.softmax import SIZE_MULTIPLE

#: Rows of logits computed at a time, few enough to stay in the cache between the product, the softmax and the draw.
CHUNK_ROWS = 128
#: A token is drawn in two steps, first its block of this many ids: two short sums instead of one over the vocabulary.
BLOCK_TOKENS = 128
#: Steps between checks of which sentences have ended. A check costs a CPU nothing, but makes other devices wait.
STEPS_PER_CHECK = {"cpu": 1, "other": 8}


@dataclass(frozen=True)
class TokenChoice:
    """How tokens are chosen, and where sentences end.

    Args:
        bos_token_id: The token that begins every sentence.
        eos_token_ids: The tokens that end a sentence.
        pad_token_id: The token that fills a row after the end of its sentence.
        max_new_tokens: Maximum number of tokens of a sentence, with the end but without the beginning.
        min_new_tokens: Minimum number of tokens before the end.
        do_sample: Whether to draw from the softmax or to take the most probable token.
        temperature: Divides the logits before a draw.
    """

    bos_token_id: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    max_new_tokens: int
    min_new_tokens: int = 0
    do_sample: bool = True
    temperature: float = 1.0


class SentenceGenerator:
    """Generates sentences from latents. Subclasses define a step by `begin`, `advance`, `keep` and `logits`.

    The current weights are frozen, and dropout is off.

    Args:
        decoder: The decoder.
        choice: How tokens are chosen.
        vocab_size: Number of tokens in the vocabulary.

    Raises:
        UsageError: If a weight of the decoder is nan or infinite; minus infinity, with which a bias rules out a token,
            is allowed.
    """

    def __init__(self, decoder: nn.Module, choice: TokenChoice, vocab_size: int) -> None:
        broken = [name for name, weight in decoder.named_parameters() if not bool((weight < math.inf).all())]
        if broken:
            raise UsageError(f"the decoder's weights hold nan or inf, first in {broken[0]}: its training has failed")
        self._choice = choice
        ends = [token for token in choice.eos_token_ids if 0 <= token < vocab_size]
        self._ends = torch.tensor(ends, dtype=torch.long, device=next(decoder.parameters()).device)

    def begin(self, latents: Tensor) -> Any:
        """Returns the state before the first token; its type is up to the subclass."""
        raise NotImplementedError

    def advance(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Returns the input of the output layer, `(rows, width)`, and the state after `tokens` of shape `(rows,)`."""
        raise NotImplementedError

    def keep(self, state: Any, rows: Tensor) -> Any:
        """Returns the state of the given rows only."""
        raise NotImplementedError

    def logits(self, features: Tensor) -> Tensor:
        """`(rows, width)` to `(rows, tokens)`, filled up to a multiple of `BLOCK_TOKENS` with minus infinity."""
        raise NotImplementedError

    @torch.no_grad()
    def generate(self, latents: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Generates one sentence per latent.

        Sentences that have ended are left out of the computation. The tokens of a sentence do not depend on whether
        others have ended.

        Args:
            latents: `(batch, latent_dim)`.
            generator: Source of the draws, on the latents' device.

        Returns:
            Token ids of shape `(batch, length)`, from the beginning token to the end token, then padding up to the
            length of the longest sentence.

        Raises:
            DivergenceError: If the first logits are not finite.
        """
        choice, batch, device = self._choice, len(latents), latents.device
        steps_per_check = STEPS_PER_CHECK["cpu" if device.type == "cpu" else "other"]
        rows = torch.arange(batch, device=device)  # the sentences that are still computed
        tokens = torch.full((batch,), choice.bos_token_id, device=device)
        ended = torch.zeros(batch, dtype=torch.bool, device=device)
        state = self.begin(latents)
        columns = [tokens]
        for step in range(choice.max_new_tokens):
            features, state = self.advance(tokens, state)
            # Drawn for ended sentences too, so that no sentence's draws depend on the others.
            uniforms = None
            if choice.do_sample:
                uniforms = torch.rand(batch, 2, generator=generator, device=device, dtype=torch.float32)[rows]
            if step == 0 and not bool(self.logits(features[:CHUNK_ROWS]).amax().isfinite()):
                raise DivergenceError(
                    "the decoder's logits are not finite: its weights are too large, or a number of its configuration "
                    "cannot be right"
                )
            tokens = self._choose(features, uniforms, may_end=step >= choice.min_new_tokens)
            columns.append(torch.full_like(columns[0], choice.pad_token_id).index_copy_(0, rows, tokens))
            ended |= torch.isin(tokens, self._ends)
            if (step + 1) % steps_per_check == 0:
                going_on = len(ended) - int(ended.sum())
                if going_on == 0:
                    break
                computed = -(-going_on // SIZE_MULTIPLE) * SIZE_MULTIPLE
                if computed < len(rows):
                    kept = ended.int().argsort(stable=True)[:computed]  # the sentences that go on come first
                    rows, tokens, ended = (values[kept] for values in (rows, tokens, ended))
                    state = self.keep(state, kept)
        return self._close(torch.stack(columns, dim=1))

    def _choose(self, features: Tensor, uniforms: Tensor | None, *, may_end: bool) -> Tensor:
        """Chooses the next tokens, `(rows, width)` to `(rows,)`; draws use `uniforms` of shape `(rows, 2)`."""
        tokens = []
        for first in range(0, len(features), CHUNK_ROWS):
            logits = self.logits(features[first : first + CHUNK_ROWS]).float()
            if not may_end:
                logits.index_fill_(1, self._ends, float("-inf"))
            if uniforms is None:
                tokens.append(logits.argmax(dim=-1))
                continue
            if self._choice.temperature != 1:
                logits /= self._choice.temperature
            probs = torch.softmax(logits, dim=-1, out=logits)
            tokens.append(draw_tokens(probs, uniforms[first : first + CHUNK_ROWS]))
        return torch.cat(tokens)

    def _close(self, ids: Tensor) -> Tensor:
        """Pads every row after its first end token, and cuts off columns that are padding in all rows."""
        is_end = torch.isin(ids[:, 1:], self._ends).int()
        after_end = is_end.cumsum(dim=1) > is_end
        ids[:, 1:].masked_fill_(after_end, self._choice.pad_token_id)
        return ids[:, : 1 + int((~after_end).sum(dim=1).max())]


def whole_blocks(weight: Tensor, bias: Tensor) -> FrozenLinear:
    """Freezes an output layer `(vocab_size, width)`, its last block filled up with tokens of probability zero."""
    filling = -len(weight) % BLOCK_TOKENS
    bias = nn.functional.pad(bias, (0, filling), value=float("-inf"))
    return FrozenLinear(nn.functional.pad(weight, (0, 0, 0, filling)), bias, CHUNK_ROWS)


def draw_tokens(probs: Tensor, uniforms: Tensor) -> Tensor:
    """Draws from every row of probabilities, exactly up to their rounding; never a token of probability zero.

    Args:
        probs: `(rows, tokens)`, with a multiple of `BLOCK_TOKENS` tokens; rows need not sum to one.
        uniforms: `(rows, 2)`, uniform on [0, 1). There are two because 24 bits are too coarse for rare tokens.

    Returns:
        Token ids of shape `(rows,)`.
    """
    blocks = probs.unflatten(1, (-1, BLOCK_TOKENS))
    block = _draw(blocks.sum(dim=-1), uniforms[:, :1])
    token = _draw(blocks[torch.arange(len(blocks), device=blocks.device), block], uniforms[:, 1:])
    return block * BLOCK_TOKENS + token


def _draw(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Finds the first entry whose running sum exceeds the uniform's share of the total; `(rows, n)` to `(rows,)`."""
    sums = weights.cumsum(dim=-1)
    total = sums[:, -1:]
    # Rounding may raise the share to the total, which no sum exceeds.
    shares = torch.minimum(uniforms * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(sums, shares, right=True).squeeze(1)
