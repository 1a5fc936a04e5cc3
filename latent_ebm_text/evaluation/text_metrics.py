"""The metrics of a text model, for the end of a training and for the report of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from torch import Tensor

from latent_ebm_text.data.batching import count_words, ordered_batches
from latent_ebm_text.data.cleaning import column_array
from latent_ebm_text.evaluation.diversity import sample_entropy, self_bleu, training_overlap, unique_rate
from latent_ebm_text.evaluation.estimates import Z_95, Estimate
from latent_ebm_text.evaluation.latents import NAMES, draw_metrics, mutual_information, split_results
from latent_ebm_text.evaluation.text import Collate, SentenceDraws, batch_inputs, draw_latents
from latent_ebm_text.latents.integrals import LogPartition
from latent_ebm_text.latents.rng import derived_generator
from latent_ebm_text.models.scoring import AnomalyScores, estimate_log_partition
from latent_ebm_text.models.sentences import SentenceRows
from latent_ebm_text.models.sharing import share_out

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from latent_ebm_text.evaluation.evaluator import LanguageModel
    from latent_ebm_text.models.modeling_text import LatentEBMForTextGeneration

#: Generated sentences behind FPPL: more would narrow an interval of half a per cent. RPPL takes all.
FPPL_SAMPLES = 10_000
#: Sentences behind the metrics of variety and novelty, most of which depend on the number.
MAX_SAMPLES = 2000
#: Weights per sentence behind log p(x), without annealing, and annealed walks.
_NUM_WEIGHTS, _NUM_WALKS = 256, 16
_UNIT = "sentence (its end counted)"
_PER_WORD = (
    "per word: exp of the nats over the number of words between white space, the end of a sentence counted as one, "
    "whatever the tokens; comparable between tokenizers"
)


# -------- at the end of a training


def evaluate_likelihoods(
    model: LatentEBMForTextGeneration, dataset: Any, collate: Collate, **options: Any
) -> dict[str, Any]:
    """How well the model explains sentences through their own latents and through latents of the prior.

    Args:
        model: The model; dropout is off while this runs.
        dataset: The sentences.
        collate: Makes a batch of rows.
        **options: Options of [`~latent_ebm_text.evaluation.text.draw_latents`].

    Returns:
        The metrics as `results.json` holds them: those of [`~latent_ebm_text.evaluation.latents.draw_metrics`] with
        value, interval, n, name and definition; `latents`, the plain numbers that describe the latents; and
        `tokens_per_sentence`. The reconstruction NLL is the "NLL" of the paper's Table 2.
    """
    draws = draw_latents(model, dataset, collate, **options)
    results = split_results(draw_metrics(draws, _UNIT), len(draws.lengths))
    return {**results, "tokens_per_sentence": float(draws.lengths.mean())}


@torch.no_grad()
def encoder_information(
    model: LatentEBMForTextGeneration,
    dataset: Any,
    collate: Collate,
    *,
    log_partition: LogPartition,
    batch_size: int,
    seed: int,
    accelerator: Accelerator | None = None,
) -> Estimate:
    """The information that a draw of the encoder carries about a sentence, `E[log q(z | x) - log p(z)]` in nats.

    Args:
        model: A model with an encoder.
        dataset: Rows with `input_ids` and `length`.
        collate: Makes a batch of rows.
        log_partition: log Z of the model's prior.
        batch_size: Sentences a batch.
        seed: Seed of the draws.
        accelerator: The processes that share the batches, all of which call this; this one alone by default.
    """
    encoder = model.encoder
    assert encoder is not None
    batches = ordered_batches(column_array(dataset, "length"), batch_size)

    def rate(number: int) -> Tensor:
        proposal = encoder.propose(batch_inputs(model, dataset, collate, batches[number]))
        z = proposal.sample(derived_generator(seed, "information", number, device=model.device))
        log_prior = model.prior.log_prob(z.to(model.decoder.latent_dtype), log_partition.value)
        return (proposal.log_prob(z) - log_prior).double()

    return Estimate.of_mean(
        torch.cat(share_out(rate, len(batches), accelerator)),
        f"log q(z | x) - log p(z) in nats per {_UNIT}, with z from the encoder q and the learned prior p, whose log Z "
        "is estimated by annealed importance sampling",
    )


def sample_statistics(texts: Sequence[str], reference_lengths: npt.ArrayLike) -> dict[str, Any]:
    """Statistics of generated sentences.

    Args:
        texts: Generated sentences, words separated by spaces.
        reference_lengths: Numbers of words of real sentences, the end counted.

    Returns:
        `unique_rate` (distinct sentences over all), `mean_length`, `real_mean_length` (words, the end counted), `n`.
    """
    return {
        "n": len(texts),
        "unique_rate": len(set(texts)) / len(texts),
        "mean_length": float(np.mean([count_words(text) for text in texts])),
        "real_mean_length": float(np.asarray(reference_lengths).mean()),
    }


# -------- in a report, by name


def reconstruction_metrics(
    model: LatentEBMForTextGeneration, dataset: Any, collate: Collate, **options: Any
) -> tuple[dict[str, Estimate], SentenceDraws]:
    """Reconstruction and prior NLL, active units, standard deviations and energies of posterior and prior draws.

    Args:
        model: The model.
        dataset: The sentences.
        collate: Makes a batch of rows.
        **options: Options of [`~latent_ebm_text.evaluation.text.draw_latents`].

    Returns:
        The metrics, and the draws behind them.
    """
    draws = draw_latents(model, dataset, collate, **options, progress=partial(tqdm, desc="reconstruction"))
    return {NAMES[key]: metric for key, metric in draw_metrics(draws, _UNIT).items()}, draws


def marginal_likelihood_metrics(
    model: LatentEBMForTextGeneration,
    dataset: Any,
    *,
    num_sentences: int,
    num_samples: int | None,
    num_levels: int,
    batch_size: int,
    seed: int,
    accelerator: Accelerator | None = None,
) -> tuple[dict[str, Estimate], AnomalyScores, np.ndarray]:
    """log p(x) of random sentences by importance weights, annealed or not, as NLL and as perplexity, and log Z.

    The processes of `accelerator`, all of which call this, share the batches.

    Returns:
        The metrics, the scores of every sentence, and which sentences of the dataset they are.
    """
    num_samples = num_samples or (_NUM_WALKS if num_levels else _NUM_WEIGHTS)
    lengths = column_array(dataset, "length")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(lengths))[:num_sentences])
    log_partition = None
    if model.config.latent_dim > 0:
        generator = derived_generator(seed, "log partition", device=model.device)
        estimate = partial(estimate_log_partition, model, num_chains=1024, generator=generator)
        log_partition = share_out(lambda _: estimate(), 1, accelerator)[0]
    scores = model.score(
        SentenceRows.of_columns(dataset[chosen]),
        marginal="ais" if num_levels else "importance",
        num_draws=1,
        num_samples=num_samples,
        num_levels=max(1, num_levels),
        log_partition=log_partition,
        batch_size=batch_size,
        generator=derived_generator(seed, "marginal likelihood", device=model.device),
        progress=True,
        accelerator=accelerator,
    )
    nll = scores.nll
    assert nll is not None
    assert scores.nll_standard_error is not None
    warning = None
    if not scores.reliable:
        warning = f"UNRELIABLE: effective sample size below 5 for {100 * scores.unreliable_share:.0f} % of sentences"
        if log_partition is not None and not log_partition.reliable:
            warning += f", log Z between {log_partition.lower:.1f} and {log_partition.upper:.1f}"
    method = "exact"
    if log_partition is not None:
        walks = f"annealed over {num_levels} levels" if num_levels else "of draws from a Laplace approximation"
        method = f"{num_samples} importance weights {walks}, a bound from above"
    metrics = {
        "marginal NLL": Estimate.of_mean(
            nll,
            f"-log p(x) in nats per sentence of random test sentences, {method}",
            warning=warning,
            unreliable_share=scores.unreliable_share,
            mean_standard_error_per_sentence=float(scores.nll_standard_error.mean()),
        ),
        "marginal perplexity": Estimate.of_bootstrap(
            nll,
            "exp of the marginal NLLs over the number of tokens, the ends of sentences counted",
            tokens=lengths[chosen],
            seed=seed,
            warning=warning,
        ),
    }
    if "words" in dataset.column_names:
        words = column_array(dataset, "words")[chosen]
        metrics["marginal perplexity per word"] = Estimate.of_bootstrap(
            nll, f"marginal perplexity {_PER_WORD}", tokens=words, seed=seed, warning=warning
        )
    if log_partition is not None:
        spread = Z_95 * log_partition.standard_error
        metrics["log Z"] = Estimate(
            log_partition.value,
            (log_partition.lower - spread, max(log_partition.upper, log_partition.lower + spread)),
            log_partition.num_chains,
            "log of the prior's partition function against N(0, I) by annealed importance sampling, from below by "
            "forward walks and from above by walks back from long chains",
        )
    return metrics, scores, chosen


def exact_metrics(log_probs: Sequence[float]) -> dict[str, Estimate]:
    """The NLL of sentences under a corpus that knows its own probabilities: no model can have a lower mean."""
    nll = -torch.tensor(log_probs, dtype=torch.float64)
    return {
        "exact NLL": Estimate.of_mean(nll, "exact -log p(x) of the same sentences under the corpus itself, in nats")
    }


def information_metrics(
    model: LatentEBMForTextGeneration,
    dataset: Any,
    collate: Collate,
    *,
    num_sentences: int,
    seed: int,
    accelerator: Accelerator | None = None,
) -> dict[str, Estimate]:
    """The mutual information of sentences and their latents, from random sentences; shared out among processes."""
    indices = np.sort(np.random.default_rng(seed).permutation(len(dataset))[:num_sentences])
    inputs = batch_inputs(model, dataset, collate, indices)
    generator = derived_generator(seed, "information", device=model.device)
    (latents,) = share_out(lambda _: model.sample_posterior(inputs, generator=generator).latents, 1, accelerator)
    weight = 1.0 if model.encoder is not None else model.config.likelihood_weight
    likelihood = model.decoder.likelihood(inputs)
    found = mutual_information(likelihood, latents, likelihood_weight=weight, accelerator=accelerator)
    return {"mutual information": found}


def sample_metrics(
    samples: Sequence[str], train_texts: Sequence[str], test_texts: Sequence[str], *, seed: int
) -> dict[str, Estimate]:
    """How varied and how new generated sentences are, beside real text where that helps to read a metric.

    Args:
        samples: Generated sentences, at least 4. With fewer than 200 of these or of `test_texts` self-BLEU is against
            fewer references than 99, and says so.
        train_texts: The training sentences.
        test_texts: Real sentences that were not trained on, at least 4.
        seed: Seed of the sub-samples.
    """
    few, real = samples[:MAX_SAMPLES], list(test_texts)
    some_real = [real[index] for index in np.random.default_rng(seed).permutation(len(real))[: len(few)]]
    references = min(99, min(len(few), len(some_real)) // 2 - 1)
    overlap = training_overlap(few, train_texts, some_real)

    def beside_real(name: str, measure: Callable[[Sequence[str]], Estimate]) -> dict[str, Estimate]:
        return {name: measure(few), f"{name}, real": measure(some_real)}

    return {
        "unique rate": unique_rate(few),
        **beside_real("mean length", partial(_mean_length, seed=seed)),
        **beside_real("self-BLEU", partial(self_bleu, num_references=references, seed=seed)),
        **beside_real("bigram entropy", partial(sample_entropy, order=2)),
        "training overlap": overlap.samples["mean_overlap"],
        "training overlap, real": overlap.held_out["mean_overlap"],
        "copy rate": overlap.samples["copy_rate"],
        "copy rate, real": overlap.held_out["copy_rate"],
    }


def _mean_length(texts: Sequence[str], seed: int) -> Estimate:
    lengths = [count_words(text) for text in texts]
    return Estimate.of_bootstrap(lengths, "mean number of words of a sentence, its end counted", seed=seed)


def perplexity_metrics(
    samples: Sequence[str],
    lm: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    test_texts: Sequence[str],
    *,
    cache_dir: str | Path,
    rppl_lm: LanguageModel | None = None,
) -> tuple[dict[str, Estimate], dict[str, np.ndarray]]:
    """The evaluator's own perplexity of real test text, FPPL and RPPL; per token and per word.

    Args:
        samples: Generated sentences.
        lm: The evaluator.
        tokenizer: The tokenizer of the real training text.
        test_texts: Real sentences that were not trained on.
        cache_dir: Where the language model of the samples is kept.
        rppl_lm: Another evaluator for RPPL, such as a quicker one; its own perplexity then stands beside the other's.

    Returns:
        The metrics, and the nats and words of each sentence behind FPPL and RPPL, by which two runs can be compared.
    """
    from latent_ebm_text.evaluation.perplexity import forward_perplexity, reverse_perplexity

    rppl_lm = lm if rppl_lm is None else rppl_lm
    forward = forward_perplexity(samples[:FPPL_SAMPLES], lm, tokenizer, real_test=test_texts, progress=True)
    reverse = reverse_perplexity(samples, rppl_lm, tokenizer, real_test=test_texts, cache_dir=cache_dir, progress=True)
    metrics = {}

    def add(name: str, found: dict[str, Any], prefix: str, n: int, definition: str, **details: Any) -> None:
        for suffix, meaning in (("", definition), ("_per_word", f"{name} {_PER_WORD}")):
            value, interval = found[f"{prefix}perplexity{suffix}"], found[f"{prefix}interval_95{suffix}"]
            metrics[name + suffix.replace("_", " ")] = Estimate(value, tuple(interval), n, meaning, details=details)

    for found in (forward, reverse):
        add(
            f"{found['evaluator']}'s test perplexity",
            found,
            "evaluator_test_",
            len(test_texts),
            f"perplexity of real test text under the language model {found['evaluator']!r} trained on real training "
            f"text, seed {found['evaluator_seed']}: what real text would have as FPPL and as RPPL",
        )
    for name, found in (("FPPL", forward), ("RPPL", reverse)):
        definition = f"{found['definition']}; evaluator {found['evaluator']!r}"
        details = {"warning": found.get("warning"), "evaluator": found["evaluator"]}
        add(name, found, "", found["n_sentences"], definition, **details)
    per_sentence = {
        "fppl_nll": np.array(forward["sentence_nll"]),
        "fppl_words": np.array([count_words(text) for text in samples[:FPPL_SAMPLES]]),
        "rppl_nll": np.array(reverse["sentence_nll"]),
        "rppl_words": np.array([count_words(text) for text in test_texts]),
    }
    return metrics, per_sentence
