"""Schedules: a step size or temperature for every step of a chain, written as plain JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from latent_ebm_text.errors import UsageError

#: Maximum length of a chain. A schedule holds one number per step, and a settings file must not exhaust the memory.
MAX_STEPS = 1_000_000

#: A number (constant), a list (one value per step, the last one held to the end), or
#: `{"start": 0.8, "end": 0.05, "shape": "linear" | "geometric"}` (from the first step to the last).
Schedule: TypeAlias = float | Sequence[float] | Mapping[str, float | str]


def schedule_values(schedule: Schedule, num_steps: int, *, name: str, allow_zero: bool = False) -> list[float]:
    """Returns the value at each of `num_steps` steps.

    Args:
        schedule: A number, a list or a mapping, see `Schedule`.
        num_steps: Length of the chain.
        name: Name of the scheduled setting, for the error message.
        allow_zero: Whether zero is valid (a temperature may be 0, a step size may not).

    Raises:
        UsageError: If the chain is longer than `MAX_STEPS`, the schedule has no values, an unknown shape, or a value
            that is negative or not finite.
    """
    if num_steps > MAX_STEPS:
        raise UsageError(f"num_steps must be at most {MAX_STEPS:,}, got {num_steps}")
    if isinstance(schedule, Mapping):
        values = _ramp(schedule, num_steps, name)
    elif isinstance(schedule, Sequence) and not isinstance(schedule, str):
        if not schedule:
            raise UsageError(f"{name} is an empty list; give at least one value")
        values = [_number(schedule[min(step, len(schedule) - 1)], name) for step in range(num_steps)]
    else:
        values = [_number(schedule, name)] * num_steps
    for value in values:
        if not math.isfinite(value) or value < 0 or (value == 0 and not allow_zero):
            kind = "zero or positive" if allow_zero else "positive"
            raise UsageError(f"{name} must be {kind} and finite at every step, got {value}")
    return values


def _ramp(schedule: Mapping[str, float | str], num_steps: int, name: str) -> list[float]:
    shape = schedule.get("shape", "linear")
    unknown = set(schedule) - {"start", "end", "shape"}
    if unknown or not {"start", "end"} <= set(schedule) or shape not in ("linear", "geometric"):
        raise UsageError(
            f"{name} as a mapping needs `start`, `end` and optionally `shape` ('linear' or 'geometric'), "
            f"got {dict(schedule)}"
        )
    start, end = _number(schedule["start"], name), _number(schedule["end"], name)
    if shape == "geometric" and (start <= 0 or end <= 0):
        raise UsageError(f"{name} with shape 'geometric' needs a positive start and end, got {start} and {end}")
    fractions = [step / max(num_steps - 1, 1) for step in range(num_steps)]
    if shape == "geometric":
        return [start * (end / start) ** fraction for fraction in fractions]
    return [start + (end - start) * fraction for fraction in fractions]


def _number(value: object, name: str) -> float:
    return number(value, name, "a number, a list of numbers or a start/end mapping")


def number(value: object, name: str, kind: str = "a number") -> float:
    """The value as a float, infinite if it is too large; a `UsageError` that names the setting if it is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UsageError(f"{name} must be {kind}, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        return math.inf
