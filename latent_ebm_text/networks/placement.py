"""Where a tensor lies, seen from Python."""

from __future__ import annotations

from torch import Tensor


def is_at_host(tensor: Tensor) -> bool:
    """Whether a number in the tensor, or a shape that depends on one, can be read without waiting for a device.

    Elsewhere it is not read: shapes are those of the whole batch, and what does not count is masked. Both ways compute
    the same. Tests and benchmarks replace this function to take the second one on a CPU.
    """
    return tensor.device.type == "cpu"
