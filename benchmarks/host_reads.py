"""Counts where a program waits for its device: wherever the host reads a number, or a shape that depends on data."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from latent_ebm_text.networks import placement

PACKAGE = str(Path(__file__).parents[1] / "latent_ebm_text")
#: Operators of torch whose result, or its shape, the host needs before it can go on.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "repeat_interleave"}


@contextmanager
def counting_reads(device: torch.device) -> Iterator[Counter[str]]:
    """Counts, by the line of the library, how often the host waits for a device; the counter grows meanwhile.

    On a GPU torch itself reports it (`torch.cuda.set_sync_debug_mode`). On a CPU, where nothing waits, the library is
    made to take the way of a GPU, and operators that would wait are counted, and copies of numbers to the host.
    """
    places: Counter[str] = Counter()
    if device.type != "cuda":
        with mock.patch.object(placement, "is_at_host", return_value=False), _Copies(places), _Reads(places):
            yield places
        return
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda *_, **__: places.update([_place()])  # type: ignore[assignment]
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode("default")


class _Reads(TorchDispatchMode):
    def __init__(self, places: Counter[str]) -> None:
        super().__init__()
        self.places = places

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.partition(".")[0]
        is_mask = name in ("index", "index_put", "index_put_") and any(
            isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1]
        )
        if name in WAITING or is_mask:
            self.places[_place()] += 1
        return func(*args, **(kwargs or {}))


class _Copies(TorchFunctionMode):
    """Copies of what a network has computed; integers, such as the numbers of examples, are on the host already."""

    def __init__(self, places: Counter[str]) -> None:
        super().__init__()
        self.places = places

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.cpu) and args[0].is_floating_point():
            self.places[_place()] += 1
        return func(*args, **(kwargs or {}))


def _place() -> str:
    """The line of the library that has led to a read."""
    frame: Any = sys._getframe(2)
    while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    return "elsewhere" if frame is None else f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
