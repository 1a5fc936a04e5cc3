"""Matrix products with a weight that is frozen while a chain runs."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FrozenLinear:
    """`x @ weight.T + bias` for a weight that does not change, without gradients.

    On a CPU the weight is packed once into the layout of oneDNN's kernels, whereas the default matrix product packs it
    at every call or not at all. On some processors this makes a product twice as fast, at the same precision.

    Args:
        weight: `(out_features, in_features)`.
        bias: `(out_features,)`.
        rows: Approximate number of rows of the products.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int) -> None:
        self._weight, self._bias = weight.detach(), None if bias is None else bias.detach()
        self._packed = _pack(self._weight, rows)

    def __call__(self, x: Tensor) -> Tensor:
        """`(rows, in_features)` to `(rows, out_features)`."""
        if self._packed is None:
            return nn.functional.linear(x, self._weight, self._bias)
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")
        return result


def _pack(weight: Tensor, rows: int) -> Tensor | None:
    """Returns the weight in oneDNN's layout, or `None` if this build or device has no such layout."""
    if torch.compiler.is_compiling():  # the compiler decides itself what to pack
        return None
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return None
    try:
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
    except (AttributeError, RuntimeError):  # these operators are not part of torch's public interface
        return None
    return packed
