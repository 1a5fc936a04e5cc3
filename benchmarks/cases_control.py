"""What attributes cost: sentences per second with them, against plain sampling of the same model.

Both run by `generate`, at a batch of 512, whose latents come from chains of the prior; control adds a chain under the
prior times the classifiers. The weights are random, and no sentence ends before its last word.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

import torch
from sizes import Sizes
from timing import in_turn, ratios, row, table
from torch import Tensor

from latent_ebm_text import LatentEBMForTextGeneration
from latent_ebm_text.latents import LatentClassifier

HEADER = (
    "attributes", "plain, ms a sentence (min / median)", "with attributes, ms a sentence (min / median)",
    "with attributes / plain (min / median)",
)  # fmt: skip


def control(sizes: Sizes, repeats: int) -> Iterator[str]:
    """Generation with one and with three attributes, and without."""
    model = sizes.generation_model()
    with torch.no_grad():
        model.decoder.output.bias[model.config.eos_token_id] = -1e4
    torch.manual_seed(0)
    names = ["sentiment", "topic", "tense"]
    for name in names:
        model.attributes[name] = LatentClassifier(name, ["a", "b"], sizes.latent).eval()
    yield from table(HEADER)
    for number in (1, 3):
        plain = _generate(model, sizes, {})
        controlled = _generate(model, sizes, dict.fromkeys(names[:number], "a"))
        plain(), controlled()  # the warm-up
        without, having = in_turn(plain, controlled, repeats=repeats)
        cells = [_milliseconds(times, sizes.control_batch) for times in (without, having)]
        yield row([str(number), *cells, ratios(having, without)])


def _milliseconds(times: list[float], sentences: int) -> str:
    return " / ".join(f"{1e3 * time / sentences:.2f}" for time in (min(times), statistics.median(times)))


def _generate(model: LatentEBMForTextGeneration, sizes: Sizes, wanted: dict[str, str | float]) -> Callable[[], Tensor]:
    return lambda: model.generate(
        num_samples=sizes.control_batch, max_new_tokens=sizes.tokens, attributes=wanted or None
    )
