"""Interpolated n-gram models over symbols of any kind, as sorted arrays of hashed n-grams and their counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint64]
Floats = NDArray[np.float64]
_BEGIN, _END = np.uint64(1), np.uint64(2)
#: Odd multiplier of the hash of n-grams (Knuth's for 64 bits): two n-grams share a hash with probability 2^-64.
_MULTIPLIER = np.uint64(6364136223846793005)


class NGramModel:
    """Probabilities of the next symbol given the `order - 1` before it, interpolated down to a uniform distribution.

    The interpolation is that of Witten and Bell (1991): a context that was followed by T different symbols in its N
    occurrences gives the weight `T / (N + T)` to the next shorter context. Every symbol has a probability above zero,
    and the end of a sequence is a symbol, so that even an empty sequence has one.

    Args:
        order: Length of the longest n-grams.
    """

    def __init__(self, order: int) -> None:
        self.order = order
        self._grams: list[tuple[Codes, Floats]] = []  # for each length, sorted hashes and how often each occurred
        self._contexts: list[tuple[Codes, Floats]] = []  # for each length, hashes and (occurrences, successors)

    def fit(self, sequences: Sequence[Codes]) -> NGramModel:
        """Counts the n-grams of sequences of 64-bit codes, each code from 3 on; returns itself."""
        symbols, places = _joined(sequences, self.order)
        self._grams, self._contexts = [], []
        for length in range(1, self.order + 1):
            context = _contexts(symbols, places, length - 1)
            grams, first, counts = np.unique(_hashed(context, symbols[places]), return_index=True, return_counts=True)
            known, totals = np.unique(context, return_counts=True)
            successors = np.unique(context[first], return_counts=True)[1]
            self._grams.append((grams, counts.astype(np.float64)))
            self._contexts.append((known, np.stack([totals, successors], axis=1).astype(np.float64)))
        return self

    @property
    def num_symbols(self) -> int:
        """Number of different symbols that were seen, the end among them."""
        return len(self._grams[0][0])

    def surprise(
        self, sequences: Sequence[Codes], order: int | None = None, base: Sequence[Floats] | None = None
    ) -> list[Floats]:
        """`-log p` of every symbol given those before it, the end included, in nats: an array for each sequence.

        Args:
            sequences: Sequences of codes, of lengths `n_i`; the results have the lengths `n_i + 1`.
            order: The longest n-grams that are used; 1 for the frequencies of symbols alone.
            base: `-log p` of every symbol under the distribution at the bottom of the interpolation, in the form of
                the result; by default one over the number of symbols.
        """
        symbols, places = _joined(sequences, self.order)
        if base is None:
            probability = np.full(len(places), 1.0 / (self.num_symbols + 1))
        else:
            probability = np.exp(-np.concatenate(list(base)))
        for length in range(1, (order or self.order) + 1):
            context = _contexts(symbols, places, length - 1)
            count = _looked_up(*self._grams[length - 1], _hashed(context, symbols[places]))
            total, successors = _looked_up(*self._contexts[length - 1], context).T
            seen = np.maximum(total + successors, 1.0)
            probability = np.where(total > 0, (count + successors * probability) / seen, probability)
        ends = np.cumsum([len(sequence) + 1 for sequence in sequences])
        return np.split(-np.log(np.maximum(probability, 1e-300)), ends[:-1])

    def is_unknown(self, sequences: Sequence[Codes]) -> list[NDArray[np.bool_]]:
        """Which symbols did not occur in what the model was fitted on, the ends left out; an array a sequence."""
        symbols = np.concatenate([np.zeros(0, np.uint64), *sequences])
        context = np.zeros(len(symbols), dtype=np.uint64)
        unknown = _looked_up(*self._grams[0], _hashed(context, symbols)) == 0
        return np.split(unknown, np.cumsum([len(sequence) for sequence in sequences])[:-1])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All that the model has learned, as named arrays."""
        found: dict[str, NDArray[Any]] = {}
        for length, ((grams, counts), (contexts, totals)) in enumerate(
            zip(self._grams, self._contexts, strict=True), start=1
        ):
            found |= {f"{length}.grams": grams, f"{length}.counts": counts}
            found |= {f"{length}.contexts": contexts, f"{length}.totals": totals}
        return found

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> NGramModel:
        """The model whose `arrays` these are."""
        model = cls(len(arrays) // 4)
        for length in range(1, model.order + 1):
            model._grams.append((arrays[f"{length}.grams"], arrays[f"{length}.counts"]))
            model._contexts.append((arrays[f"{length}.contexts"], arrays[f"{length}.totals"]))
        return model


def _joined(sequences: Sequence[Codes], order: int) -> tuple[Codes, NDArray[np.int64]]:
    """All sequences in one, each between `order` beginnings and an end, and the places of what is predicted."""
    begin, end = np.full(order, _BEGIN, dtype=np.uint64), np.array([_END], dtype=np.uint64)
    symbols = np.concatenate([part for sequence in sequences for part in (begin, sequence, end)])
    return symbols, np.flatnonzero(symbols != _BEGIN)


def _contexts(symbols: Codes, places: NDArray[np.int64], length: int) -> Codes:
    """The hash of the `length` symbols before each place."""
    context = np.zeros(len(places), dtype=np.uint64)
    for back in range(length, 0, -1):
        context = _hashed(context, symbols[places - back])
    return context


def _hashed(context: Codes, symbol: Codes) -> Codes:
    """The hash of a context with one more symbol."""
    mixed = (context ^ symbol) * _MULTIPLIER  # modulo 2^64
    mixed ^= mixed >> np.uint64(29)
    return mixed * _MULTIPLIER


def _looked_up(keys: Codes, values: Floats, wanted: Codes) -> Floats:
    """The values of the wanted keys, 0 where there is none; `(n,)` or `(n, columns)` as the values are."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    found = values[places]
    found[keys[places] != wanted] = 0.0
    return found
