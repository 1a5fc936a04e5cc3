"""How the cost of our posterior gradient and training step grows with batch, length, vocabulary and latent size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from cases_posterior import posterior_gradient, training_step
from sizes import Sizes
from timing import in_turn, row, table

HEADER = ("varied", "value", "posterior gradient, ms (min)", "training step, ms (min)")


def scaling(sizes: Sizes, repeats: int) -> Iterator[str]:
    """One size varied at a time, with the tied output layer, at torch's present matmul precision."""
    yield from table(HEADER)
    for field, name, values in (
        ("batch", "batch", sizes.batches),
        ("tokens", "words a sentence", sizes.lengths),
        ("vocab", "vocabulary", sizes.vocabularies),
        ("latent", "latent size", sizes.latent_sizes),
    ):
        for value in values:
            varied = replace(sizes, **{field: value})
            tasks = [case(varied, True).ours for case in (posterior_gradient, training_step)]
            for task in tasks:
                task()  # warm-up
            times = in_turn(*tasks, repeats=repeats)
            yield row([name, f"{value:,}", *(f"{1e3 * min(taken):,.1f}" for taken in times)])
