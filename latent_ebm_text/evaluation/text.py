"""What a text model draws: latents of sentences, sentences, and long chains of its prior."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from torch import Tensor

from latent_ebm_text.data.batching import ordered_batches
from latent_ebm_text.evaluation.chains import ChainReport, run_chain_report
from latent_ebm_text.evaluation.convergence import superchain_ids
from latent_ebm_text.evaluation.latents import LatentDraws, latents_of_others
from latent_ebm_text.latents.rng import derived_generator
from latent_ebm_text.models.sharing import share_out
from latent_ebm_text.networks.dropout import evaluation_mode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from latent_ebm_text.models.modeling_text import LatentEBMForTextGeneration

#: Makes padded batches of rows.
Collate = Callable[[Sequence[dict[str, Any]]], dict[str, Tensor]]


@dataclass(frozen=True)
class SentenceDraws(LatentDraws):
    """Posterior and prior draws for sentences, in the order of their length.

    Attributes:
        lengths: `(n,)`, number of predicted tokens of each sentence, ascending.
        words: `(n,)`, number of words of each sentence, its end counted; the same as `lengths` where tokens are words.
    """

    lengths: np.ndarray
    words: np.ndarray


@torch.no_grad()
def draw_latents(
    model: LatentEBMForTextGeneration,
    dataset: Any,
    collate: Collate,
    *,
    batch_size: int = 256,
    max_sentences: int | None = None,
    seed: int = 0,
    progress: Callable[[range], Any] = iter,
    accelerator: Accelerator | None = None,
) -> SentenceDraws:
    """Draws two posterior latents and one prior latent for every sentence, and the NLLs given these.

    Args:
        model: The model; dropout is off while this runs.
        dataset: Rows with `input_ids`, `length`, and `words` where tokens are not words.
        collate: Makes a batch of rows.
        batch_size: Sentences a batch.
        max_sentences: Number of sentences to use, from the first on; all by default.
        seed: Seed of the chains.
        progress: Wraps the range of batches, to show progress.
        accelerator: The processes that share the batches, all of which call this; this one alone by default.
    """
    lengths = np.asarray(dataset["length"][:max_sentences])
    words = np.asarray(dataset["words" if "words" in dataset.column_names else "length"][:max_sentences])
    batches = ordered_batches(lengths, batch_size)

    def draw(number: int) -> tuple[Tensor, ...]:
        inputs = batch_inputs(model, dataset, collate, batches[number])
        generator = derived_generator(seed, "evaluation", number, device=model.device)
        likelihood = model.decoder.likelihood(inputs)
        first, second = (model.sample_posterior(inputs, generator=generator).latents for _ in range(2))
        prior = model.sample_prior(len(batches[number]), generator=generator).latents
        reconstruction = -(likelihood(first) + likelihood(second)) / 2
        return first, second, prior, reconstruction, -likelihood(prior)

    with evaluation_mode(model):
        parts = share_out(draw, len(batches), accelerator, progress=progress)
        first, second, prior, reconstruction, prior_nll = (torch.cat(part) for part in zip(*parts, strict=True))
        other_nll, averaged_nll = prior_nll, reconstruction
        if model.config.latent_dim > 0:
            others = latents_of_others(first).split([len(indices) for indices in batches], dim=1)

            def exchange(number: int) -> tuple[Tensor, Tensor]:
                inputs = batch_inputs(model, dataset, collate, batches[number])
                other = model.decoder.likelihood(inputs)(others[number][0])
                return -other, -model.decoder.averaged_log_prob(inputs, others[number])

            parts = share_out(exchange, len(batches), accelerator)
            other_nll, averaged_nll = (torch.cat(part) for part in zip(*parts, strict=True))
    order = np.concatenate(batches)
    return SentenceDraws(
        first=first,
        second=second,
        prior=prior,
        posterior_energy=model.prior.energy(first),
        prior_energy=model.prior.energy(prior),
        reconstruction_nll=reconstruction,
        prior_nll=prior_nll,
        other_nll=other_nll,
        averaged_nll=averaged_nll,
        lengths=lengths[order],
        words=words[order],
    )


def batch_inputs(
    model: LatentEBMForTextGeneration, dataset: Any, collate: Collate, indices: np.ndarray
) -> dict[str, Tensor]:
    """What decoder and encoder read of some rows of a dataset, on the model's device."""
    columns = dataset[indices]
    names = [name for name in ("input_ids", "sentence_embeddings") if name in columns]
    rows = zip(*(columns[name] for name in names), strict=True)
    batch = collate([dict(zip(names, row, strict=True)) for row in rows])
    return {name: value.to(model.device) for name, value in batch.items() if name != "labels"}


def generate_texts(
    model: LatentEBMForTextGeneration,
    tokenizer: PreTrainedTokenizerBase,
    num_samples: int,
    *,
    batch_size: int = 1024,
    seed: int = 0,
    progress: bool = False,
    accelerator: Accelerator | None = None,
    **kwargs: Any,
) -> list[str]:
    """Sentences generated by the model, by ancestral sampling unless options of `generate` say otherwise.

    Args:
        model: The model; dropout is off while this runs.
        tokenizer: The tokenizer that decodes the generated ids.
        num_samples: Number of sentences.
        batch_size: Number of sentences generated together; it decides, with the seed, which sentences come out.
        seed: Seed of the latents and the tokens.
        progress: Whether to show a progress bar.
        accelerator: The processes that share the batches, all of which call this; this one alone by default.
        **kwargs: Options of `generate`.
    """

    def generate(number: int) -> list[str]:
        size = min(batch_size, num_samples - number * batch_size)
        generator = derived_generator(seed, "samples", number, device=model.device)
        ids = model.generate(num_samples=size, generator=generator, **kwargs)
        return tokenizer.batch_decode(ids, skip_special_tokens=True)

    shown = partial(tqdm, desc="generating", disable=not progress)
    with evaluation_mode(model):
        batches = share_out(generate, -(-num_samples // batch_size), accelerator, progress=shown)
    return [text for batch in batches for text in batch]


def report_prior_chains(
    model: LatentEBMForTextGeneration,
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_chains: int = 256,
    superchains: int = 16,
    repetitions: int = 100,
    seed: int = 0,
    progress: Callable[[list[int]], Any] = iter,
) -> ChainReport:
    """The chain report of the model's prior: its own sampler, started from N(0, I) and repeated many times.

    Args:
        model: The model, with an energy-based prior.
        tokenizer: The tokenizer that decodes the sentences of the same chains at every stage, which are chosen
            greedily.
        num_chains: Number of chains, a multiple of `superchains`.
        superchains: Number of groups of chains; the chains of a group start from one point.
        repetitions: Number of times that the training chain is repeated.
        seed: Seed of the starts and of the noise.
        progress: Wraps the list of repetitions, to show progress.

    Raises:
        UsageError: As `run_chain_report`.
    """
    superchain_ids(num_chains, superchains)  # refuses superchains of unequal size
    generator = derived_generator(seed, "chain report", device=model.device)

    def decode(latents: Tensor) -> list[str]:
        return tokenizer.batch_decode(model.generate(latents=latents, do_sample=False), skip_special_tokens=True)

    return run_chain_report(
        model.prior,
        model.prior_sampler,
        model.sample_reference(superchains, generator).repeat_interleave(num_chains // superchains, dim=0),
        multiples=sorted({m for m in (1, 2, 5, 10, 40, 100) if m < repetitions} | {repetitions}),
        superchains=superchains,
        decode=decode,
        generator=generator,
        progress=progress,
    )
