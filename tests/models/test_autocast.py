"""bfloat16 autocast, as `accelerate launch --mixed_precision bf16` sets it: the same learning, the same chains."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.helpers import seeded, tiny_batch, tiny_model


@pytest.fixture(autouse=True)
def _without_onednn() -> Iterator[None]:
    """Many processors have no bfloat16 kernels in oneDNN; torch's own are slow, and everywhere."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    yield
    torch._C._set_mkldnn_enabled(before)


def learn(autocast: bool, **settings: object) -> tuple[float, dict[str, Tensor], Tensor]:
    model, batch = tiny_model(**settings).train(), tiny_batch()
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(**batch, generator=seeded(1))
    output.loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    assert all(gradient is not None and gradient.dtype == torch.float32 for gradient in gradients.values())
    return float(output.loss.detach()), gradients, output.latents


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("encoder", [None, 8])
def test_loss_and_gradients_are_those_of_full_precision(tied: bool, encoder: int | None) -> None:
    settings = {"tie_word_embeddings": tied, "encoder_hidden_size": encoder}
    exact, exact_gradients, _ = learn(False, **settings)
    loss, gradients, _ = learn(True, **settings)
    assert loss != exact, "autocast was on"
    assert loss == pytest.approx(exact, rel=0.02)
    for name, gradient in gradients.items():
        similarity = torch.cosine_similarity(gradient.flatten(), exact_gradients[name].flatten(), dim=0)
        assert similarity > 0.99, name


def test_chains_run_in_full_precision() -> None:
    model, batch = tiny_model().eval(), tiny_batch()
    draws = []
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            prior = model.sample_prior(5, generator=seeded(1)).latents
            posterior = model.sample_posterior(batch, generator=seeded(2)).latents
        draws.append((prior, posterior))
    for exact, drawn in zip(*draws, strict=True):
        assert drawn.dtype == torch.float32
        assert torch.equal(drawn, exact)
