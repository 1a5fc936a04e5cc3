"""The loop of plain sampling: sentences drawn word by word, without those that have ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latent_ebm_text.decoders.frozen import FrozenLinear
from latent_ebm_text.decoders.softmax import SIZE_MULTIPLE
from latent_ebm_text.errors import UsageError

#: Rows of logits computed at a time: few enough to stay in the cache between the product, the softmax and the draw.
CHUNK_ROWS = 128
#: A word is drawn in two steps, its block of so many ids first: two short sums in place of one over the vocabulary.
BLOCK_WORDS = 128
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


class SentenceGenerator:
    """Generates sentences from latents. A decoder's own generator says how a step is computed: `begin`, `advance`,
    `keep` and `logits`.

    Weights are frozen, as they are when this is made, and dropout is off.

    Args:
        decoder: The decoder.
        choice: How words are chosen.
        vocab_size: Number of words.

    Raises:
        UsageError: If a weight of the decoder is not a number.
    """

    def __init__(self, decoder: nn.Module, choice: WordChoice, vocab_size: int) -> None:
        broken = [name for name, weight in decoder.named_parameters() if bool(weight.isnan().any())]
        if broken:
            raise UsageError(f"the decoder's weights hold nan, first in {broken[0]}: its training has failed")
        self._choice = choice
        ends = [word for word in choice.eos_token_ids if 0 <= word < vocab_size]
        self._ends = torch.tensor(ends, dtype=torch.long, device=next(decoder.parameters()).device)

    def begin(self, latents: Tensor) -> Any:
        """The state before the first word, of any type."""
        raise NotImplementedError

    def advance(self, words: Tensor, state: Any) -> tuple[Tensor, Any]:
        """What the output layer makes logits of, `(rows, width)`, and the state, both after `words` `(rows,)`."""
        raise NotImplementedError

    def keep(self, state: Any, rows: Tensor) -> Any:
        """The state of some of the rows."""
        raise NotImplementedError

    def logits(self, features: Tensor) -> Tensor:
        """`(rows, width)` to `(rows, words)`, a multiple of [`BLOCK_WORDS`] of them: words that do not exist have
        logits of minus infinity."""
        raise NotImplementedError

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
        state = self.begin(latents)
        columns = [words]
        for step in range(choice.max_new_tokens):
            features, state = self.advance(words, state)
            # For all sentences, though those that ended need none: so that no sentence's draws depend on the others.
            uniforms = None
            if choice.do_sample:
                uniforms = torch.rand(batch, 2, generator=generator, device=device, dtype=torch.float32)[rows]
            words = self._choose(features, uniforms, may_end=step >= choice.min_new_tokens)
            columns.append(torch.full_like(columns[0], choice.pad_token_id).index_copy_(0, rows, words))
            ended |= torch.isin(words, self._ends)
            if (step + 1) % steps_per_look == 0:
                going_on = len(ended) - int(ended.sum())
                if going_on == 0:
                    break
                computed = -(-going_on // SIZE_MULTIPLE) * SIZE_MULTIPLE
                if computed < len(rows):
                    kept = ended.int().argsort(stable=True)[:computed]  # those that go on come first
                    rows, words, ended = (values[kept] for values in (rows, words, ended))
                    state = self.keep(state, kept)
        return self._close(torch.stack(columns, dim=1))

    def _choose(self, features: Tensor, uniforms: Tensor | None, *, may_end: bool) -> Tensor:
        """The next words; `(rows, width)` to `(rows,)`, with `uniforms` of shape `(rows, 2)` to draw by."""
        words = []
        for first in range(0, len(features), CHUNK_ROWS):
            logits = self.logits(features[first : first + CHUNK_ROWS]).float()
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


def whole_blocks(weight: Tensor, bias: Tensor) -> FrozenLinear:
    """An output layer `(vocab_size, width)` whose last block of words is filled: with such as have no probability."""
    filling = -len(weight) % BLOCK_WORDS
    bias = nn.functional.pad(bias, (0, filling), value=float("-inf"))
    return FrozenLinear(nn.functional.pad(weight, (0, 0, 0, filling)), bias, CHUNK_ROWS)


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
