"""n-gram models: probabilities by hand, sums of one, and what becomes of what was never seen."""

import math

import numpy as np
import pytest

from latent_ebm_text.anomaly.ngrams import NGramModel

A, B, C = 10, 11, 12


def codes(*sequences: list[int]) -> list[np.ndarray]:
    return [np.array(sequence, dtype=np.uint64) for sequence in sequences]


def test_probabilities_are_those_of_witten_and_bell() -> None:
    """Fitted on `a b` and `a a`: two of six symbols are ends; `a` has three kinds of successors in three places."""
    model = NGramModel(2).fit(codes([A, B], [A, A]))
    uniform = 1 / 4  # a, b, the end, and one for all that was never seen
    unigram = {symbol: (count + 3 * uniform) / (6 + 3) for symbol, count in ((A, 3), (B, 1), ("end", 2))}
    first, second, end = model.surprise(codes([A, B]))[0]
    assert first == pytest.approx(-math.log((2 + 1 * unigram[A]) / (2 + 1)))  # both sequences begin with a
    assert second == pytest.approx(-math.log((1 + 3 * unigram[B]) / (3 + 3)))
    assert end == pytest.approx(-math.log((1 + 1 * unigram["end"]) / (1 + 1)))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_probabilities_sum_to_one(order: int) -> None:
    model = NGramModel(order).fit(codes([A, B, C, A], [B, A], []))
    unseen = 99
    for context in ([], [A], [A, B], [unseen, A]):
        surprise = model.surprise(codes(*([*context, symbol] for symbol in (A, B, C, unseen)), context))
        places = [*(row[len(context)] for row in surprise[:4]), surprise[4][-1]]
        assert np.exp(-np.array(places)).sum() == pytest.approx(1.0)


def test_a_base_distribution_stands_under_unigrams() -> None:
    model = NGramModel(1).fit(codes([A, A, B]))
    (surprise,) = model.surprise(codes([99]), base=[np.array([7.0, 1.0])])
    assert surprise[0] == pytest.approx(-math.log(3 * math.exp(-7.0) / (4 + 3)))


def test_unknown_symbols_and_arrays() -> None:
    model = NGramModel(3).fit(codes([A, B], [B]))
    assert [each.tolist() for each in model.is_unknown(codes([A, C], [], [C]))] == [[False, True], [], [True]]
    again = NGramModel.from_arrays(model.arrays())
    np.testing.assert_array_equal(again.surprise(codes([A, C]))[0], model.surprise(codes([A, C]))[0])
    assert (again.order, again.num_symbols) == (3, 3)
