"""An anomaly detector over any function from data to scores, with the interfaces of pyod and scikit-learn."""

from __future__ import annotations

import inspect
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from torch import Tensor

from latent_ebm_text.anomaly.conformal import AlarmStream, calibration_size, conformal_p_values, select_at_rate
from latent_ebm_text.errors import DataError, UsageError

FORMAT = "latent_ebm_text.detector/1"
_SETTINGS, _SCORES = "detector.json", "detector.safetensors"
Scores = NDArray[np.float64]
ProbabilityMethod = Literal["linear", "unify", "conformal"]


def refuse_data_as_model(model: Any) -> None:
    """Checks that what a detector was made with is no list of data, which belongs into `fit`.

    Raises:
        UsageError: If it is a list, a tuple or an array.
    """
    if isinstance(model, list | tuple | np.ndarray | Tensor):
        raise UsageError(f"model is a model, its folder or its Hub id, got {type(model).__name__}: data go to fit()")


class LatentEBMDetector(OutlierMixin, BaseEstimator):
    """An anomaly detector: scores, and a threshold that a given share of the training data exceeds.

    It has the methods and attributes of `pyod.models.base.BaseDetector`, so code written for a detector of pyod
    accepts it, but it does not need pyod; and it is an outlier detector of scikit-learn, for pipelines, `clone` and
    searches. Where the two differ it follows pyod: 1 is an anomaly and 0 is not, and higher scores are more anomalous.
    No model is trained here: `fit` scores data under a model as it is and sets the threshold. Scores depend neither on
    the threshold nor on the data of `fit`, so that the data of `fit` also calibrate p-values.

    Args:
        score_function: Maps data to scores `(n,)`, finite and higher for the more anomalous.
        contamination: Share of the training data that counts as anomalous, above 0 and at most 0.5.

    Attributes:
        decision_scores_: `(n,)`, the scores of the training data.
        threshold_: Scores above it are anomalies.
        labels_: `(n,)`, 1 for the anomalies among the training data and 0 for the others.
        calibration_scores_: `(m,)`, the scores of data that nothing was fitted on, which p-values compare with.

    Raises:
        UsageError: If `contamination` is out of range.
    """

    decision_scores_: Scores
    calibration_scores_: Scores
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
        self._set_scores(scores, scores)
        return self

    def _set_scores(self, scores: Scores, calibration: Scores) -> None:
        """Takes the scores of the training data, and sets the threshold by them."""
        self.decision_scores_, self.calibration_scores_ = scores, calibration
        self._mu, self._sigma = float(scores.mean()), float(scores.std())  # where pyod's users look for them
        self.set_threshold(float(np.quantile(scores, 1 - self.contamination)))

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
        """Probabilities of being ordinary and of being anomalous, `(n, 2)`, in the two ways of pyod and a third.

        Those of pyod rank data as the scores do; they are not calibrated.

        Args:
            X: The data.
            method: `"linear"` is the position of the score between the smallest and the largest training score;
                `"unify"` is the Gaussian distribution function of the standardised score (Kriegel et al., 2011);
                `"conformal"` has the p-value, see `p_values`, in place of the probability of being ordinary.
            return_confidence: Whether to return what `predict_confidence` gives, too.

        Raises:
            UsageError: If the method is unknown or the detector is not fitted.
        """
        self._check_fitted()
        if method not in get_args(ProbabilityMethod):
            raise UsageError(f"method must be 'linear', 'unify' or 'conformal', got {method!r}")
        scores, known = self.decision_function(X), self.decision_scores_
        least = np.finfo(np.float64).eps  # if all training scores are the same, any other score is far away
        if method == "linear":
            anomalous = (scores - known.min()) / max(known.max() - known.min(), least)
        elif method == "conformal":
            anomalous = 1 - conformal_p_values(self.calibration_scores_, scores)
        else:
            standardised = (scores - known.mean()) / max(known.std(), least)
            anomalous = torch.erf(torch.from_numpy(standardised / math.sqrt(2))).numpy()
        anomalous = anomalous.clip(0, 1)
        probabilities = np.stack([1 - anomalous, anomalous], axis=1)
        return (probabilities, self._confidence(scores)) if return_confidence else probabilities

    def p_values(self, X: Any) -> Scores:
        """Conformal p-values, `(n,)`: an ordinary datum has one of at most `t` with probability at most `t`.

        That holds for ordinary data like those of `fit`. Anomalies among the latter make p-values larger, never
        smaller, on average.

        Args:
            X: The data.

        Raises:
            UsageError: If the detector is not fitted.
        """
        self._check_fitted()
        return conformal_p_values(self.calibration_scores_, self.decision_function(X))

    def select(self, X: Any, rate: float = 0.1) -> NDArray[np.bool_]:
        """Which data are anomalies, `(n,)`, so that on average at most the share `rate` of the calls is wrong.

        This is the procedure of Benjamini and Hochberg on `p_values`: the more anomalies there are, the less it takes
        to be one. A warning says where there are too few calibration data for a single anomaly to be called.

        Args:
            X: The data, all that are to be judged together.
            rate: The false discovery rate, between 0 and 1.

        Raises:
            UsageError: If the detector is not fitted, or the rate is out of range.
        """
        p_values = self.p_values(X)
        needed = calibration_size(rate, len(p_values))
        if len(self.calibration_scores_) < needed:
            least = math.ceil(len(p_values) / (rate * (len(self.calibration_scores_) + 1)))
            warnings.warn(
                f"{len(self.calibration_scores_)} ordinary data calibrate the p-values: among {len(p_values)} data "
                f"at a rate of {rate}, nothing is called unless {least} or more stand out together; "
                f"{needed} would do for a single one. Give fit() more data, or select() fewer at a time",
                stacklevel=2,
            )
        return select_at_rate(p_values, rate)

    def stream(self, rate: float = 0.01, step_size: float = 0.005) -> AlarmStream:
        """Alarms on a stream of p-values at a long-run rate that adapts, see [`AlarmStream`].

        Args:
            rate: The share of alarms, between 0 and 1.
            step_size: How fast the threshold follows.

        Raises:
            UsageError: If the detector is not fitted, or too few data calibrate its p-values for this rate.
        """
        self._check_fitted()
        if len(self.calibration_scores_) < (needed := calibration_size(rate)):
            raise UsageError(
                f"alarms at a rate of {rate} need {needed} ordinary data that calibrate p-values, and there are "
                f"{len(self.calibration_scores_)}: give fit() more data, or take a rate of at least "
                f"{1 / (len(self.calibration_scores_) + 1):.2g}"
            )
        return AlarmStream(rate, step_size)

    def fit_predict_score(self, X: Any, y: Any, scoring: str = "roc_auc_score") -> float:
        """Fits, and measures the scores of the training data by their labels, as pyod does.

        Args:
            X: The data.
            y: 1 for anomalies.
            scoring: `"roc_auc_score"` or `"prc_n_score"`, the precision among as many data as there are anomalies.

        Raises:
            NotImplementedError: If there is no such measure.
        """
        from sklearn.metrics import precision_score, roc_auc_score

        if scoring not in ("roc_auc_score", "prc_n_score"):
            raise NotImplementedError(f"scoring must be 'roc_auc_score' or 'prc_n_score', got {scoring!r}")
        scores, labels = self.fit(X).decision_scores_, np.asarray(y).ravel()
        if scoring == "roc_auc_score":
            return float(roc_auc_score(labels, scores))
        limit = np.quantile(scores, 1 - labels.mean())
        return float(precision_score(labels, scores > limit, zero_division=0))

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
        scores = {"decision_scores": self.decision_scores_, "calibration_scores": self.calibration_scores_}
        save_file(scores, str(folder / _SCORES))
        (folder / _SETTINGS).write_text(text, encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path, score_function: Callable[[Any], Any]) -> LatentEBMDetector:
        """The detector saved in a folder, over a score function, which is not saved.

        Raises:
            DataError: If the files are missing, damaged, or those of another kind of detector.
        """
        detector = cls(score_function)
        detector._restore(folder, read_saved(folder, cls.__name__))
        return detector

    def _restore(self, folder: str | Path, saved: dict[str, Any]) -> None:
        """Takes over threshold, contamination and training scores as they were saved."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            scores = load_file(str(Path(folder) / _SCORES))
            decision_scores = scores["decision_scores"]
            calibration = scores.get("calibration_scores", decision_scores)  # version 0.2 had but one of the two
            self.contamination, threshold = float(saved["contamination"]), float(saved["threshold"])
            if not (0 < self.contamination <= 0.5 and math.isfinite(threshold)):
                raise ValueError(f"contamination {self.contamination}, threshold {threshold}")
            for name, known in (("decision_scores", decision_scores), ("calibration_scores", calibration)):
                if known.ndim != 1 or len(known) == 0 or not np.isfinite(known).all():
                    raise ValueError(f"{name} must be finite numbers (n,), got {known.shape}")
        except (OSError, KeyError, TypeError, ValueError, OverflowError, SafetensorError) as error:
            raise DataError(f"{folder} cannot be read as a detector: {error}") from error
        if len(decision_scores) != saved.get("num_training_data"):
            raise DataError(f"{folder} is damaged: {_SETTINGS} and {_SCORES} differ in the number of training data")
        self._set_scores(decision_scores, calibration)
        self.set_threshold(threshold)

    def _check_fitted(self) -> None:
        if not hasattr(self, "decision_scores_"):
            raise UsageError("the detector has no threshold yet: call fit(training_data), or load a saved one")


def read_saved(folder: str | Path, detector: str) -> dict[str, Any]:
    """What `save_pretrained` of a detector of this class has written into `detector.json`."""
    try:
        saved = json.loads((Path(folder) / _SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{folder} holds no detector: {error}") from error
    if not isinstance(saved, dict) or saved.get("format") != FORMAT or saved.get("detector") != detector:
        found = (saved.get("detector"), saved.get("format")) if isinstance(saved, dict) else saved
        raise DataError(f"{folder} holds no {detector} of format {FORMAT}, but {found}")
    return saved
