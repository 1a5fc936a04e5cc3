"""Evaluation of a text model: reconstruction and prior NLL, use of the latent, statistics of samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate.utils import tqdm
from torch import Tensor

from latent_ebm_text.data.batching import count_words, ordered_batches
from latent_ebm_text.evaluation.chains import ChainReport, run_chain_report
from latent_ebm_text.evaluation.convergence import superchain_ids
from latent_ebm_text.evaluation.estimates import Estimate
from latent_ebm_text.evaluation.latents import compare_latents
from latent_ebm_text.evaluation.mode import evaluation_mode
from latent_ebm_text.streams import stream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from latent_ebm_text.modeling_text import LatentEBMForTextGeneration


@dataclass(frozen=True)
class LatentDraws:
    """Posterior and prior draws for sentences, and what the decoder says of the sentences through them.

    Attributes:
        lengths: `(n,)` predicted tokens of each sentence, ascending.
        words: `(n,)` words of each, its end counted; the same as `lengths` where tokens are words.
        first: `(n, latent_dim)`, from the model's own posterior sampler.
        second: The same from independent chains.
        prior: `(n, latent_dim)`, from the model's own prior sampler.
        posterior_energy: `(n,)`, of `first`.
        prior_energy: `(n,)`, of `prior`.
        reconstruction_nll: `(n,)`, `-log p(x | z)` in nats, the end counted, averaged over `first` and `second`.
        prior_nll: `(n,)`, the same with `prior`.
    """

    lengths: np.ndarray
    words: np.ndarray
    first: Tensor
    second: Tensor
    prior: Tensor
    posterior_energy: Tensor
    prior_energy: Tensor
    reconstruction_nll: Tensor
    prior_nll: Tensor


@torch.no_grad()
def draw_latents(
    model: LatentEBMForTextGeneration,
    dataset: Any,
    collate: Callable[[Sequence[dict[str, Any]]], dict[str, Tensor]],
    *,
    batch_size: int = 256,
    max_sentences: int | None = None,
    seed: int = 0,
    progress: Callable[[list[Any]], Any] = iter,
) -> LatentDraws:
    """Draws two posterior latents and one prior latent for every sentence.

    Args:
        model: The model; dropout is off while this runs.
        dataset: Rows with `input_ids`, `length`, and `words` where tokens are not words.
        collate: Makes a batch of rows.
        batch_size: Sentences a batch.
        max_sentences: Use the first so many only.
        seed: Of the chains.
        progress: Wraps the list of batches, to show progress.
    """
    lengths = np.asarray(dataset["length"][:max_sentences])
    words = np.asarray(dataset["words" if "words" in dataset.column_names else "length"][:max_sentences])
    batches = ordered_batches(lengths, batch_size)
    parts: list[tuple[Tensor, ...]] = []
    with evaluation_mode(model):
        for number, indices in enumerate(progress(batches)):
            rows = dataset[indices]["input_ids"]
            batch = collate([{"input_ids": ids} for ids in rows])
            inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
            generator = stream(seed, "evaluation", number, device=model.device)
            likelihood = model.decoder.likelihood(inputs)
            first, second = (model.sample_posterior(inputs, generator=generator).latents for _ in range(2))
            prior = model.sample_prior(len(rows), generator=generator).latents
            reconstruction = -(likelihood(first) + likelihood(second)) / 2
            parts.append((first, second, prior, reconstruction, -likelihood(prior)))
    first, second, prior, reconstruction, prior_nll = (torch.cat(part) for part in zip(*parts, strict=True))
    return LatentDraws(
        lengths=lengths[np.concatenate(batches)],
        words=words[np.concatenate(batches)],
        first=first,
        second=second,
        prior=prior,
        posterior_energy=model.prior.energy(first),
        prior_energy=model.prior.energy(prior),
        reconstruction_nll=reconstruction,
        prior_nll=prior_nll,
    )


def evaluate_likelihoods(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """How well the model explains sentences through their own latents, and through latents of the prior.

    - `reconstruction_nll`: `-log p(x | z)` in nats per sentence, the end counted, with z drawn by the model's own
      posterior sampler (two independent chains per sentence, averaged). The "NLL" of the paper's Table 2.
    - `prior_nll`: the same with z drawn from the prior. The difference is what the latent tells about the sentence.
    - `latents`: a [`~latent_ebm_text.evaluation.latents.LatentReport`].

    Takes the arguments of [`draw_latents`].

    Returns:
        JSON-able figures; NLLs with standard error, number of sentences and 95 % interval.
    """
    draws = draw_latents(*args, **kwargs)
    report = compare_latents(draws.first, draws.second, draws.prior, draws.posterior_energy, draws.prior_energy)
    return {
        "reconstruction_nll": Estimate.of_mean(draws.reconstruction_nll).to_dict(),
        "prior_nll": Estimate.of_mean(draws.prior_nll).to_dict(),
        "tokens_per_sentence": float(draws.lengths.mean()),
        "latents": report.to_dict(),
    }


def generate_texts(
    model: LatentEBMForTextGeneration,
    tokenizer: PreTrainedTokenizerBase,
    num_samples: int,
    *,
    batch_size: int = 1024,
    seed: int = 0,
    progress: bool = False,
    **kwargs: Any,
) -> list[str]:
    """Sentences generated by the model, by ancestral sampling unless `kwargs` of `generate` say otherwise.

    Args:
        model: The model; dropout is off while this runs.
        tokenizer: Makes text of its ids.
        num_samples: How many sentences.
        batch_size: Sentences that one call of `generate` makes; with the seed it decides which ones.
        seed: Of the latents and the words.
        progress: Whether to show how far it is.
        **kwargs: Options of `generate`.
    """
    texts: list[str] = []
    with evaluation_mode(model):
        for number in tqdm(range(-(-num_samples // batch_size)), desc="generating", disable=not progress):
            size = min(batch_size, num_samples - len(texts))
            generator = stream(seed, "samples", number, device=model.device)
            ids = model.generate(num_samples=size, generator=generator, **kwargs)
            texts += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return texts


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
    """The chain report of the model's prior: its own sampler, from N(0, I), for many times its length.

    Args:
        model: The model, with an energy-based prior.
        tokenizer: Turns what is decoded greedily from the same chains at every stage into sentences.
        num_chains: Number of chains, a multiple of `superchains`.
        superchains: Groups of chains, each from one start.
        repetitions: How many times the training chain is repeated.
        seed: Of the starts and of the noise.
        progress: Wraps the list of repetitions, to show progress.

    Raises:
        UsageError: As `run_chain_report`.
    """
    superchain_ids(num_chains, superchains)  # refuses what does not divide
    generator = stream(seed, "chain report", device=model.device)

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


def sample_statistics(texts: Sequence[str], reference_lengths: npt.ArrayLike) -> dict[str, Any]:
    """Statistics of generated sentences.

    Args:
        texts: Generated sentences, words separated by spaces.
        reference_lengths: Words of real sentences, the end counted.

    Returns:
        `unique_rate` (distinct sentences over all), `mean_length`, `real_mean_length` (words, the end counted), `n`.
    """
    return {
        "n": len(texts),
        "unique_rate": len(set(texts)) / len(texts),
        "mean_length": float(np.mean([count_words(text) for text in texts])),
        "real_mean_length": float(np.asarray(reference_lengths).mean()),
    }
