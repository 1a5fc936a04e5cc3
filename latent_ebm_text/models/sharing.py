"""Work that is shared out among the processes of `accelerate launch`, with the results of one process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object, parse_flag_from_env, send_to_device

from latent_ebm_text.errors import UsageError

Result = TypeVar("Result")

#: How long a process waits for one that trains a language model or runs long chains meanwhile.
_PATIENCE = timedelta(days=7)


def all_processes() -> Accelerator:
    """The devices and processes of `accelerate launch`, for work that [`share_out`] hands to them.

    Raises:
        UsageError: If DeepSpeed is asked for.
    """
    refuse_deepspeed()
    patience = InitProcessGroupKwargs(timeout=_PATIENCE)
    return Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[patience])


def refuse_deepspeed() -> None:
    """Raises a `UsageError` if `accelerate` is set up for DeepSpeed, with which this library is not tested."""
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        raise UsageError(
            "DeepSpeed is not supported: choose none in `accelerate config`; for a decoder that does not fit one "
            "device there is FSDP2 (accelerate launch --use_fsdp --fsdp_version 2)"
        )


def share_out(
    work: Callable[[int], Result],
    number: int,
    accelerator: Accelerator | None = None,
    *,
    progress: Callable[[range], Iterable[int]] = iter,
) -> list[Result]:
    """`[work(0), ..., work(number - 1)]`; each part is done by one process, and every process receives all results.

    The results are those of one process if `work` draws from generators that depend on the number of the part alone.
    A process may have no part at all.

    Args:
        work: Computes a part. It must not wait for other processes. Its tensors are handed on through the CPU.
        number: Number of parts.
        accelerator: Devices and processes, all of which call this; this process alone by default.
        progress: Wraps `range(number)`, to show progress. A bar counts the parts of all processes.
    """
    numbers = progress(range(number))
    if accelerator is None or accelerator.num_processes == 1:
        return [work(each) for each in numbers]
    own: list[Any] = [
        (each, send_to_device(work(each), "cpu"))
        for each in numbers
        if each % accelerator.num_processes == accelerator.process_index
    ]
    results = dict(gather_object(own))
    return [send_to_device(results[each], accelerator.device) for each in range(number)]
