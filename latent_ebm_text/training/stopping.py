"""Stops all processes together, on signals and on numbers that are not finite in one of them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from latent_ebm_text.errors import DivergenceError, LatentEBMError

Result = TypeVar("Result")

#: The signals that ask a run to save and exit. Schedulers send SIGUSR1 before the time limit of a job.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class _Interrupted(BaseException):
    """Ends interruptible work. It is no `Exception`, so that no handler on the way mistakes it for an error."""


class StopSignals:
    """A context in which [`STOP_SIGNALS`] become requests to save and exit.

    Attributes:
        received: The signal that was received, if any.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._interruptible = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        try:
            for number in STOP_SIGNALS:
                self._previous[number] = signal.signal(number, self._receive)
        except ValueError:  # signals can be handled only in the main thread; elsewhere the caller handles them
            pass
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if self._interruptible:
            self._interruptible = False  # so that a second signal does not disturb the first one's exit
            raise _Interrupted

    def interruptible(self, work: Callable[[], Result]) -> Result | None:
        """Returns the result of `work`, or `None` if a signal is received, which ends the work immediately.

        Use it only for work that has no side effects and waits for no other process, such as a chain or an evaluation.
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
        """Returns the signal that any process has received, so that all exit together; every process must call it."""
        self.received = _highest(accelerator, self.received or 0) or None
        return self.received


@contextmanager
def failing_together(accelerator: Accelerator, kind: type[LatentEBMError] = DivergenceError) -> Iterator[None]:
    """Raises an error of this kind of one process in all, with its message; every process must enter it."""
    failure = None
    try:
        yield
    except kind as error:
        failure = error
    if _highest(accelerator, int(failure is not None)):
        messages = gather_object([str(failure)] if failure else []) if accelerator.num_processes > 1 else []
        raise failure or kind(messages[0])


def _highest(accelerator: Accelerator, number: int) -> int:
    if accelerator.num_processes == 1:
        return number
    return int(accelerator.gather(torch.tensor([number], device=accelerator.device)).max())
