"""An anomaly detector with the interface of pyod, over any function from data to scores."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latent_ebm_text.errors import DataError, UsageError

FORMAT = "latent_ebm_text.detector/1"
_SETTINGS, _SCORES = "detector.json", "detector.safetensors"
Scores = NDArray[np.float64]
ProbabilityMethod = Literal["linear", "unify"]


class LatentEBMDetector:
    """An anomaly detector: scores, and a threshold that a share of the training data exceeds.

    The methods and attributes are those of `pyod.models.base.BaseDetector`, which it does not need: code written for a
    pyod detector takes it. A model is not trained here: `fit` scores data under a model as it is, and sets the
    threshold. Scores never depend on the threshold, nor on the data of `fit`.

    Args:
        score_function: Data to scores `(n,)`, finite, higher for the more anomalous.
        contamination: Share of the training data that is taken for anomalous, above 0 and at most 0.5.

    Attributes:
        decision_scores_: `(n,)`, scores of the training data.
        threshold_: Scores above it are anomalies.
        labels_: `(n,)`, 1 for the anomalies among the training data, else 0.

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
        """Scores the training data and sets the threshold at their `1 - contamination` quantile.

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
        """Another threshold for the same scores, and the labels it gives to the training data.

        Raises:
            UsageError: If it is not finite, or the detector is not fitted.
        """
        self._check_fitted()
        if not math.isfinite(threshold):
            raise UsageError(f"threshold must be finite, got {threshold}")
        self.threshold_ = float(threshold)
        self.labels_ = (self.decision_scores_ > threshold).astype(np.int64)

    def decision_function(self, X: Any) -> Scores:
        """Anomaly scores `(n,)` in nats, higher for the more anomalous; does not need `fit`."""
        scores = self.score_function(X)
        array = np.asarray(scores.detach().cpu() if isinstance(scores, Tensor) else scores, dtype=np.float64)
        if array.ndim != 1:
            raise UsageError(f"a score function gives one number per datum, got shape {array.shape}")
        if not np.isfinite(array).all():
            raise DataError(f"the score of datum {int(np.flatnonzero(~np.isfinite(array))[0])} is not finite")
        return array

    def predict(self, X: Any) -> NDArray[np.int64]:
        """1 for anomalies, 0 for others; `(n,)`."""
        self._check_fitted()
        return (self.decision_function(X) > self.threshold_).astype(np.int64)

    def fit_predict(self, X: Any, y: Any = None) -> NDArray[np.int64]:
        """`fit`, and the labels of the training data."""
        return self.fit(X, y).labels_

    def predict_proba(self, X: Any, method: ProbabilityMethod = "linear") -> Scores:
        """Probabilities of being ordinary and of being anomalous, `(n, 2)`, in pyod's two ways.

        They order data as the scores do and are not calibrated.

        Args:
            X: The data.
            method: `"linear"`: where the score lies between the least and the largest of the training scores, or
                `"unify"`: by the Gaussian distribution function of the standardised score (Kriegel et al., 2011).

        Raises:
            UsageError: If the method is unknown or the detector is not fitted.
        """
        self._check_fitted()
        if method not in get_args(ProbabilityMethod):
            raise UsageError(f"method must be 'linear' or 'unify', got {method!r}")
        scores, known = self.decision_function(X), self.decision_scores_
        least = np.finfo(np.float64).eps  # of scores that are all the same, others are far away
        if method == "linear":
            anomalous = (scores - known.min()) / max(known.max() - known.min(), least)
        else:
            standardised = (scores - known.mean()) / max(known.std(), least)
            anomalous = torch.erf(torch.from_numpy(standardised / math.sqrt(2))).numpy()
        anomalous = anomalous.clip(0, 1)
        return np.stack([1 - anomalous, anomalous], axis=1)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes threshold and settings (`detector.json`) and training scores (`detector.safetensors`) into a folder.

        Raises:
            UsageError: If the detector is not fitted.
        """
        from safetensors.numpy import save_file

        self._check_fitted()
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "format": FORMAT,
            "detector": type(self).__name__,
            "contamination": self.contamination,
            "threshold": self.threshold_,
            "num_training_data": len(self.decision_scores_),
            "settings": self.settings(),
        }
        text = json.dumps(settings, indent=2, allow_nan=False) + "\n"
        save_file({"decision_scores": self.decision_scores_}, str(folder / _SCORES))
        (folder / _SETTINGS).write_text(text, encoding="utf-8")

    def settings(self) -> dict[str, Any]:
        """What a subclass needs to score again as it did, as JSON-able values."""
        return {}

    def load_threshold(self, folder: str | Path) -> None:
        """Takes threshold, contamination and training scores from what `save_pretrained` has written.

        Raises:
            DataError: If the files are missing, damaged, or those of another kind of detector.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        saved = read_settings(folder, type(self).__name__)
        try:
            self.decision_scores_ = load_file(str(Path(folder) / _SCORES))["decision_scores"]
            self.contamination, threshold = float(saved["contamination"]), float(saved["threshold"])
            if not (0 < self.contamination <= 0.5 and math.isfinite(threshold)):
                raise ValueError(f"contamination {self.contamination}, threshold {threshold}")
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise DataError(f"{folder} cannot be read as a detector: {error}") from error
        if len(self.decision_scores_) != saved.get("num_training_data"):
            raise DataError(f"{folder} is damaged: {_SETTINGS} and {_SCORES} differ in the number of training data")
        self.set_threshold(threshold)

    @classmethod
    def from_pretrained(cls, folder: str | Path, score_function: Callable[[Any], Any]) -> LatentEBMDetector:
        """The detector saved in a folder, over a score function, which is not saved.

        Raises:
            DataError: As `load_threshold`.
        """
        detector = cls(score_function)
        detector.load_threshold(folder)
        return detector

    def _check_fitted(self) -> None:
        if not hasattr(self, "decision_scores_"):
            raise UsageError("the detector has no threshold yet: call fit(training_data), or load one that was saved")


def read_settings(folder: str | Path, detector: str) -> dict[str, Any]:
    """The saved settings of a detector, checked to be of that class.

    Raises:
        DataError: If they are missing, cannot be read, or are those of another kind of detector.
    """
    try:
        saved = json.loads((Path(folder) / _SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{folder} holds no detector: {error}") from error
    if not isinstance(saved, dict) or saved.get("format") != FORMAT or saved.get("detector") != detector:
        found = (saved.get("detector"), saved.get("format")) if isinstance(saved, dict) else saved
        raise DataError(f"{folder} holds no {detector} of format {FORMAT}, but {found}")
    return saved
