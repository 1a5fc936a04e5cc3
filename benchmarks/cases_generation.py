"""Sentences per second, against a GPT-2 of `transformers` with as many parameters.

Both have random weights, the same vocabulary, and start from the beginning token alone; both draw every word from the
whole distribution, by their public `generate`. The bias of the end token decides the lengths, in both alike: so low
that no sentence ends before its last word, or such that one word in 22 ends a sentence. Ours includes the prior's
chain.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator

import torch
from sizes import Sizes
from timing import Disagreement, in_turn, ratios, row, table
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from latent_ebm_text import LatentEBMForTextGeneration, LatentEBMTextConfig

HEADER = (
    "sentences", "parameters: GPT-2 / ours", "words a sentence: GPT-2 / ours", "GPT-2, sentences/s (max / median)",
    "ours, sentences/s (max / median)", "ours / GPT-2 (max / median)",
)  # fmt: skip


def generation(sizes: Sizes, repeats: int) -> Iterator[str]:
    """Ancestral sampling of a batch of sentences, of equal lengths and with natural ends; GPT-2 with its cache."""
    ours, gpt2 = sizes.generation_model(), _gpt2(sizes)
    yield from table(HEADER)
    for name, end_rate, longest in (
        (f"{sizes.generation_tokens} words each", 0.0, sizes.generation_tokens),
        (f"natural ends, at most {2 * sizes.generation_tokens} words", 1 / 22, 2 * sizes.generation_tokens),
    ):
        for bias in (ours.decoder.output.bias, gpt2.lm_head.bias):
            _set_end_rate(bias, ours.config.eos_token_id, end_rate)
        tasks = [_generate_gpt2(gpt2, sizes.batch, longest), _generate_ours(ours, sizes.batch, longest)]
        words = [_mean_words(task(), ours.config.eos_token_id) for task in tasks]  # also the warm-up
        if end_rate == 0 and words != [longest, longest]:
            raise Disagreement(f"{name}: GPT-2 made {words[0]:.1f} words a sentence, ours {words[1]:.1f}")
        theirs, mine = in_turn(*tasks, repeats=repeats)
        yield row(
            [
                f"{sizes.batch} of {name}",
                " / ".join(f"{sum(p.numel() for p in model.parameters()):,}" for model in (gpt2, ours)),
                " / ".join(f"{mean:.1f}" for mean in words),
                *(f"{sizes.batch / min(t):,.0f} / {sizes.batch / statistics.median(t):,.0f}" for t in (theirs, mine)),
                ratios(theirs, mine),
            ]
        )


def _gpt2(sizes: Sizes) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    special = LatentEBMTextConfig()
    config = GPT2Config(
        vocab_size=sizes.vocab,
        n_positions=2 * sizes.generation_tokens + 1,
        n_embd=sizes.gpt2_width,
        n_layer=sizes.gpt2_layers,
        n_head=max(1, sizes.gpt2_width // 32),
        bos_token_id=special.bos_token_id,
        eos_token_id=special.eos_token_id,
        pad_token_id=special.pad_token_id,
    )
    model = GPT2LMHeadModel(config).eval()
    model.lm_head.bias = nn.Parameter(torch.zeros(sizes.vocab))  # GPT-2 has none; it costs next to nothing
    return model.to(sizes.device)


@torch.no_grad()
def _set_end_rate(bias: Tensor, end: int, rate: float) -> None:
    """Makes a word end the sentence with probability `rate`, where the other logits are near zero."""
    bias[end] = math.log(rate / (1 - rate) * (len(bias) - 1)) if rate > 0 else -1e4


def _generate_ours(model: LatentEBMForTextGeneration, batch: int, longest: int) -> Callable[[], Tensor]:
    return lambda: model.generate(num_samples=batch, max_new_tokens=longest)


def _generate_gpt2(model: GPT2LMHeadModel, batch: int, longest: int) -> Callable[[], Tensor]:
    beginnings = torch.full((batch, 1), model.config.bos_token_id, device=model.device)
    mask = torch.ones_like(beginnings)
    return lambda: model.generate(
        beginnings, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=longest, use_cache=True
    )


def _mean_words(ids: Tensor, end: int) -> float:
    """Words a sentence, its end counted; `ids` of shape `(batch, length)` with the beginning token."""
    ended_before = (ids[:, 1:] == end).cumsum(dim=1).roll(1, dims=1)
    ended_before[:, 0] = 0
    return float((ended_before == 0).sum(dim=1).float().mean())
