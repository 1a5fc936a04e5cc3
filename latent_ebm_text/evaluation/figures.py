"""The figures of a text model's report, each function one group of them, from the functions that know how."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import tqdm
from torch import Tensor

from latent_ebm_text.data.batching import count_words, ordered_batches
from latent_ebm_text.data.cleaning import column_array
from latent_ebm_text.evaluation.compare import bootstrap_interval
from latent_ebm_text.evaluation.diversity import sample_entropy, self_bleu, training_overlap, unique_rate
from latent_ebm_text.evaluation.estimates import Estimate
from latent_ebm_text.evaluation.information import mutual_information
from latent_ebm_text.evaluation.language_model import LanguageModel
from latent_ebm_text.evaluation.latents import compare_latents, latent_intervals
from latent_ebm_text.evaluation.likelihood import MarginalLikelihood, estimate_log_likelihood, estimate_log_partition
from latent_ebm_text.evaluation.measurements import Measurement
from latent_ebm_text.evaluation.perplexity import forward_perplexity, reverse_perplexity
from latent_ebm_text.evaluation.text import LatentDraws, draw_latents
from latent_ebm_text.streams import stream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from latent_ebm_text.modeling_text import LatentEBMForTextGeneration

Collate = Callable[[Sequence[dict[str, Any]]], dict[str, Tensor]]

#: Generated sentences behind FPPL: more would narrow an interval of half a per cent. RPPL takes all.
FPPL_SAMPLES = 10_000
#: Sentences behind the figures of variety and novelty, most of which depend on the number.
MAX_SAMPLES = 2000
#: What a perplexity per word is, in its definition.
PER_WORD = (
    "per word: exp of the nats over words between white space, the end of a sentence counted as one, whatever the "
    "tokens; comparable between tokenisers"
)


def reconstruction_figures(
    model: LatentEBMForTextGeneration, dataset: Any, collate: Collate, *, batch_size: int, seed: int
) -> tuple[dict[str, Measurement], LatentDraws]:
    """Reconstruction and prior NLL, active units, standard deviations and energies of posterior and prior draws.

    Returns:
        The figures, and the draws behind them.
    """
    draws = draw_latents(
        model, dataset, collate, batch_size=batch_size, seed=seed, progress=partial(tqdm, desc="reconstruction")
    )
    figures = {
        "reconstruction NLL": Estimate.of_mean(draws.reconstruction_nll).described(
            "-log p(x | z) in nats per sentence, the end counted, z from the model's own posterior sampler (two "
            "chains a sentence); normal interval over sentences"
        ),
        "prior NLL": Estimate.of_mean(draws.prior_nll).described(
            "the same with z from the model's prior sampler: what the latent tells is the difference"
        ),
    }
    if not model.config.latent_dim:
        return figures, draws
    report = compare_latents(draws.first, draws.second, draws.prior, draws.posterior_energy, draws.prior_energy)
    intervals = latent_intervals(draws.first, draws.second, draws.prior, seed=seed)
    figures["active units"] = Measurement(
        report.active_units,
        intervals["active_units"],
        report.n,
        f"of {model.config.latent_dim} dimensions, those whose posterior mean has a variance above 0.01 by two "
        "standard errors; bootstrap over sentences",
    )
    figures["posterior-prior mismatch"] = Measurement(
        report.std_mismatch,
        intervals["std_mismatch"],
        report.n,
        "mean over dimensions of |posterior std / prior std - 1|, of draws over the data and from the prior; "
        "bootstrap over sentences and prior draws",
    )
    variances = [energy.double().var() / report.n for energy in (draws.posterior_energy, draws.prior_energy)]
    figures["energy gap"] = Estimate(report.energy_gap, float(sum(variances)) ** 0.5, report.n).described(
        "mean energy of posterior draws minus that of prior draws, in nats; normal interval"
    )
    return figures, draws


def marginal_likelihood_figures(
    model: LatentEBMForTextGeneration,
    dataset: Any,
    collate: Collate,
    *,
    num_sentences: int,
    num_samples: int,
    num_levels: int,
    batch_size: int,
    seed: int,
) -> tuple[dict[str, Measurement], MarginalLikelihood, np.ndarray]:
    """log p(x) by annealed importance sampling of random sentences, as NLL and as perplexity; log Z.

    Returns:
        The figures, the estimate of every sentence, and which sentences of the dataset they are.
    """
    lengths = column_array(dataset, "length")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(lengths))[:num_sentences])
    groups = [chosen[group] for group in ordered_batches(lengths[chosen], batch_size)]
    log_partition = estimate_log_partition(model, seed=seed)
    with tqdm(total=len(chosen), desc="log p(x)", unit="sentence") as bar:
        estimate = estimate_log_likelihood(
            model,
            (_inputs(model, dataset, collate, group) for group in groups),
            num_samples=num_samples,
            num_levels=num_levels,
            log_partition=log_partition,
            seed=seed,
            on_batch=bar.update,
        )
    order = np.concatenate(groups)
    warning = None
    if not estimate.reliable:
        warning = f"UNRELIABLE: effective sample size below 5 for {100 * estimate.unreliable_share:.0f} % of sentences"
        if not log_partition.reliable:
            warning += f", log Z between {log_partition.lower:.1f} and {log_partition.upper:.1f}"
    definition = f"-log p(x) in nats per sentence of random test sentences, {estimate.method}"
    if estimate.method != "exact":
        definition += ", given log Z a bound from above"
    figures = {
        "marginal NLL": Estimate.of_mean(-estimate.log_prob).described(
            definition,
            warning=warning,
            unreliable_share=estimate.unreliable_share,
            mean_standard_error_per_sentence=float(estimate.standard_error.mean()),
        )
    }
    perplexity = bootstrap_interval(-estimate.log_prob.numpy(), tokens=lengths[order], seed=seed)
    figures["marginal perplexity"] = Measurement(
        perplexity.value,
        perplexity.interval_95,
        perplexity.n,
        "exp of these NLLs over the number of tokens, the end counted; bootstrap over sentences",
        {"warning": warning},
    )
    if "words" in dataset.column_names:
        words = column_array(dataset, "words")[order]
        perplexity = bootstrap_interval(-estimate.log_prob.numpy(), tokens=words, seed=seed)
        figures["marginal perplexity per word"] = Measurement(
            perplexity.value,
            perplexity.interval_95,
            perplexity.n,
            f"the same {PER_WORD}",
            {"warning": warning},
        )
    if estimate.method != "exact":
        spread = 1.96 * log_partition.standard_error
        figures["log Z"] = Measurement(
            log_partition.value,
            (log_partition.lower - spread, max(log_partition.upper, log_partition.lower + spread)),
            log_partition.num_chains,
            "log of the prior's partition function against N(0, I) by annealed importance sampling; from below by "
            "forward walks, from above by walks back from long chains",
        )
    return figures, estimate, order


def exact_figures(log_probs: Sequence[float]) -> dict[str, Measurement]:
    """What a corpus that knows its own probabilities says of sentences: no model can have a lower mean NLL."""
    estimate = Estimate.of_mean(-torch.tensor(log_probs, dtype=torch.float64))
    return {"exact NLL": estimate.described("-log p(x) of the same sentences under the corpus itself, in nats, exact")}


def information_figures(
    model: LatentEBMForTextGeneration, dataset: Any, collate: Collate, *, num_sentences: int, seed: int
) -> dict[str, Measurement]:
    """What the latent knows of the sentence."""
    indices = np.sort(np.random.default_rng(seed).permutation(len(dataset))[:num_sentences])
    inputs = _inputs(model, dataset, collate, indices)
    latents = model.sample_posterior(inputs, generator=stream(seed, "information", device=model.device)).latents
    weight = 1.0 if model.encoder is not None else model.config.likelihood_weight
    found = mutual_information(model.decoder.likelihood(inputs), latents, likelihood_weight=weight)
    warning = f"at least this: the estimator cannot exceed {found.limit:.1f}" if found.saturated else None
    return {
        "mutual information": found.lower_bound.described(
            "noise-contrastive lower bound of I(x; z) in nats between sentences and their posterior draws; biased "
            f"downwards, at most log n = {found.limit:.2f}",
            warning=warning,
        )
    }


def _inputs(
    model: LatentEBMForTextGeneration, dataset: Any, collate: Collate, indices: np.ndarray
) -> dict[str, Tensor]:
    batch = collate([{"input_ids": ids} for ids in dataset[indices]["input_ids"]])
    return {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}


def sample_figures(
    samples: Sequence[str], train_texts: Sequence[str], test_texts: Sequence[str], *, seed: int
) -> dict[str, Measurement]:
    """How varied and how new generated sentences are, beside real text where that tells how to read a figure.

    Args:
        samples: Generated sentences, at least 4, as of `test_texts`. Below 200 of either self-BLEU is against fewer
            references than 99, and says so.
        train_texts: The training sentences.
        test_texts: Real sentences that were not trained on.
        seed: Of the sub-samples.
    """
    few, real = samples[:MAX_SAMPLES], list(test_texts)
    some_real = [real[index] for index in np.random.default_rng(seed).permutation(len(real))[: len(few)]]
    references = min(99, min(len(few), len(some_real)) // 2 - 1)
    overlap = training_overlap(few, train_texts, some_real)
    return {
        "unique rate": unique_rate(few),
        "mean length": _mean_length(few, seed),
        "mean length, real": _mean_length(some_real, seed),
        "self-BLEU": self_bleu(few, num_references=references, seed=seed),
        "self-BLEU, real": self_bleu(some_real, num_references=references, seed=seed),
        "bigram entropy": sample_entropy(few, order=2),
        "bigram entropy, real": sample_entropy(some_real, order=2),
        "training overlap": overlap.samples["mean_overlap"],
        "training overlap, real": overlap.held_out["mean_overlap"],
        "copy rate": overlap.samples["copy_rate"],
        "copy rate, real": overlap.held_out["copy_rate"],
    }


def _mean_length(texts: Sequence[str], seed: int) -> Measurement:
    figure = bootstrap_interval([count_words(text) for text in texts], seed=seed)
    return replace(figure, definition=f"words of a sentence, its end counted: {figure.definition}")


def perplexity_figures(
    samples: Sequence[str],
    lm: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    test_texts: Sequence[str],
    *,
    cache_dir: str | Path,
    rppl_lm: LanguageModel | None = None,
) -> tuple[dict[str, Measurement], dict[str, np.ndarray]]:
    """The evaluator's own perplexity of real test text, FPPL and RPPL; nats and words of each sentence of these two.

    Args:
        samples: Generated sentences.
        lm: The evaluator.
        tokenizer: The tokeniser of the real training text.
        test_texts: Real sentences that were not trained on.
        cache_dir: Where the language model of the samples is kept.
        rppl_lm: Another evaluator for RPPL, such as a quicker one; its own perplexity then stands beside the other's.
    """
    rppl_lm = lm if rppl_lm is None else rppl_lm
    forward = forward_perplexity(samples[:FPPL_SAMPLES], lm, tokenizer, real_test=test_texts, progress=True)
    reverse = reverse_perplexity(samples, rppl_lm, tokenizer, real_test=test_texts, cache_dir=cache_dir, progress=True)
    figures = {
        f"{found['evaluator']}'s test perplexity": Measurement(
            found["evaluator_test_perplexity"],
            tuple(found["evaluator_test_interval_95"]),
            len(test_texts),
            f"of real test text under the language model {found['evaluator']!r} trained on real training text, seed "
            f"{found['evaluator_seed']}: what real data would score as FPPL and as RPPL",
        )
        for found in (forward, reverse)
    }
    figures |= {
        f"{found['evaluator']}'s test perplexity per word": Measurement(
            found["evaluator_test_perplexity_per_word"],
            tuple(found["evaluator_test_interval_95_per_word"]),
            len(test_texts),
            f"the same {PER_WORD}",
        )
        for found in (forward, reverse)
    }
    for name, found in (("FPPL", forward), ("RPPL", reverse)):
        figures[name] = Measurement(
            found["perplexity"],
            tuple(found["interval_95"]),
            found["n_sentences"],
            f"{found['definition']}; evaluator {found['evaluator']!r}",
            {"warning": found.get("warning"), "evaluator": found["evaluator"]},
        )
        figures[f"{name} per word"] = Measurement(
            found["perplexity_per_word"],
            tuple(found["interval_95_per_word"]),
            found["n_sentences"],
            f"the same {PER_WORD}",
            {"warning": found.get("warning"), "evaluator": found["evaluator"]},
        )
    per_sentence = {
        "fppl_nll": np.array(forward["sentence_nll"]),
        "fppl_words": np.array([count_words(text) for text in samples[:FPPL_SAMPLES]]),
        "rppl_nll": np.array(reverse["sentence_nll"]),
        "rppl_words": np.array([count_words(text) for text in test_texts]),
    }
    return figures, per_sentence
