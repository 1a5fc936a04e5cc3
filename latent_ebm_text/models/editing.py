"""Edits sentences: chains from their posteriors towards attributes, decoded, read again and ranked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import tqdm
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers import LogitsProcessor, LogitsProcessorList

from latent_ebm_text.errors import UsageError, require_in_interval, require_positive
from latent_ebm_text.latents import Control, ControlledDensity
from latent_ebm_text.latents.samplers import Sampler
from latent_ebm_text.models.inference import LatentInferenceModel
from latent_ebm_text.networks.dropout import evaluation_mode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


#: Default exponents of the likelihood and of `p(c | z)`, and steps of a chain.
CONTENT, EDIT_STRENGTH, NUM_STEPS = 1.0, 16.0, 20
#: Default bonus of a sentence's own tokens in nats, chains, candidates, and temperature of the tokens. A chain costs
#: several times as much as the decoding of its end.
COPY, NUM_CHAINS, NUM_CANDIDATES, TEMPERATURE = 2.0, 8, 32, 0.5


@dataclass(frozen=True)
class Edits:
    """Candidates for edits of sentences, the best first.

    Attributes:
        sequences: `(n, num_candidates, length)` token ids, beginning with the beginning token.
        latents: `(n, num_candidates, latent_dim)`, where the chains ended.
        scores: `(n, num_candidates)`, by which the candidates are ranked: the log of the probability that a candidate
            has the attributes, times its similarity with the sentence. Both are read from the candidate itself.
    """

    sequences: Tensor
    latents: Tensor
    scores: Tensor

    @property
    def best(self) -> Tensor:
        """The best candidate of every sentence, `(n, length)` token ids."""
        return self.sequences[:, 0]


@torch.no_grad()
def edit_rows(
    model: LatentInferenceModel,
    rows: Any,
    controls: Sequence[Control],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    content: float = CONTENT,
    copy: float = COPY,
    num_chains: int = NUM_CHAINS,
    num_candidates: int = NUM_CANDIDATES,
    num_steps: int = NUM_STEPS,
    batch_size: int = 128,
    sampler: Sampler | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
    **options: Any,
) -> Edits:
    """Edits sentences that were read; see [`~latent_ebm_text.models.sentences.SentenceModel.edit`].

    Args:
        model: The text model.
        rows: The sentences, as its `_read` returns them.
        controls: The requirements.
        tokenizer: The tokenizer, which a model needs whose encoder reads sentence embeddings.
        content: `a`, the exponent of the likelihood, beside the model's own likelihood weight.
        copy: What each token of the sentence gains at its decoding, in nats, until it has been used once: a cache
            (Grave et al., 2017), for words that a latent does not tell. 0 leaves decoding to the latent alone.
        num_chains: Chains per sentence.
        num_candidates: Candidates per sentence; where a chain ended is decoded several times if these are more.
        num_steps: Steps of a chain, of the size of the model's posterior sampler.
        batch_size: Candidates per batch.
        sampler: A sampler in place of the model's own.
        generator: Random number generator of the chains, and of the tokens if they are sampled.
        progress: Whether to show a progress bar.
        **options: Options of `generate`.
    """
    require_positive("content", content)
    require_in_interval("copy", copy, 0.0, math.inf)
    for name, value in (("num_chains", num_chains), ("num_candidates", num_candidates), ("num_steps", num_steps)):
        if value < 1:
            raise UsageError(f"{name} must be a positive integer, got {value}")
    if options.get("num_return_sequences", 1) != 1 or options.get("return_dict_in_generate"):
        raise UsageError(
            "edit decodes each candidate once: leave out num_return_sequences and return_dict_in_generate"
        )
    if sampler is None:
        sampler = replace(model.posterior_sampler, num_steps=num_steps)  # type: ignore[type-var]  # a dataclass
    fitting = [control.to(model.device, model.decoder.latent_dtype) for control in controls]
    options = {"do_sample": True, **options}
    if options["do_sample"]:
        options = {"temperature": TEMPERATURE, **options}
    chosen, num_chains = options.pop("logits_processor", []), min(num_chains, num_candidates)
    chain_of = torch.arange(num_candidates) % num_chains
    origins, _ = _contents(model, rows, batch_size, generator)
    ids: list[Tensor] = [torch.empty(0)] * len(rows)
    latents = torch.empty(len(rows), num_candidates, model.config.latent_dim)
    scores = torch.empty(len(rows), num_candidates)
    with evaluation_mode(model):
        per_batch = max(1, batch_size // num_candidates)
        for indices in tqdm(model._batches(rows, per_batch), desc="editing", disable=not progress):
            inputs = model._collate(rows, indices.repeat_interleave(num_chains))
            # 1. Climb from draws of the posterior towards the attributes.
            start = model.sample_posterior(inputs, generator=generator).latents
            density = ControlledDensity(model.posterior(inputs, content * model.config.likelihood_weight), fitting)
            with model._full_precision():
                ends = sampler.sample(start, density, generator=generator).latents
            # 2. Decode, with a bonus for the sentence's own tokens.
            rows_of = (num_chains * torch.arange(len(indices))[:, None] + chain_of).flatten().to(ends.device)
            ends = ends[rows_of]
            bonus = [_Copy(inputs["input_ids"][rows_of], copy, model.config)] if copy else []
            decoded = model.generate(
                latents=ends, generator=generator, logits_processor=LogitsProcessorList([*bonus, *chosen]), **options
            )
            # 3. Judge every candidate by what the model reads from it: what a latent promises and what its decoding
            # says differ.
            reread = model._read(_without_padding(decoded, model.config), tokenizer=tokenizer)
            contents, read = _contents(model, reread, batch_size, generator)
            likeness = cosine_similarity(contents, origins[indices].repeat_interleave(num_candidates, dim=0))
            score = likeness.clamp(min=1e-6).log().to(ends)
            for control in fitting:
                score = score + control.value_and_score(read.to(ends))[0] / control.weight
            # 4. Rank; equal candidates keep their order.
            order = score.view(-1, num_candidates).argsort(dim=1, descending=True, stable=True)
            latents[indices] = _ranked(ends, order).float().cpu()
            scores[indices] = score.view(-1, num_candidates).gather(1, order).float().cpu()
            for index, candidates in zip(indices.tolist(), _ranked(decoded, order).cpu(), strict=True):
                ids[index] = candidates
    length, pad = max(part.shape[1] for part in ids), model.config.pad_token_id or 0
    sequences = torch.stack([nn.functional.pad(part, (0, length - part.shape[1]), value=pad) for part in ids])
    return Edits(sequences, latents, scores)


def _ranked(rows: Tensor, order: Tensor) -> Tensor:
    """Candidates of several sentences, `(n * num_candidates, size)`, in their order, `(n, num_candidates, size)`."""
    return rows.reshape(*order.shape, -1).gather(1, order[..., None].expand(-1, -1, rows.shape[1]))


def _contents(
    model: LatentInferenceModel, rows: Any, batch_size: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """What sentences are compared by, `(n, width)`, and their latents, `(n, latent_dim)`.

    The latents are the encoder's means, or draws where the model has no encoder. Sentences are compared by the
    embeddings that the encoder reads, if it reads any: an edit changes the latent on purpose.
    """
    if model.encoder is not None:
        latents = model.encoder_proposals(rows, batch_size=batch_size).mean
    else:
        latents = model.posterior_draws(rows, num_draws=1, batch_size=batch_size, generator=generator)[0]
    return (latents if rows.embeddings is None else rows.embeddings), latents


class _Copy(LogitsProcessor):
    """Adds a bonus to the tokens of a sentence, each until it has been used.

    Args:
        input_ids: `(n, length)`, the sentences, one per candidate.
        bonus: The bonus in nats.
        config: The configuration of the model.
    """

    def __init__(self, input_ids: Tensor, bonus: float, config: Any) -> None:
        self._bonus = torch.zeros(len(input_ids), config.vocab_size, device=input_ids.device)
        self._bonus.scatter_(1, input_ids, bonus)
        special = [config.bos_token_id, config.pad_token_id, config.unk_token_id, *_ends(config)]
        self._bonus[:, [token for token in special if token is not None]] = 0.0

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Scores `(n * beams, vocab_size)` with the bonus, given the tokens so far."""
        bonus = self._bonus.repeat_interleave(len(scores) // len(self._bonus), dim=0)
        return scores + bonus.scatter(1, input_ids, 0.0)


def _ends(config: Any) -> list[int]:
    return config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]


def _without_padding(sequences: Tensor, config: Any) -> list[list[int]]:
    """Token ids up to the end token, which is added where a sentence was cut off."""
    ends, rows = _ends(config), []
    for row in sequences.tolist():
        length = next((place for place, token in enumerate(row[1:], start=1) if token in ends), len(row))
        rows.append([*row[:length], ends[0]])
    return rows
