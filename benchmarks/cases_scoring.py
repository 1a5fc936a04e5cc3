"""Sentences scored a second: the fast bound by the encoder's tempered proposal against importance weights.

The model has its initial weights, so that speed is measured and not how well the two agree. log Z is known to both.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

from sizes import Sizes
from timing import in_turn, ratios, row, table

from latent_ebm_text import AnomalyScores, LatentEBMForTextGeneration, LatentEBMTextConfig
from latent_ebm_text.latents.integrals import LogPartition

HEADER = (
    "sentences", "importance weights, sentences/s (max / median)", "lower bound, sentences/s (max / median)",
    "ratio (max / median)",
)  # fmt: skip


def scoring(sizes: Sizes, repeats: int) -> Iterator[str]:
    """`-log p(x)` of a batch of sentences of one length, hidden size 256 in place of the paper's."""
    model, ids = _model(sizes), sizes.inputs()["input_ids"]
    partition = LogPartition(0.0, 0.0, 0.0, 100.0, 100)

    def score(**options: object) -> Callable[[], AnomalyScores]:
        return lambda: model.score(ids, log_partition=partition, batch_size=sizes.batch, **options)

    slow, fast = score(marginal="importance", num_draws=1), score(marginal="elbo")
    fast()  # the warm-up
    theirs, mine = in_turn(slow, fast, repeats=repeats)
    yield from table(HEADER)
    rates = (f"{sizes.batch / min(t):,.0f} / {sizes.batch / statistics.median(t):,.0f}" for t in (theirs, mine))
    yield row([f"{sizes.batch} of {sizes.tokens} words", *rates, ratios(theirs, mine)])


def _model(sizes: Sizes) -> LatentEBMForTextGeneration:
    """A model of the recommended samplers with an encoder."""
    hidden = min(256, sizes.hidden)
    config = LatentEBMTextConfig(
        vocab_size=sizes.vocab,
        hidden_size=hidden,
        embedding_size=hidden // 2,
        latent_dim=sizes.latent,
        encoder_hidden_size=hidden,
        prior_hidden_size=sizes.prior_hidden,
        tie_word_embeddings=True,
        likelihood_weight=3.0,
        prior_sampler={"name": "langevin", "num_steps": sizes.prior_steps, "step_size": 0.4},
        posterior_sampler={"name": "langevin", "num_steps": 10, "step_size": 0.3, "max_score_norm": 25.0},
    )
    return LatentEBMForTextGeneration(config).eval()
