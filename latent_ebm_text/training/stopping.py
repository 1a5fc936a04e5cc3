"""Leaving early, all processes together: signals, and numbers that are not finite in one of them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from latent_ebm_text.errors import DivergenceError

Result = TypeVar("Result")

#: The signals that ask a training to save and leave. Schedulers send SIGUSR1 ahead of the end of a job's time.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class _Interrupted(BaseException):
    """Ends interruptible work; no `except Exception` on the way may take it for an error."""


class StopSignals:
    """Turns [`STOP_SIGNALS`] into a request to save and leave, for as long as it is entered.

    Attributes:
        received: The signal that came, if one did.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._interruptible = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        try:
            for number in STOP_SIGNALS:
                self._previous[number] = signal.signal(number, self._receive)
        except ValueError:  # not in the main thread: signals are then the caller's business
            pass
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if self._interruptible:
            self._interruptible = False  # a second signal finds the first one's way out undisturbed
            raise _Interrupted

    def interruptible(self, work: Callable[[], Result]) -> Result | None:
        """What `work` returns; `None` if a signal has come, which ends the work wherever it is.

        Only for work that leaves no trace and waits for no other process: a batch, a chain, an evaluation.
        """
        try:
            try:
                self._interruptible = True
                return None if self.received else work()
            finally:
                self._interruptible = False
        except _Interrupted:
            return None

    def agreed(self, accelerator: Accelerator) -> int | None:
        """The signal that any process has received: all of them leave together. Called by all."""
        self.received = _highest(accelerator, self.received or 0) or None
        return self.received


@contextmanager
def failing_together(accelerator: Accelerator) -> Iterator[None]:
    """A `DivergenceError` in one process is raised in all of them, with its own message. Entered by all."""
    failure = None
    try:
        yield
    except DivergenceError as error:
        failure = error
    if _highest(accelerator, int(failure is not None)):
        messages = gather_object([str(failure)] if failure else []) if accelerator.num_processes > 1 else []
        raise failure or DivergenceError(messages[0])


def _highest(accelerator: Accelerator, number: int) -> int:
    if accelerator.num_processes == 1:
        return number
    return int(accelerator.gather(torch.tensor([number], device=accelerator.device)).max())
