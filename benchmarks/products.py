"""The matrix products that a task cannot do without, for its arithmetic floor."""

from __future__ import annotations

from sizes import Sizes
from timing import Product

from latent_ebm_text.networks.softmax import CHUNK_ROWS


def score_products(sizes: Sizes, tied: bool, steps: int) -> tuple[Product, ...]:
    """What `steps` gradients of the likelihood in z need, the words' share of the gates computed once."""
    rows, gates = sizes.batch * sizes.tokens, 4 * sizes.hidden
    count = float(steps * sizes.tokens)
    return (
        Product(rows, sizes.embedding, gates),
        Product(sizes.batch, sizes.hidden, gates, count),
        Product(sizes.batch, gates, sizes.hidden, count),
        *(p for a, b in _output_layers(sizes, tied) for p in (_rows(rows, a, b, steps), _rows(rows, b, a, steps))),
    )


def update_products(sizes: Sizes, tied: bool) -> tuple[Product, ...]:
    """What the decoder's loss and the gradients of all its weights need."""
    rows, gates = sizes.batch * sizes.tokens, 4 * sizes.hidden
    width = sizes.embedding + sizes.latent
    layers = _output_layers(sizes, tied)
    return (
        *(Product(rows, width, gates), Product(rows, gates, width), Product(width, rows, gates)),
        Product(sizes.batch, sizes.hidden, gates, sizes.tokens),
        Product(sizes.batch, gates, sizes.hidden, sizes.tokens),
        Product(sizes.hidden, rows, gates),
        *(p for a, b in layers for p in (_rows(rows, a, b), _rows(rows, b, a))),
        *(Product(b, min(rows, CHUNK_ROWS), a, rows / min(rows, CHUNK_ROWS)) for a, b in layers),
    )


def output_products(sizes: Sizes) -> tuple[Product, ...]:
    """What the loss of the low-rank output layer alone, and its gradients, need."""
    rows, chunk = sizes.batch * sizes.tokens, min(sizes.batch * sizes.tokens, CHUNK_ROWS)
    return (
        _rows(rows, sizes.embedding, sizes.vocab),
        _rows(rows, sizes.vocab, sizes.embedding),
        Product(sizes.vocab, chunk, sizes.embedding, rows / chunk),
    )


def prior_products(sizes: Sizes, batch: int, steps: int) -> tuple[Product, ...]:
    """What `steps` scores of the prior need."""
    widths = [(sizes.latent, sizes.prior_hidden), (sizes.prior_hidden, sizes.prior_hidden)]
    return tuple(p for a, b in widths for p in (Product(batch, a, b, steps), Product(batch, b, a, steps)))


def _output_layers(sizes: Sizes, tied: bool) -> list[tuple[int, int]]:
    if tied:
        return [(sizes.hidden, sizes.embedding), (sizes.embedding, sizes.vocab)]
    return [(sizes.hidden, sizes.vocab)]


def _rows(rows: int, inner: int, columns: int, times: int = 1) -> Product:
    """A product over all tokens, in the chunks of rows that suit the cache."""
    chunk = min(rows, CHUNK_ROWS)
    return Product(chunk, inner, columns, times * rows / chunk)
