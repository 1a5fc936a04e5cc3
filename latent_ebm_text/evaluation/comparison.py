"""A model's samples beside those of samplers that know next to nothing, so that one sees which metrics these fool."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from latent_ebm_text.data.embeddings import embed_sentences, installed_encoder
from latent_ebm_text.evaluation.diversity import sample_entropy, unique_rate
from latent_ebm_text.evaluation.estimates import Estimate
from latent_ebm_text.evaluation.evaluator import QUICK_EVALUATOR, sentence_nll, train_language_model
from latent_ebm_text.evaluation.mauve import LEAST_SENTENCES, mauve
from latent_ebm_text.evaluation.perplexity import forward_perplexity, reverse_perplexity

if TYPE_CHECKING:
    from datasets import DatasetDict
    from transformers import PreTrainedTokenizerBase

#: Sentences of every sampler, which the evaluator is trained on and RPPL with it; behind FPPL and the variety of
#: sentences; behind MAUVE.
MOST_SENTENCES, MEASURED, EMBEDDED = 10_000, 2000, 1000
#: Training sentences that the evaluator likes best, which the last sampler repeats.
NUM_BEST = 100


def compare_samplers(
    samples: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    splits: DatasetDict,
    *,
    cache_dir: str | Path,
    seed: int,
    progress: bool = False,
) -> dict[str, dict[str, Estimate]]:
    """FPPL, RPPL, MAUVE, entropy, variety and copies of a model's samples and of the trivial samplers'.

    All are judged alike: by the quick evaluator, trained on the first 10,000 training sentences, or as many as the
    model has samples, with as many sentences of each sampler for RPPL. MAUVE is left out where the extra `encoder` is
    not installed or there are fewer than 20 sentences.

    Args:
        samples: Sentences of the model.
        tokenizer: Its tokenizer.
        splits: The tokenized corpus, with `input_ids`, its splits train, validation and test.
        cache_dir: Where evaluators are kept; those of the trivial samplers serve every model of the corpus.
        seed: Seed of evaluators and trivial samplers.
        progress: Whether to show progress bars.

    Returns:
        The metrics by name for each sampler by name: the model, the training text, and those of
        [`trivial_samples`]; a sampler that drew one sentence alone is left out.
    """
    number = min(MOST_SENTENCES, len(splits["train"]), len(samples))
    train_ids = splits["train"][:number]["input_ids"]
    test_ids = splits["test"]["input_ids"][:]
    train, test = (tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in (train_ids, test_ids))
    lm = train_language_model(
        train_ids,
        splits["validation"]["input_ids"][:],
        len(tokenizer),
        QUICK_EVALUATOR,
        cache_dir=cache_dir,
        seed=seed,
        progress=progress,
    )
    nll, tokens = sentence_nll(lm, train_ids)
    ranked = dict.fromkeys(train[index] for index in np.argsort(nll / tokens, kind="stable"))  # each one once
    best = list(ranked)[:NUM_BEST]
    trivial = trivial_samples(train, best, number, seed=seed)
    samplers = {"the model": samples[:number], "training text": train, **trivial}
    features = installed_encoder() if min(number, len(test)) >= LEAST_SENTENCES else None
    real = None if features is None else embed_sentences(test[:EMBEDDED], features)
    known = {tuple(text.split()) for text in train}
    table = {}
    for name, texts in samplers.items():
        if len({" ".join(text.split()) for text in texts}) < 2:
            continue  # no perplexity says anything of one sentence alone
        forward = forward_perplexity(texts[:MEASURED], lm, tokenizer, real_test=test)
        reverse = reverse_perplexity(texts, lm, tokenizer, real_test=test, cache_dir=cache_dir, progress=progress)
        row = {
            label: Estimate(
                found["perplexity"], tuple(found["interval_95"]), found["n_sentences"], found["definition"]
            )
            for label, found in (("FPPL", forward), ("RPPL", reverse))
        }
        if real is not None:
            assert features is not None
            row["MAUVE"] = mauve(embed_sentences(texts[: len(real)], features), real, features, seed=seed)
        row["bigram entropy"] = sample_entropy(texts[:MEASURED], order=2)
        row["unique rate"] = unique_rate(texts[:MEASURED])
        copies = sum(tuple(text.split()) in known for text in texts[:MEASURED])
        row["copy rate"] = Estimate.of_proportion(
            copies, len(texts[:MEASURED]), "sentences that are a training sentence word for word"
        )
        table[name] = row
    return table


def trivial_samples(train: Sequence[str], best: Sequence[str], number: int, *, seed: int) -> dict[str, list[str]]:
    """Sentences of samplers that no one would want, by the name of each.

    Args:
        train: Training sentences, words separated by spaces.
        best: Those that the last sampler repeats.
        number: Sentences of each sampler.
        seed: Seed of the draws.

    Returns:
        `unigrams`: every word, the end of a sentence included, drawn by its frequency. `bigrams`: every word drawn by
        how often it follows the one before. `shuffled training text`: the words of training sentences in random
        order. `best training sentences, repeated`.
    """
    rng = random.Random(seed)
    rows = [text.split() for text in train]
    followers: dict[str | None, list[str | None]] = {}  # None begins and ends a sentence
    for row in rows:
        for word, follower in zip([None, *row], [*row, None], strict=True):
            followers.setdefault(word, []).append(follower)
    words = [word for row in rows for word in [*row, None]]
    return {
        "unigrams": [_draw(rng, lambda _: words) for _ in range(number)],
        "bigrams": [_draw(rng, followers.__getitem__) for _ in range(number)],
        "shuffled training text": [" ".join(rng.sample(row, len(row))) for row in rows[:number]],
        "best training sentences, repeated": [best[index % len(best)] for index in range(number)],
    }


def _draw(rng: random.Random, candidates: Callable[[str | None], Sequence[str | None]]) -> str:
    words, word = [], None
    while (word := rng.choice(candidates(word))) is not None:
        words.append(word)
    return " ".join(words)
