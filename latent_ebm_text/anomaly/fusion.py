"""Several anomaly scores in one, by how improbable each is among ordinary data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from latent_ebm_text.anomaly.conformal import conformal_p_values
from latent_ebm_text.errors import UsageError

Floats = NDArray[np.float64]


class TailProbabilities:
    """The p-value of each score among those of ordinary data, and two means of these p-values.

    Scores beyond all ordinary data differ too: there the p-value falls as `1 / (1 + excess)`, with the excess in units
    of the distance between the largest and the median ordinary score. The harmonic mean is led by the smallest
    p-values, as suits scores that see different kinds of anomalies, and holds up where scores depend on each other
    (Wilson, 2019). The geometric mean (Fisher, 1932) adds up evidence, as suits scores that see the same anomalies.
    Both learn from ordinary data only: no weight is fitted.

    Args:
        reference: `(m, num_scores)`, scores of ordinary data that nothing was fitted on, higher for the anomalous.

    Raises:
        UsageError: If there are no ordinary data.
    """

    def __init__(self, reference: Floats) -> None:
        if reference.ndim != 2 or len(reference) < 1:
            raise UsageError(f"tail probabilities need scores of ordinary data (m, num_scores), got {reference.shape}")
        self.reference = reference

    def p_values(self, scores: Floats) -> Floats:
        """The p-values of single scores, of the shape of `scores`, `(n, num_scores)`; see [`conformal_p_values`]."""
        columns = zip(self.reference.T, scores.T, strict=True)
        ranked = np.stack([conformal_p_values(known, column) for known, column in columns], axis=1)
        largest = self.reference.max(axis=0)
        spread = np.maximum(largest - np.median(self.reference, axis=0), 1e-9 + 1e-9 * np.abs(largest))
        return np.asarray(ranked / (1 + np.maximum(scores - largest, 0.0) / spread))

    def fused(self, scores: Floats) -> Floats:
        """Minus the log of the harmonic mean of the p-values, `(n,)` for scores `(n, num_scores)`.

        It is 0 for data that all ordinary data exceed in every score, and at least `log(m + 1)` for data that exceed
        them all.
        """
        return np.log((1.0 / self.p_values(scores)).mean(axis=1))

    def added(self, scores: Floats) -> Floats:
        """Minus the log of the geometric mean of the p-values, `(n,)` for scores `(n, num_scores)`."""
        return np.asarray(-np.log(self.p_values(scores)).mean(axis=1))
