"""Alarms with guarantees: conformal p-values, selection at a false discovery rate, an adaptive threshold of a stream.

They hold for any score, whatever the distribution of the data, as long as the ordinary data to come and those that the
scores were calibrated on are exchangeable, and nothing was fitted on the latter.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from latent_ebm_text.errors import UsageError, require_in_interval

Floats = NDArray[np.float64]


def conformal_p_values(calibration: Floats, scores: Floats) -> Floats:
    """`(1 + the number of calibration scores at least as high) / (n + 1)` for each score (Vovk et al., 2005).

    An ordinary datum has a p-value of at most `t` with probability at most `t`.

    Args:
        calibration: `(n,)`, scores of ordinary data that nothing was fitted on, higher for the more anomalous.
        scores: `(m,)`, scores of the data in question.

    Raises:
        UsageError: If there are no calibration scores.
    """
    if len(calibration) < 1:
        raise UsageError("p-values need scores of ordinary data that nothing was fitted on, got none")
    num_as_high = len(calibration) - np.searchsorted(np.sort(calibration), scores, side="left")
    return np.asarray((1.0 + num_as_high) / (len(calibration) + 1.0))


def select_at_rate(p_values: Floats, rate: float) -> NDArray[np.bool_]:
    """Which data to call anomalous so that on average at most the share `rate` of the calls is wrong, `(m,)`.

    This is the procedure of Benjamini and Hochberg (1995). With conformal p-values, which share their calibration
    data, it holds too (Bates et al., 2023): on average over calibration sets, not within each of them.

    Args:
        p_values: `(m,)`.
        rate: The false discovery rate, between 0 and 1.

    Raises:
        UsageError: If the rate is out of range.
    """
    _check_rate("rate", rate)
    order = np.argsort(p_values, kind="stable")
    passes = p_values[order] <= rate * np.arange(1, len(p_values) + 1) / max(len(p_values), 1)
    num_selected = 1 + int(np.flatnonzero(passes)[-1]) if passes.any() else 0
    selected = np.zeros(len(p_values), dtype=bool)
    selected[order[:num_selected]] = True
    return selected


def calibration_size(rate: float, num_data: int = 1) -> int:
    """The number of calibration data from which on a single anomaly among `num_data` data can be called at a rate.

    The smallest p-value of `n` calibration data is `1 / (n + 1)`, and the first of `m` data needs `rate / m`.

    Raises:
        UsageError: If the rate is out of range.
    """
    _check_rate("rate", rate)
    return max(1, math.ceil(num_data / rate) - 1)


class AlarmStream:
    """Alarms on a stream, at a rate that is kept to while the stream drifts.

    Alarms are raised at p-values of at most a threshold, which falls after each alarm and rises after each datum
    without one (adaptive conformal inference; Gibbs and Candès, 2021): `threshold + step_size * (rate - alarm)`. Over
    `T` data the share of alarms differs from `rate` by at most `(1 + step_size) / (step_size T)`, whatever the stream
    does. A stream that consists of ordinary data like those of calibration has that share of false alarms.

    Args:
        rate: The share of alarms in the long run, between 0 and 1.
        step_size: How fast the threshold follows, between 0 and 1.

    Attributes:
        threshold: The threshold that the next p-value is compared with.

    Raises:
        UsageError: If a setting is out of range.
    """

    def __init__(self, rate: float = 0.01, step_size: float = 0.005) -> None:
        _check_rate("rate", rate)
        _check_rate("step_size", step_size)
        self.rate, self.step_size, self.threshold = rate, step_size, rate

    def update(self, p_values: Floats) -> NDArray[np.bool_]:
        """Takes the next p-values of the stream `(n,)`, in order, and returns which of them raise an alarm, `(n,)`."""
        alarms = np.zeros(len(p_values), dtype=bool)
        for place, p_value in enumerate(p_values):
            alarms[place] = p_value <= self.threshold
            self.threshold += self.step_size * (self.rate - float(alarms[place]))
        return alarms


def _check_rate(name: str, value: float) -> None:
    require_in_interval(name, value, 0, 1)
    if value in (0, 1):
        raise UsageError(f"{name} must be above 0 and below 1, got {value}")
