"""All scores of texts together: fitted on texts that may hold anomalies, and fused."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from accelerate.utils import tqdm
from numpy.typing import NDArray

from latent_ebm_text.anomaly.fusion import TailProbabilities
from latent_ebm_text.anomaly.text_scores import FUSED_SCORES, TEXT_SCORES, Characters, TextScore, WordOrder
from latent_ebm_text.anomaly.text_views import TextView
from latent_ebm_text.errors import UsageError

Floats = NDArray[np.float64]
_NUM_FOLDS = 3


class TextEnsemble:
    """Scores of texts and their fusion by tail probabilities, see [`TailProbabilities`].

    `fit` scores every text by models that it was not fitted on, in three folds; leaves out the most anomalous share;
    scores all texts once more by models of the others; and fits the final models on these others. What is left out is
    twice the share of anomalies that is expected, because a first ranking, by models that have seen anomalies, misses
    some of them.

    Args:
        names: The scores that are fused.

    Raises:
        UsageError: If a name is unknown, or there is none.
    """

    def __init__(self, names: Sequence[str] = FUSED_SCORES) -> None:
        known = [name for score in TEXT_SCORES for name in score.names]
        if unknown := [name for name in names if name not in known]:
            raise UsageError(f"unknown score {unknown[0]!r}; known scores: {', '.join(known)}")
        if not names:
            raise UsageError(f"no score to fuse; known scores: {', '.join(known)}")
        self.names = tuple(names)
        self._classes = [score for score in TEXT_SCORES if set(score.names) & set(names)]
        self.fitted: list[TextScore] = []
        self.tails: TailProbabilities | None = None

    def fit(
        self, view: TextView, *, contamination: float, max_seconds: float, seed: int = 0, progress: bool = False
    ) -> Floats:
        """Fits all scores; returns the fused scores of the texts, by models that were not fitted on them, `(n,)`.

        Args:
            view: The texts, without near-duplicates, at least three.
            contamination: The share of anomalies that is expected.
            max_seconds: The time that may be taken by what learns by steps.
            seed: Seed of folds and of all draws.
            progress: Whether to show a progress bar.
        """
        deadline = time.monotonic() + max_seconds
        folds = np.random.default_rng(seed).permutation(len(view)) % _NUM_FOLDS
        kept = np.ones(len(view), dtype=bool)
        with tqdm(total=2 * _NUM_FOLDS + 1, desc="fitting", unit="fit", disable=not progress) as bar:

            def fit_on(rows: NDArray[np.bool_], num_fits_left: int) -> list[TextScore]:
                seconds = max(0.0, deadline - time.monotonic()) / num_fits_left
                part = view.take(np.flatnonzero(rows))
                fitted = [score().fit(part, seconds=seconds, seed=seed) for score in self._classes]
                bar.update()
                return fitted

            for num_passes_left in (2, 1):
                scores = np.empty((len(view), len(self.names)))
                for fold in range(_NUM_FOLDS):
                    rows = np.flatnonzero(folds == fold)
                    fitted = fit_on(kept & (folds != fold), num_passes_left * _NUM_FOLDS - fold + 1)
                    scores[rows] = self._columns(fitted, view.take(rows))
                self.tails = TailProbabilities(scores[kept])
                fused = self.tails.fused(scores)
                if num_passes_left == 2:
                    num_left_out = int(min(0.5, 2 * contamination) * len(view))
                    kept[np.argsort(fused, kind="stable")[len(view) - num_left_out :]] = False
            self.fitted = fit_on(kept, 1)
        return fused

    def scores(self, view: TextView) -> Floats:
        """The single scores of texts, `(n, len(names))`."""
        return self._columns(self.fitted, view)

    def fused(self, view: TextView) -> Floats:
        """The fused scores of texts, `(n,)`."""
        assert self.tails is not None
        return self.tails.fused(self.scores(view))

    def p_values(self, view: TextView) -> Floats:
        """The tail probability of each single score, `(n, len(names))`: which of them raised an alarm."""
        assert self.tails is not None
        return self.tails.p_values(self.scores(view))

    def word_surprise(self, view: TextView) -> list[Floats]:
        """`-log p` of every word given the two before it, in nats: an array for each text.

        A word that is not known costs what its characters cost.
        """
        characters, words = (
            next((fitted for fitted in self.fitted if isinstance(fitted, kind)), None)
            for kind in (Characters, WordOrder)
        )
        if not isinstance(characters, Characters) or not isinstance(words, WordOrder):
            raise UsageError("words are explained by 'characters' and 'word order': leave both among the scores")
        return words.surprise(view, characters.spelling(view))

    def unknown_share(self, view: TextView) -> float:
        """The share of words that none of the training texts has; 0 where words are not looked at."""
        words = next((fitted for fitted in self.fitted if isinstance(fitted, WordOrder)), None)
        if not isinstance(words, WordOrder) or not any(map(len, view.words)):
            return 0.0
        return float(np.concatenate(words.model.is_unknown(view.words)).mean())

    def _columns(self, fitted: Sequence[TextScore], view: TextView) -> Floats:
        """The scores in the order of `names`."""
        columns: dict[str, Floats] = {}
        for score in fitted:
            columns.update(zip(score.names, score.score(view).T, strict=True))
        return np.stack([columns[name] for name in self.names], axis=1)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All that was learned, as named arrays."""
        assert self.tails is not None
        found = {"tails": self.tails.reference}
        for score in self.fitted:
            found |= {f"{type(score).__name__}/{name}": array for name, array in score.arrays().items()}
        return found

    @classmethod
    def from_arrays(cls, names: Sequence[str], arrays: Mapping[str, NDArray[Any]]) -> TextEnsemble:
        """The fitted ensemble whose `arrays` these are.

        Raises:
            UsageError: If a name is unknown.
            KeyError: If an array is missing.
        """
        ensemble = cls(names)
        ensemble.tails = TailProbabilities(arrays["tails"])
        for score in ensemble._classes:
            prefix = f"{score.__name__}/"
            own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
            ensemble.fitted.append(score.from_arrays(own))
        return ensemble
