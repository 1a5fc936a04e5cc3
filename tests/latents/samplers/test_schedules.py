"""Schedules: the value at every step, and invalid settings."""

import math
from typing import Any

import pytest

from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents.samplers.schedules import schedule_values


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (0.3, [0.3, 0.3, 0.3, 0.3]),
        (1, [1.0, 1.0, 1.0, 1.0]),
        ([0.3, 0.2], [0.3, 0.2, 0.2, 0.2]),
        ((0.4, 0.3, 0.2, 0.1), [0.4, 0.3, 0.2, 0.1]),
        ({"start": 0.4, "end": 0.1}, [0.4, 0.3, 0.2, 0.1]),
        ({"start": 0.1, "end": 0.4, "shape": "linear"}, [0.1, 0.2, 0.3, 0.4]),
        ({"start": 0.8, "end": 0.1, "shape": "geometric"}, [0.8, 0.4, 0.2, 0.1]),
    ],
)
def test_values_at_four_steps(schedule: Any, expected: list[float]) -> None:
    assert schedule_values(schedule, 4, name="step_size") == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shape", ["linear", "geometric"])
def test_a_single_step_takes_the_start(shape: str) -> None:
    assert schedule_values({"start": 0.8, "end": 0.1, "shape": shape}, 1, name="step_size") == [0.8]


def test_zero_is_legal_only_where_allowed() -> None:
    assert schedule_values({"start": 1, "end": 0}, 3, name="temperature", allow_zero=True) == [1.0, 0.5, 0.0]
    with pytest.raises(UsageError, match="step_size must be positive and finite at every step, got 0.0"):
        schedule_values({"start": 1, "end": 0}, 3, name="step_size")


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (0.0, "step_size must be positive and finite at every step, got 0.0"),
        (-0.1, "step_size must be positive and finite at every step, got -0.1"),
        (math.nan, "got nan"),
        (math.inf, "got inf"),
        ([0.1, -0.2], "got -0.2"),
        ([], "step_size is an empty list; give at least one value"),
        ("0.1", "step_size must be a number, a list of numbers or a start/end mapping, got '0.1'"),
        (True, "got True"),
        (None, "got None"),
        ([0.1, "x"], "got 'x'"),
        ({"start": 0.1}, r"step_size as a mapping needs `start`, `end` .* got \{'start': 0.1\}"),
        ({"start": 0.1, "end": 0.2, "shape": "cosine"}, r"\('linear' or 'geometric'\), got .*'cosine'"),
        ({"start": 0.1, "end": 0.2, "stop": 1}, "got .*'stop'"),
        ({"start": "a", "end": 0.2}, "got 'a'"),
        ({"start": 0.2, "end": 0.0, "shape": "geometric"}, "needs a positive start and end, got 0.2 and 0.0"),
    ],
)
def test_refusals_say_what_is_wrong(schedule: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        schedule_values(schedule, 3, name="step_size")


def test_a_refused_temperature_may_be_zero_or_positive() -> None:
    with pytest.raises(UsageError, match="temperature must be zero or positive and finite at every step, got -1.0"):
        schedule_values(-1, 3, name="temperature", allow_zero=True)
