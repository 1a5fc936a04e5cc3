"""FPPL and RPPL of generated text (section 4.2 of the paper): how fluent it is, and how much of real text it covers.

Both are computed by the functions below, and as a metric of `evaluate`, without a network:

    from latent_ebm_text.evaluation.perplexity import SamplePerplexity
    SamplePerplexity("fppl").compute(predictions=samples, lm=lm, tokenizer=tokenizer, real_test=real_test)

    evaluate.load("latent_ebm_text/evaluation/perplexity.py", "rppl")  # the same class, by the path of this file

They take text, so that any model can be judged. Words that the tokenizer of the real training text does not know
count as `<unk>`.

A perplexity per token depends on what a token is. So both are also given per word, the words counted between white
space and the end of the sentence as one, by which models with different tokenizers can be compared. With a word-level
tokenizer the two agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import evaluate
import numpy as np

from latent_ebm_text.data.batching import count_words
from latent_ebm_text.data.inputs import each_sentence
from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.estimates import Estimate
from latent_ebm_text.evaluation.evaluator import (
    LanguageModel,
    Sentences,
    perplexity,
    sentence_nll,
    train_language_model,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def forward_perplexity(
    samples: Iterable[str],
    lm: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    real_test: Iterable[str],
    progress: bool = False,
) -> dict[str, Any]:
    """FPPL: the perplexity of generated sentences under a language model of real training text.

    Real text has the FPPL `evaluator_test_perplexity`. Samples with an FPPL far below it are not better than real text
    but duller, as those of greedy decoding are. A sentence without words is kept: leaving it out would flatter the
    model.

    Args:
        samples: Generated sentences, words separated by spaces; drawn ancestrally, unless the result is labelled
            otherwise.
        lm: The evaluator, trained on the real training text.
        tokenizer: The tokenizer of the real training text.
        real_test: The real test sentences, by which the evaluator itself is judged.
        progress: Whether to show progress bars.

    Returns:
        `perplexity`, `interval_95`, `n_sentences`, `n_tokens`, `sentence_nll` of [`estimate_perplexity`], and
        `perplexity_per_word`, `interval_95_per_word`, `n_words`; `evaluator`, `evaluator_seed`;
        `evaluator_test_perplexity` and `evaluator_test_interval_95` of the real test text under `lm`, both also with
        the ending `_per_word`; and `definition`.

    Raises:
        UsageError: If there are no samples, or all are blank or the same, there is no test text, or the tokenizer has
            another vocabulary than the evaluator.
    """
    samples, real_test = list(each_sentence(samples, "samples")), list(each_sentence(real_test, "real_test"))
    _require_samples(samples)
    sample_ids = _encode(samples, "samples", lm, tokenizer)
    return {
        **estimate_perplexity(lm, sample_ids, words=_count_words(samples), progress=progress),
        **_describe_evaluator(lm, real_test, _encode(real_test, "real_test", lm, tokenizer), progress),
        "definition": "FPPL: perplexity of generated sentences under a language model trained on real training text; "
        "exp of the mean NLL per token, the ends of sentences counted, each sentence on its own, unknown words as "
        "<unk>; interval: 95 %, bootstrap over the generated sentences, the language model fixed",
    }


def reverse_perplexity(
    samples: Iterable[str],
    lm: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    real_test: Iterable[str],
    cache_dir: str | Path,
    progress: bool = False,
) -> dict[str, Any]:
    """RPPL: the perplexity of real test text under a language model of generated sentences.

    The language model has the recipe, seed and vocabulary of the evaluator `lm` and is trained as it was, on the first
    samples, as many as the evaluator had training sentences. So samples as good as the real training text have the
    RPPL `evaluator_test_perplexity`, and a model that covers only part of the text has a higher one.

    Args:
        samples: Generated sentences, as for [`forward_perplexity`].
        lm: The evaluator, trained on the real training text by `train_language_model`.
        tokenizer: The tokenizer of the real training text.
        real_test: The real test sentences.
        cache_dir: Where `train_language_model` keeps the language model of the samples.
        progress: Whether to show progress bars.

    Returns:
        The keys of [`forward_perplexity`], where `n_sentences` and `n_tokens` count the test sentences; `n_samples`,
        the number of generated sentences trained on; and `warning`, `None` unless these are fewer than they should be.

    Raises:
        UsageError: As [`forward_perplexity`]; or if the evaluator was not trained or `cache_dir` cannot be used.
        DivergenceError: As `train_language_model`.
    """
    if lm.record is None:
        raise UsageError("this language model has no training record; make it with train_language_model.")
    wanted = lm.record.train_sentences
    samples, real_test = list(each_sentence(samples, "samples")), list(each_sentence(real_test, "real_test"))
    _require_samples(samples)
    samples = samples[:wanted]
    _require_samples(samples)
    sample_ids = _encode(samples, "samples", lm, tokenizer)
    test_ids = _encode(real_test, "real_test", lm, tokenizer)
    reverse_lm = train_language_model(
        sample_ids, None, lm.vocab_size, lm.recipe, cache_dir=cache_dir, seed=lm.record.seed, progress=progress
    )
    warning = None
    if len(samples) < wanted:
        warning = (
            f"trained on {len(samples)} generated sentences rather than {wanted}, the number of real training "
            "sentences: a language model of less text has a higher perplexity, whatever the text"
        )
    return {
        **estimate_perplexity(reverse_lm, test_ids, words=_count_words(real_test), progress=progress),
        **_describe_evaluator(lm, real_test, test_ids, progress),
        "definition": "RPPL: perplexity of the real test text under a language model trained on generated sentences; "
        "exp of the mean NLL per token, the ends of sentences counted, each sentence on its own, unknown words as "
        "<unk>; interval: 95 %, bootstrap over the test sentences, the generated sentences and the language model "
        "fixed",
        "n_samples": len(samples),
        "warning": warning,
    }


def estimate_perplexity(
    lm: LanguageModel, ids: Sentences, *, words: Sequence[int] | None = None, progress: bool = False
) -> dict[str, Any]:
    """The perplexity of sentences of token ids, bos and eos included, with its interval.

    Args:
        lm: The language model.
        ids: Sentences, as for `sentence_nll`.
        words: Number of words of each sentence, its end counted; for the perplexity per word.
        progress: Whether to show a progress bar.

    Returns:
        `perplexity`, `exp(nats / tokens)`; `interval_95`, the 2.5 % and 97.5 % quantiles over 1,000 resamples of the
        sentences, always the same ones; `n_sentences`; `n_tokens`, the ends of sentences counted; `sentence_nll`, the
        nats of each sentence, by which two runs can be compared. With `words` also `perplexity_per_word`,
        `exp(nats / words)`, `interval_95_per_word` and `n_words`.
    """
    nll, tokens = sentence_nll(lm, ids, progress=progress)
    found: dict[str, Any] = {"n_sentences": len(nll), "sentence_nll": nll.tolist()}
    for unit, suffix, counts in (("tokens", "", tokens), ("words", "_per_word", words)):
        if counts is not None:
            found[f"perplexity{suffix}"] = perplexity(nll, np.asarray(counts))
            found[f"interval_95{suffix}"] = list(Estimate.of_bootstrap(nll, "perplexity", tokens=counts).interval_95)
            found[f"n_{unit}"] = int(np.sum(counts))
    return found


def _count_words(texts: Sequence[str]) -> list[int]:
    return [count_words(text) for text in texts]


def _describe_evaluator(
    lm: LanguageModel, real_test: Sequence[str], test_ids: list[list[int]], progress: bool
) -> dict[str, Any]:
    own = estimate_perplexity(lm, test_ids, words=_count_words(real_test), progress=progress)
    return {
        "evaluator": lm.recipe.name,
        "evaluator_seed": None if lm.record is None else lm.record.seed,
        **{
            f"evaluator_test_{key}{suffix}": own[f"{key}{suffix}"]
            for suffix in ("", "_per_word")
            for key in ("perplexity", "interval_95")
        },
    }


def _require_samples(samples: Sequence[str]) -> None:
    """Refuses what a broken generation gives, which would otherwise get a perplexity all the same."""
    distinct = {" ".join(sample.split()) for sample in samples}
    if distinct <= {""}:
        problem = f"all {len(samples)} are blank" if distinct else "there are none"
    elif len(distinct) == 1:
        problem = f"all {len(samples)} are the same"
    else:
        return
    raise UsageError(f"samples must be generated sentences, but {problem}; look at how they were generated.")


def _encode(texts: Sequence[str], name: str, lm: LanguageModel, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Ids with bos and eos added, because only some tokenizers add them themselves."""
    if not texts:
        raise UsageError(f"{name} must be a list of at least one sentence.")
    if len(tokenizer) != lm.vocab_size:
        raise UsageError(
            f"the tokenizer knows {len(tokenizer)} tokens and the evaluator {lm.vocab_size}; "
            "use the tokenizer of the real training text for both."
        )
    rows = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return [[tokenizer.bos_token_id, *ids, tokenizer.eos_token_id] for ids in rows]


class SamplePerplexity(evaluate.Metric):
    """FPPL or RPPL as a metric of `evaluate`: `SamplePerplexity("fppl")` or `SamplePerplexity("rppl")`.

    `compute(predictions=samples, ...)` takes the further arguments of [`forward_perplexity`] or
    [`reverse_perplexity`] by name, and returns what they return.

    Raises:
        UsageError: If the name is none of these two.
    """

    # `evaluate.load` finds only one class in a file, so that one class serves both.
    _metrics: dict[str, Callable[..., dict[str, Any]]] = {"fppl": forward_perplexity, "rppl": reverse_perplexity}

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in self._metrics:
            raise UsageError(f"this metric is 'fppl' or 'rppl', not {self.config_name!r}; name one as config_name.")
        return evaluate.MetricInfo(
            description=self._metrics[self.config_name].__doc__,
            citation="Pang, Han, Nijkamp, Zhu and Wu. Learning Latent Space Energy-Based Prior Model. NeurIPS 2020.",
            inputs_description="predictions: generated sentences, words separated by spaces.",
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str], **settings: Any) -> dict[str, Any]:
        return self._metrics[self.config_name](predictions, **settings)
