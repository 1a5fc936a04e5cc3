"""A detector of anomalous texts: it trains itself on texts, or scores them under a model that is given."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray

from latent_ebm_text.anomaly.detectors import LatentEBMDetector, Scores, read_saved, refuse_data_as_model
from latent_ebm_text.anomaly.ensemble import TextEnsemble
from latent_ebm_text.anomaly.lexical import LexicalEmbedder
from latent_ebm_text.anomaly.model_scores import ModelScorer
from latent_ebm_text.anomaly.text_scores import FUSED_SCORES
from latent_ebm_text.anomaly.text_views import TextView, near_duplicates, word_spans
from latent_ebm_text.data.embeddings import embed_sentences, installed_encoder
from latent_ebm_text.data.inputs import each_sentence
from latent_ebm_text.errors import DataError, UsageError, require_positive
from latent_ebm_text.latents.integrals import LogPartition
from latent_ebm_text.models.scoring import Marginal, ScoreName

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from latent_ebm_text.models.modeling_text import LatentEBMForTextGeneration

logger = logging.getLogger(__name__)
_ARRAYS = "scores.safetensors"
#: Different texts that training takes at least, the share of them that calibrates p-values, and the most that do.
_MIN_TEXTS, _HELD_OUT_SHARE, _MAX_HELD_OUT = 30, 0.2, 2000
#: Share of unknown words from which on a warning says that scores mean little.
_MAX_UNKNOWN_SHARE = 0.5
#: Texts whose embedding is timed before all others are.
_NUM_TIMED = 32


@dataclass(frozen=True)
class WordScore:
    """A word of a text, and how surprising it is.

    Attributes:
        word: The word, or a mark.
        start: Where it begins in the text.
        end: Where it ends.
        surprise: `-log p` of the word given what comes before it, in nats.
    """

    word: str
    start: int
    end: int
    surprise: float


@dataclass(frozen=True)
class Explanation:
    """Why a text raised an alarm.

    Attributes:
        words: Its words in order.
        p_values: For each score by its name, how probably an ordinary text scores as high; empty under one score.
    """

    words: list[WordScore]
    p_values: dict[str, float]


class LatentEBMTextDetector(LatentEBMDetector):
    """Finds texts that are unlike ordinary ones. Without a model, `fit` trains all that it needs on the texts.

    ```python
    detector = LatentEBMTextDetector().fit(texts)
    detector.predict(new_texts)  # 1: an anomaly
    detector.select(new_texts, rate=0.1)  # of those called anomalous, at most 10 % are ordinary on average
    ```

    It looks at several things: the embedding of a text (its distance from the neighbours, from the mean, and its
    density under a latent energy-based model of vectors), its characters, the order of its words, and what can be
    counted in it. The scores are fused by their tail probabilities among texts that they were not fitted on. The texts
    of `fit` may hold anomalies: near-duplicates are taken once, and the most anomalous texts, twice the share
    `contamination`, are left out of the final fit. A fifth of the texts is held out for p-values.

    With a model, the score is that of the model, which was trained on other texts than those of `fit`:

    ```python
    detector = LatentEBMTextDetector(model, tokenizer, contamination=0.05).fit(ordinary_sentences)
    ```

    Args:
        model: A text model trained on ordinary text, its folder or Hub id; by default the detector trains itself.
        tokenizer: The tokenizer of a model that is given itself.
        contamination: Share of the texts of `fit` that is expected to be anomalous, above 0 and at most 0.5.
        score: Under a model, the score to which the threshold applies, see
            [`~latent_ebm_text.models.scoring.AnomalyScores`]. The default is `-log p(x)` per predicted token, since
            without this division every long sentence would count as anomalous.
        fused_scores: Without a model, the names of the scores that are fused.
        sentence_encoder: Without a model, what embeds texts: a model of sentence-transformers by its name, or a
            function from a list of texts to vectors `(n, width)`. `"auto"` is all-MiniLM-L6-v2 where the extra
            `anomaly` is installed and it fits into the time budget; otherwise vectors come from the words of the texts
            (latent semantic analysis), and a warning says so.
        time_budget: Without a model, seconds that `fit` may take, about.
        marginal: How `-log p(x)` is estimated: `"elbo"`, the fast bound by the model's encoder; `"importance"`; or
            `"ais"`. `"auto"` is `"elbo"` where the model has an encoder and `"importance"` where not.
        batch_size: Sentences per batch.
        seed: Seed of all draws. Every call starts from it, so the same list of sentences gets the same scores.
        progress: Whether to show progress bars.
        accelerator: With a model, the processes that share the scoring. All of them then call each method with the
            same sentences, and all receive the same scores; this process alone by default.

    Attributes:
        ensemble_: The fitted [`~latent_ebm_text.anomaly.ensemble.TextEnsemble`], without a model.

    Raises:
        UsageError: If a setting cannot be right.
    """

    ensemble_: TextEnsemble
    _embed: Callable[[Sequence[str]], NDArray[np.float32]]

    def __init__(
        self,
        model: LatentEBMForTextGeneration | str | Path | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        contamination: float = 0.1,
        *,
        score: ScoreName = "nll_per_token",
        fused_scores: Sequence[str] = FUSED_SCORES,
        sentence_encoder: str | Callable[[Sequence[str]], Any] = "auto",
        time_budget: float = 600.0,
        marginal: Marginal | Literal["auto"] = "auto",
        batch_size: int = 128,
        seed: int = 0,
        progress: bool = False,
        accelerator: Accelerator | None = None,
    ) -> None:
        refuse_data_as_model(model)
        super().__init__(self._score, contamination)
        require_positive("time_budget", time_budget)
        self.model, self.tokenizer, self.score, self.fused_scores = model, tokenizer, score, fused_scores
        self.sentence_encoder, self.time_budget = sentence_encoder, time_budget
        self.marginal, self.batch_size, self.seed, self.progress = marginal, batch_size, seed, progress
        self.accelerator = accelerator
        TextEnsemble(fused_scores)  # which refuses unknown names
        ModelScorer.check(score, marginal)
        self._scorer: ModelScorer | None = None

    def fit(self, X: Any, y: Any = None) -> LatentEBMTextDetector:
        """Trains the scores on texts, or scores them under the model, and sets the threshold.

        Args:
            X: The texts. Without a model they may hold anomalies; with one, it must not have been trained on them.
            y: Ignored, as everywhere in unsupervised detection.

        Raises:
            UsageError: If there are too few different texts.
        """
        if self.model is not None:
            super().fit(X)
            return self
        started, texts = time.monotonic(), list(each_sentence(X, "texts"))
        first = near_duplicates(texts)
        distinct = np.unique(first)
        if not texts:
            raise UsageError(f"no texts were given: training takes {_MIN_TEXTS} or more")
        if len(distinct) < _MIN_TEXTS:
            raise UsageError(
                f"training takes {_MIN_TEXTS} different texts or more, and of these {len(texts)} "
                f"{'all are the same' if len(distinct) == 1 else f'only {len(distinct)} are different'} (but for "
                "numbers, capitals and marks): give more texts, or a trained model"
            )
        order = np.random.default_rng(self.seed).permutation(distinct)
        num_held_out = min(_MAX_HELD_OUT, round(_HELD_OUT_SHARE * len(distinct)))
        shuffled = [texts[row] for row in order]
        self._embed = self._make_embedder(shuffled, num_held_out)
        view = TextView.of(shuffled, self._embed)
        rows = np.arange(len(order))
        held_out, fitted_on = view.take(rows[:num_held_out]), view.take(rows[num_held_out:])
        ensemble = TextEnsemble(self.fused_scores)
        scores = np.zeros(len(texts))
        scores[order[num_held_out:]] = ensemble.fit(
            fitted_on, contamination=self.contamination, seed=self.seed, progress=self.progress,
            max_seconds=max(0.0, self.time_budget - (time.monotonic() - started)),
        )  # fmt: skip
        calibration = scores[order[:num_held_out]] = ensemble.fused(held_out)
        self.ensemble_ = ensemble
        self._set_scores(scores[first], calibration)
        return self

    def explain(self, X: Any) -> list[Explanation]:
        """Which words of each text are surprising, and which scores are improbable.

        Without a model, the surprise of a word is that of word trigrams and, for an unknown word, of its spelling.
        Under a model, it is `-log p` of its tokens given those before and draws of the text's own latent.

        Args:
            X: The texts.

        Raises:
            UsageError: If the detector is not fitted, or does not look at words.
        """
        self._check_fitted()
        texts = list(each_sentence(X, "texts"))
        if self.model is not None:
            words = self._model_scorer().word_surprise(texts)
            return [Explanation([WordScore(*word) for word in each], {}) for each in words]
        view = TextView.of(texts, self._embed)
        p_values, found = self.ensemble_.p_values(view), []
        for text, surprise, row in zip(view.texts, self.ensemble_.word_surprise(view), p_values, strict=True):
            spans = zip(word_spans(text), surprise, strict=True)
            found.append(
                Explanation(
                    [WordScore(text[a:b], a, b, float(value)) for (a, b), value in spans],
                    dict(zip(self.ensemble_.names, row.tolist(), strict=True)),
                )
            )
        return found

    def _score(self, X: Iterable[str]) -> Scores:
        if self.model is not None:
            return self._model_scorer().scores(X)
        self._check_fitted()
        view = TextView.of(list(each_sentence(X, "texts")), self._embed)
        unknown = self.ensemble_.unknown_share(view)
        if unknown > _MAX_UNKNOWN_SHARE:
            warnings.warn(
                f"{unknown:.0%} of the words do not occur in the texts of fit(): if these texts are in another "
                "language, fit a detector on ordinary texts in it",
                stacklevel=4,
            )
        return self.ensemble_.fused(view)

    def _model_scorer(self) -> ModelScorer:
        """The model behind the scores, which is loaded when it is first needed."""
        if self._scorer is None:
            model, tokenizer = self.model, self.tokenizer
            if isinstance(model, str | Path):
                from latent_ebm_text.models.loading import load_text_model

                model, tokenizer = load_text_model(str(model))
            assert model is not None
            if tokenizer is None:
                raise UsageError("the model's tokenizer is missing: give it as tokenizer, or the model by its folder")
            self._scorer = ModelScorer(
                model,
                tokenizer,
                self.score,
                self.marginal,
                self.batch_size,
                self.seed,
                self.progress,
                self.accelerator,
            )
        return self._scorer

    def _make_embedder(self, texts: list[str], num_held_out: int) -> Callable[[Sequence[str]], NDArray[np.float32]]:
        """What embeds texts, within the time budget; it does not learn from the first texts, which are held out."""
        if callable(self.sentence_encoder):
            return self.sentence_encoder
        name = installed_encoder() if self.sentence_encoder == "auto" else self.sentence_encoder
        reason = "the extra `anomaly` is not installed"
        if name is not None:
            embed_sentences(texts[:1], name)  # loads it
            started, timed = time.monotonic(), texts[:: max(1, len(texts) // _NUM_TIMED)][:_NUM_TIMED]
            embed_sentences(timed, name)
            seconds = (time.monotonic() - started) / len(timed) * len(texts)
            if self.sentence_encoder != "auto" or seconds <= self.time_budget:
                return self._encoder(name)
            reason = f"that would take {seconds:.0f} s of time_budget={self.time_budget:g}"
        warnings.warn(
            f"texts are not embedded by a sentence encoder, since {reason}: vectors come from their words, and topics "
            "are told apart less well",
            stacklevel=3,
        )
        return LexicalEmbedder.fit(texts[num_held_out:], seed=self.seed)

    def _encoder(self, name: str) -> Callable[[Sequence[str]], NDArray[np.float32]]:
        return _NamedEncoder(name, self.progress)

    def settings(self) -> dict[str, Any]:
        """What the scores depend on, as JSON-able values: of the model, with log Z, or of the ensemble."""
        if self.model is not None:
            return {"score": self.score, "batch_size": self.batch_size, "seed": self.seed} | (
                self._model_scorer().settings()
            )
        encoder = self._embed.name if isinstance(self._embed, _NamedEncoder) else None
        kind = "name" if encoder else "words" if isinstance(self._embed, LexicalEmbedder) else "function"
        return {
            "fused_scores": list(self.fused_scores),
            "seed": self.seed,
            "time_budget": self.time_budget,
            "embedder": kind,
            "sentence_encoder": encoder,
        }

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes settings, threshold, training scores, and model and tokenizer or ensemble: JSON and safetensors.

        A sentence encoder is not written: it is named, or given again where it is a function.

        Raises:
            UsageError: If the detector is not fitted.
        """
        from safetensors.numpy import save_file

        super().save_pretrained(folder)
        if self.model is not None:
            scorer = self._model_scorer()
            scorer.model.save_pretrained(folder)
            scorer.tokenizer.save_pretrained(folder)
            return
        arrays = self.ensemble_.arrays()
        if isinstance(self._embed, LexicalEmbedder):
            arrays |= {f"embedder/{name}": array for name, array in self._embed.arrays().items()}
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, str(Path(folder) / _ARRAYS))

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        folder: str | Path,
        *,
        sentence_encoder: Callable[[Sequence[str]], Any] | None = None,
        progress: bool = False,
    ) -> LatentEBMTextDetector:
        """The detector saved in a folder, with its model and tokenizer or its ensemble.

        Args:
            folder: The folder.
            sentence_encoder: The function that embeds texts, if the detector was fitted with one.
            progress: Whether to show progress bars.

        Raises:
            DataError: If the files are missing, damaged, or those of another kind of detector.
            UsageError: If the function is missing.
        """
        from latent_ebm_text.models.loading import check_model_folder

        check_model_folder(folder)  # which refuses a folder that leads out of itself
        saved = read_saved(folder, cls.__name__)
        try:
            settings = dict(saved["settings"])
            if "embedder" in settings:
                detector = cls._restored_ensemble(folder, settings, sentence_encoder, progress)
            else:
                detector = cls._restored_model(folder, settings, progress)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, DataError | _MissingEncoder):
                raise
            raise DataError(f"{folder} cannot be read as a detector of this version: {error}") from error
        detector._restore(folder, saved)
        return detector

    @classmethod
    def _restored_model(cls, folder: str | Path, settings: dict[str, Any], progress: bool) -> LatentEBMTextDetector:
        from latent_ebm_text.models.loading import read_text_model

        model, tokenizer = read_text_model(folder)
        partition = settings.pop("log_partition")
        detector = cls(model, tokenizer, **settings, progress=progress)
        detector._model_scorer().log_partition = None if partition is None else LogPartition(**partition)
        return detector

    @classmethod
    def _restored_ensemble(
        cls, folder: str | Path, settings: dict[str, Any], function: Callable[..., Any] | None, progress: bool
    ) -> LatentEBMTextDetector:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        kind, name = settings.pop("embedder"), settings.pop("sentence_encoder")
        if kind == "function" and function is None:
            raise _MissingEncoder(f"{folder} was fitted on the vectors of a function: give it as sentence_encoder")
        try:
            arrays = load_file(str(Path(folder) / _ARRAYS))
        except (OSError, SafetensorError) as error:
            raise DataError(f"{folder} holds no scores of a detector: {error}") from error
        detector = cls(sentence_encoder=function or name or "auto", progress=progress, **settings)
        detector.ensemble_ = TextEnsemble.from_arrays(settings["fused_scores"], arrays)
        if kind == "words":
            detector._embed = LexicalEmbedder(arrays["embedder/idf"], arrays["embedder/directions"])
        else:
            detector._embed = function or detector._encoder(name)
        return detector


class _MissingEncoder(UsageError):
    """The function that embeds texts was not given again."""


class _NamedEncoder:
    """Embeds texts by a model of sentence-transformers."""

    def __init__(self, name: str, progress: bool) -> None:
        self.name, self.progress = name, progress

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The embeddings `(n, width)`."""
        return embed_sentences(texts, self.name, progress=self.progress and len(texts) > _NUM_TIMED)
