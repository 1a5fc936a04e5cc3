"""A detector of this library beside one of pyod with the same scores; `run.py` runs this.

With a checkout of pyod's repository, its own tests of a detector run too.
"""

from __future__ import annotations

import importlib.util
import os
import unittest
from pathlib import Path
from typing import Any

import numpy as np
from pyod.models.base import BaseDetector
from pyod.models.knn import KNN
from pyod.utils.data import generate_data
from sklearn.base import clone

from latent_ebm_text import LatentEBMDetector


class Theirs(BaseDetector):
    """A detector of pyod over a score function."""

    def __init__(self, score_function: Any, contamination: float = 0.1) -> None:
        super().__init__(contamination=contamination)
        self.score_function = score_function

    def fit(self, X: Any, y: Any = None) -> Theirs:
        self._set_n_classes(y)
        self.decision_scores_ = self.decision_function(X)
        self._process_decision_scores()
        return self

    def decision_function(self, X: Any) -> Any:
        return self.score_function(X)


def as_tuple(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


class SameAsPyodTest(unittest.TestCase):
    """Every public method gives the numbers of pyod."""

    def setUp(self) -> None:
        self.train, self.test, *_ = generate_data(n_train=200, n_test=100, contamination=0.1, random_state=0)
        scores = KNN().fit(self.train).decision_function
        self.ours, self.theirs = (kind(scores, 0.2).fit(self.train) for kind in (LatentEBMDetector, Theirs))

    def test_attributes(self) -> None:
        for name in ("decision_scores_", "labels_", "threshold_", "contamination"):
            np.testing.assert_allclose(getattr(self.ours, name), getattr(self.theirs, name))

    def test_methods(self) -> None:
        for name, options in (
            ("decision_function", {}),
            ("predict", {}),
            ("predict", {"return_confidence": True}),
            ("predict_confidence", {}),
            *(
                ("predict_proba", {"method": method, "return_confidence": confident})
                for method in ("linear", "unify")
                for confident in (False, True)
            ),
        ):
            with self.subTest(name, **options):
                ours, theirs = (getattr(each, name)(self.test, **options) for each in (self.ours, self.theirs))
                for our, their in zip(*map(as_tuple, (ours, theirs)), strict=True):
                    np.testing.assert_allclose(our, their, atol=1e-6)

    def test_settings(self) -> None:
        assert self.ours.get_params() == self.theirs.get_params()
        assert clone(self.ours.set_params(contamination=0.3)).contamination == 0.3


if os.environ.get("PYOD_TESTS"):
    path = Path(os.environ["PYOD_TESTS"]) / "test_knn.py"
    spec = importlib.util.spec_from_file_location("pyod_test_knn", path)
    assert spec is not None
    assert spec.loader is not None
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)

    class PyodTest(theirs.TestKnn):  # type: ignore[name-defined, misc]
        """Their tests of a detector, on ours with the scores of theirs."""

        def setUp(self) -> None:
            super().setUp()
            self.clf = LatentEBMDetector(self.clf.decision_function, self.contamination).fit(self.X_train)
