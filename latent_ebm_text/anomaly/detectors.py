"""Anomaly detectors with the interface of pyod: one over any function from data to scores, one for sentences."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from latent_ebm_text.errors import DataError, UsageError
from latent_ebm_text.latents.integrals import LogPartition
from latent_ebm_text.latents.rng import derived_generator
from latent_ebm_text.models.scoring import SCORE_NAMES, Marginal, ScoreName, estimate_log_partition
from latent_ebm_text.models.sharing import share_out

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from latent_ebm_text.models.modeling_text import LatentEBMForTextGeneration

FORMAT = "latent_ebm_text.detector/1"
_SETTINGS, _SCORES = "detector.json", "detector.safetensors"
Scores = NDArray[np.float64]
ProbabilityMethod = Literal["linear", "unify"]
#: Posterior draws that a score other than `nll` is averaged over.
_NUM_DRAWS = 4


class LatentEBMDetector:
    """An anomaly detector: scores, and a threshold that a given share of the training data exceeds.

    It has the methods and attributes of `pyod.models.base.BaseDetector`, so code written for a detector of pyod
    accepts it, but it does not need pyod. No model is trained here: `fit` scores data under a model as it is and sets
    the threshold. Scores depend neither on the threshold nor on the data of `fit`.

    Args:
        score_function: Maps data to scores `(n,)`, finite and higher for the more anomalous.
        contamination: Share of the training data that counts as anomalous, above 0 and at most 0.5.

    Attributes:
        decision_scores_: `(n,)`, the scores of the training data.
        threshold_: Scores above it are anomalies.
        labels_: `(n,)`, 1 for the anomalies among the training data and 0 for the others.

    Raises:
        UsageError: If `contamination` is out of range.
    """

    decision_scores_: Scores
    labels_: NDArray[np.int64]
    threshold_: float

    def __init__(self, score_function: Callable[[Any], Any], contamination: float = 0.1) -> None:
        if not 0 < contamination <= 0.5:
            raise UsageError(f"contamination must be above 0 and at most 0.5, got {contamination}")
        self.score_function, self.contamination = score_function, float(contamination)

    def fit(self, X: Any, y: Any = None) -> LatentEBMDetector:
        """Scores the training data and sets the threshold at the `1 - contamination` quantile of their scores.

        Args:
            X: The data.
            y: Ignored, as everywhere in unsupervised detection.

        Raises:
            UsageError: If there are fewer than two data.
            DataError: If a score is not finite.
        """
        scores = self.decision_function(X)
        if len(scores) < 2:
            raise UsageError(f"a threshold needs at least 2 training data, got {len(scores)}")
        self.decision_scores_ = scores
        self.set_threshold(float(np.quantile(scores, 1 - self.contamination)))
        return self

    def set_threshold(self, threshold: float) -> None:
        """Sets the threshold, and labels the training data by it.

        Raises:
            UsageError: If it is not finite, or the detector is not fitted.
        """
        self._check_fitted()
        if not math.isfinite(threshold):
            raise UsageError(f"threshold must be finite, got {threshold}")
        self.threshold_ = float(threshold)
        self.labels_ = (self.decision_scores_ > threshold).astype(np.int64)

    def decision_function(self, X: Any) -> Scores:
        """Anomaly scores `(n,)`, higher for the more anomalous; works without `fit`."""
        scores = self.score_function(X)
        try:
            array = np.asarray(scores.detach().cpu() if isinstance(scores, Tensor) else scores, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise UsageError(f"a score function gives numbers, got {type(scores).__name__}: {error}") from error
        if array.ndim != 1:
            raise UsageError(f"a score function gives one number per datum, got shape {array.shape}")
        if not np.isfinite(array).all():
            raise DataError(f"the score of datum {int(np.flatnonzero(~np.isfinite(array))[0])} is not finite")
        return array

    def predict(self, X: Any, return_confidence: bool = False) -> Any:
        """1 for anomalies and 0 for ordinary data, `(n,)`; with `return_confidence` also the confidence in it."""
        self._check_fitted()
        scores = self.decision_function(X)
        labels = (scores > self.threshold_).astype(np.int64)
        return (labels, self._confidence(scores)) if return_confidence else labels

    def predict_confidence(self, X: Any) -> Scores:
        """How probably each datum would get its label again from other training data, `(n,)`, as pyod estimates it.

        Args:
            X: The data.

        Raises:
            UsageError: If the detector is not fitted, or scipy is not installed.
        """
        self._check_fitted()
        return self._confidence(self.decision_function(X))

    def _confidence(self, scores: Scores) -> Scores:
        """The confidence of Perini, Vercruyssen and Davis (2020), who take labels for ranks among training data."""
        try:
            from scipy.stats import binom  # type: ignore[import-untyped]
        except ImportError as error:
            raise UsageError("confidences need scipy: pip install 'latent-ebm-text[anomaly]'") from error
        num = len(self.decision_scores_)
        num_below = np.searchsorted(np.sort(self.decision_scores_), scores, side="right")
        anomalous = binom.sf(num - int(num * self.contamination), num, (1 + num_below) / (2 + num))
        confidence: Scores = np.where(scores > self.threshold_, anomalous, 1 - anomalous)
        return confidence

    def fit_predict(self, X: Any, y: Any = None) -> NDArray[np.int64]:
        """Fits, and returns the labels of the training data."""
        return self.fit(X, y).labels_

    def predict_proba(self, X: Any, method: ProbabilityMethod = "linear", return_confidence: bool = False) -> Any:
        """Probabilities of being ordinary and of being anomalous, `(n, 2)`, in the two ways of pyod.

        They rank data as the scores do; they are not calibrated.

        Args:
            X: The data.
            method: `"linear"` is the position of the score between the smallest and the largest training score;
                `"unify"` is the Gaussian distribution function of the standardised score (Kriegel et al., 2011).
            return_confidence: Whether to return what `predict_confidence` gives, too.

        Raises:
            UsageError: If the method is unknown or the detector is not fitted.
        """
        self._check_fitted()
        if method not in get_args(ProbabilityMethod):
            raise UsageError(f"method must be 'linear' or 'unify', got {method!r}")
        scores, known = self.decision_function(X), self.decision_scores_
        least = np.finfo(np.float64).eps  # if all training scores are the same, any other score is far away
        if method == "linear":
            anomalous = (scores - known.min()) / max(known.max() - known.min(), least)
        else:
            standardised = (scores - known.mean()) / max(known.std(), least)
            anomalous = torch.erf(torch.from_numpy(standardised / math.sqrt(2))).numpy()
        anomalous = anomalous.clip(0, 1)
        probabilities = np.stack([1 - anomalous, anomalous], axis=1)
        return (probabilities, self._confidence(scores)) if return_confidence else probabilities

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments that the detector was made with, as `clone` of scikit-learn asks for them."""
        return {name: getattr(self, name) for name in list(inspect.signature(type(self)).parameters)}

    def set_params(self, **params: Any) -> LatentEBMDetector:
        """Changes arguments that the detector was made with; it must then be fitted again.

        Raises:
            UsageError: If there is no such argument, or its value cannot be right.
        """
        known = self.get_params()
        if unknown := sorted(params.keys() - known.keys()):
            raise UsageError(f"{type(self).__name__} has no parameter {unknown[0]!r}: it has {', '.join(known)}")
        self.__dict__ = type(self)(**{**known, **params}).__dict__
        return self

    def settings(self) -> dict[str, Any]:
        """What a subclass needs to give the same scores again, as JSON-able values."""
        return {}

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes threshold and settings (`detector.json`) and training scores (`detector.safetensors`) into a folder.

        Raises:
            UsageError: If the detector is not fitted.
        """
        from safetensors.numpy import save_file

        self._check_fitted()
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        saved = {
            "format": FORMAT,
            "detector": type(self).__name__,
            "contamination": self.contamination,
            "threshold": self.threshold_,
            "num_training_data": len(self.decision_scores_),
            "settings": self.settings(),
        }
        text = json.dumps(saved, indent=2, allow_nan=False) + "\n"
        save_file({"decision_scores": self.decision_scores_}, str(folder / _SCORES))
        (folder / _SETTINGS).write_text(text, encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path, score_function: Callable[[Any], Any]) -> LatentEBMDetector:
        """The detector saved in a folder, over a score function, which is not saved.

        Raises:
            DataError: If the files are missing, damaged, or those of another kind of detector.
        """
        detector = cls(score_function)
        detector._restore(folder, _read_saved(folder, cls.__name__))
        return detector

    def _restore(self, folder: str | Path, saved: dict[str, Any]) -> None:
        """Takes over threshold, contamination and training scores as they were saved."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            self.decision_scores_ = load_file(str(Path(folder) / _SCORES))["decision_scores"]
            self.contamination, threshold = float(saved["contamination"]), float(saved["threshold"])
            if not (0 < self.contamination <= 0.5 and math.isfinite(threshold)):
                raise ValueError(f"contamination {self.contamination}, threshold {threshold}")
            if self.decision_scores_.ndim != 1 or not np.isfinite(self.decision_scores_).all():
                raise ValueError(f"decision_scores must be finite numbers (n,), got {self.decision_scores_.shape}")
        except (OSError, KeyError, TypeError, ValueError, OverflowError, SafetensorError) as error:
            raise DataError(f"{folder} cannot be read as a detector: {error}") from error
        if len(self.decision_scores_) != saved.get("num_training_data"):
            raise DataError(f"{folder} is damaged: {_SETTINGS} and {_SCORES} differ in the number of training data")
        self.set_threshold(threshold)

    def _check_fitted(self) -> None:
        if not hasattr(self, "decision_scores_"):
            raise UsageError("the detector has no threshold yet: call fit(training_data), or load a saved one")


def _read_saved(folder: str | Path, detector: str) -> dict[str, Any]:
    """What `save_pretrained` of a detector of this class has written into `detector.json`."""
    try:
        saved = json.loads((Path(folder) / _SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{folder} holds no detector: {error}") from error
    if not isinstance(saved, dict) or saved.get("format") != FORMAT or saved.get("detector") != detector:
        found = (saved.get("detector"), saved.get("format")) if isinstance(saved, dict) else saved
        raise DataError(f"{folder} holds no {detector} of format {FORMAT}, but {found}")
    return saved


class LatentEBMTextDetector(LatentEBMDetector):
    """Finds sentences that are improbable under a model of ordinary text.

    ```python
    detector = LatentEBMTextDetector(model, tokenizer, contamination=0.05).fit(ordinary_sentences)
    detector.predict(["the bank recovers sharply", "sharply the the recovers"])  # 1: an anomaly
    detector.save_pretrained("detector")  # model, tokenizer, threshold, training scores
    ```

    Fit it on sentences that the model was not trained on: the scores of training sentences are too low for a
    threshold.

    Args:
        model: A text model, trained on ordinary text.
        tokenizer: Its tokenizer.
        contamination: Share of the sentences of `fit` that counts as anomalous, above 0 and at most 0.5.
        score: The score to which the threshold applies, see [`~latent_ebm_text.models.scoring.AnomalyScores`]. The
            default is `-log p(x)` per predicted token, since without this division every long sentence would count as
            anomalous.
        marginal: How `-log p(x)` is estimated, `"importance"` or `"ais"`; other scores do not need it.
        batch_size: Sentences per batch.
        seed: Seed of all draws. Every call starts from it, so the same list of sentences gets the same scores.
        progress: Whether to show progress bars.
        accelerator: The processes that share the scoring. All of them then call each method with the same sentences,
            and all receive the same scores; this process alone by default.

    Raises:
        UsageError: If the score or another setting cannot be right.
    """

    def __init__(
        self,
        model: LatentEBMForTextGeneration,
        tokenizer: PreTrainedTokenizerBase,
        contamination: float = 0.1,
        *,
        score: ScoreName = "nll_per_token",
        marginal: Marginal = "importance",
        batch_size: int = 128,
        seed: int = 0,
        progress: bool = False,
        accelerator: Accelerator | None = None,
    ) -> None:
        super().__init__(self._score, contamination)
        known = [name for name in SCORE_NAMES if name != "squared_error"]  # only images have it
        if score not in known:
            raise UsageError(f"unknown score {score!r}; known scores: {', '.join(known)}")
        if marginal == "none" and score.startswith("nll"):
            raise UsageError(f"score={score!r} needs marginal='importance' or 'ais'")
        self.model, self.tokenizer, self.score = model, tokenizer, score
        self.marginal, self.batch_size, self.seed, self.progress = marginal, batch_size, seed, progress
        self.accelerator = accelerator
        self._log_partition: LogPartition | None = None

    def _score(self, sentences: Iterable[str]) -> Scores:
        needs_marginal = self.score.startswith("nll") and self.model.config.latent_dim > 0
        if needs_marginal and self._log_partition is None:
            generator = derived_generator(self.seed, "log partition", device=self.model.device)
            estimate = partial(estimate_log_partition, self.model, generator=generator)
            self._log_partition = share_out(lambda _: estimate(), 1, self.accelerator)[0]
        scores = self.model.score(
            sentences,
            tokenizer=self.tokenizer,
            marginal=self.marginal if needs_marginal else "none",
            num_draws=1 if needs_marginal else _NUM_DRAWS,  # the estimate starts from one draw and needs no average
            log_partition=self._log_partition,
            batch_size=self.batch_size,
            generator=derived_generator(self.seed, "anomaly scores", device=self.model.device),
            progress=self.progress,
            accelerator=self.accelerator,
        )
        values: Scores = scores.get(self.score).numpy()
        return values

    def settings(self) -> dict[str, Any]:
        """The score and how it is computed, with log Z."""
        return {
            "score": self.score,
            "marginal": self.marginal,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "log_partition": None if self._log_partition is None else self._log_partition.to_dict(),
        }

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes model, tokenizer, threshold, settings and training scores into a folder: JSON and safetensors.

        Raises:
            UsageError: If the detector is not fitted.
        """
        super().save_pretrained(folder)
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, progress: bool = False) -> LatentEBMTextDetector:  # type: ignore[override]
        """The detector saved in a folder, with its model and tokenizer.

        Raises:
            DataError: If the files are missing, damaged, or those of another kind of detector.
        """
        from latent_ebm_text.models.loading import read_text_model

        model, tokenizer = read_text_model(folder)  # which refuses a folder that leads out of itself
        saved = _read_saved(folder, cls.__name__)
        try:
            settings = dict(saved["settings"])
            partition = settings.pop("log_partition")
            detector = cls(model, tokenizer, **settings, progress=progress)
            detector._log_partition = None if partition is None else LogPartition(**partition)
        except (KeyError, TypeError, UsageError) as error:
            raise DataError(f"{folder} cannot be read as a detector of this version: {error}") from error
        detector._restore(folder, saved)
        return detector
