"""Under torch.compile, as `accelerate launch --dynamo_backend inductor` sets it: the same numbers, never needed."""

import pytest
import torch

from latent_ebm_text import LangevinSampler
from tests.helpers import seeded, tiny_batch, tiny_model

# torch's compiler warns of its own doings: of `.grad` read while it traces, of its use of torch.jit.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("encoder", [8, pytest.param(None, marks=pytest.mark.slow)])
def test_loss_and_gradients_of_a_compiled_model_are_the_same(backend: str, encoder: int | None) -> None:
    options = {"fallback_random": True} if backend == "inductor" else None  # the draws of plain torch
    model, batch = tiny_model(encoder_hidden_size=encoder).train(), tiny_batch()
    results = []
    for forward in (model, torch.compile(model, backend=backend, options=options)):
        model.zero_grad()
        torch.manual_seed(0)
        output = forward(**batch)
        output.loss.backward()
        results.append((output.loss.detach(), {name: weight.grad for name, weight in model.named_parameters()}))
    (loss, gradients), (compiled_loss, compiled_gradients) = results
    torch.testing.assert_close(compiled_loss, loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(compiled_gradients[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_chain_on_a_compiled_energy_ends_where_the_plain_one_does(backend: str) -> None:
    prior = tiny_model().prior
    sampler, start = LangevinSampler(num_steps=5, step_size=0.3), torch.randn(4, prior.latent_dim, generator=seeded())
    compiled = torch.compile(lambda latents: -prior.energy(latents), backend=backend)
    ends = [sampler.sample(start, density, generator=seeded(1)).latents for density in (prior, compiled)]
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-4, atol=1e-5)
