"""The loss of the output layer, against torch's own loss over a linear layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from products import output_products
from sizes import Sizes
from timing import Case
from torch import Tensor

from latent_ebm_text.networks.softmax import chunk_rows, chunked_sum_log_prob

#: Whether this torch has `linear_cross_entropy` in chunks; 2.13 does.
HAS_LINEAR_CROSS_ENTROPY = hasattr(torch.nn, "LinearCrossEntropyOptions")


def output_loss(sizes: Sizes) -> Case:
    """The NLL of a batch's tokens and its gradients, by us and by `linear_cross_entropy` in chunks as large as ours.

    Both form the gradients while they have the logits of a chunk. In bfloat16, torch's loss is rounded to bfloat16
    as well, so that only float32 is compared.
    """
    torch.manual_seed(0)
    rows = sizes.batch * sizes.tokens
    features, weight = torch.randn(rows, sizes.embedding), torch.randn(sizes.vocab, sizes.embedding) / 10
    layer = [part.to(sizes.device).requires_grad_() for part in (features, weight, torch.randn(sizes.vocab))]
    targets = torch.randint(sizes.vocab, (rows,), device=sizes.device)
    options = torch.nn.LinearCrossEntropyOptions(
        batch_chunk_size=min(rows, chunk_rows(targets.device, sizes.vocab)), chunking_method=None
    )

    def theirs() -> Tensor:
        loss: Tensor = torch.nn.functional.linear_cross_entropy(
            layer[0], layer[1], targets, linear_bias=layer[2], reduction="sum", options=options
        )
        return loss

    def with_gradients(loss_of: Callable[[], Tensor]) -> Callable[[], Sequence[Tensor]]:
        def run() -> Sequence[Tensor]:
            loss = loss_of()
            return [loss.detach(), *torch.autograd.grad(loss, layer)]

        return run

    return Case(
        "output-loss, against linear_cross_entropy",
        with_gradients(lambda: -chunked_sum_log_prob(*layer, targets)),
        with_gradients(theirs),
        output_products(sizes),
    )
