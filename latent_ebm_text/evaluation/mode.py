"""A model in evaluation mode while it is measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off, and afterwards as it was, whatever happens in between."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
