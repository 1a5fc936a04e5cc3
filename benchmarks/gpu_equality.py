"""What a device must compute as the CPU does: decoders, encoders, priors, samplers and likelihoods, at toy sizes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from timing import difference

from latent_ebm_text import LatentEBMForImageGeneration, LatentEBMForTextGeneration, LatentEBMImageConfig
from latent_ebm_text.latents.prior import GaussianPrior
from latent_ebm_text.latents.samplers import (
    HMCSampler,
    LangevinSampler,
    MALASampler,
    ParallelTemperingSampler,
    Sampler,
)
from latent_ebm_text.models.configuration import LatentEBMTextConfig
from latent_ebm_text.models.scoring import estimate_log_partition
from latent_ebm_text.networks.lstm import FusedLSTMLikelihood, LSTMLikelihood

#: Largest difference from the CPU, relative to the norm of a tensor.
TOLERANCE = 1e-4
Tensors = list[torch.Tensor]


def exact_differences(device: torch.device) -> Iterator[tuple[str, float, float]]:
    """Functions without randomness."""
    ids = torch.randint(4, 60, (8, 12), generator=_seeded())
    mask = (torch.arange(12) < torch.tensor([12, 3, 5, 12, 7, 9, 4, 11])[:, None]).long()
    batch = {"input_ids": ids, "attention_mask": mask}
    z = torch.randn(8, 4, generator=_seeded())
    decoders: dict[str, dict[str, Any]] = {
        "LSTM, full-rank output": {},
        "LSTM, low-rank output": {"output_rank": 4},
        "LSTM, tied output": {"tie_word_embeddings": True},
        **{f"transformer, z by {way}": transformer(way) for way in ("prefix", "embedding", "layers")},
    }
    for name, settings in decoders.items():
        model = text_model(**settings)
        yield f"decoder: {name}", _apart(device, _likelihoods, model, batch, z), TOLERANCE
        yield f"greedy decoding: {name}", _apart(device, _greedy, model, z), 0.0
    lstm = text_model()
    apart = _apart(device, _fused, lstm, batch, z, reference=_by_hand)
    yield "decoder: LSTM, by cuDNN on a GPU, beside the passes written by hand", apart, TOLERANCE
    yield "encoder: LSTM", _apart(device, _proposal, text_model(encoder_hidden_size=8), batch), TOLERANCE
    images, pixels = _image_model(), {"pixel_values": torch.rand(8, 1, 8, 8, generator=_seeded()) * 2 - 1}
    yield "decoder: convolutions", _apart(device, _likelihoods, images, pixels, z), TOLERANCE
    for activation in ("gelu", "leaky_relu"):
        model = text_model(prior_activation=activation)
        yield f"prior: energy, {activation}", _apart(device, _energy, model, z), TOLERANCE
    yield "prior: Gaussian", _apart(device, _energy, text_model(prior_type="gaussian"), z), TOLERANCE
    for integrator in ("euler", "leimkuhler_matthews"):
        sampler = LangevinSampler(20, 0.1, temperature=0.0, integrator=integrator)
        yield (
            f"sampler: Langevin without noise, {integrator}",
            _apart(device, _chain, lstm, sampler, batch, z),
            TOLERANCE,
        )


def random_differences(device: torch.device) -> Iterator[tuple[str, float, float]]:
    """Samplers and estimates, whose draws differ from device to device; allowed are five standard errors."""
    generator, shape = torch.Generator(device).manual_seed(0), (4096, 8)
    samplers: dict[str, Sampler] = {
        "Langevin": LangevinSampler(20, 0.1),
        "MALA": MALASampler(20, 0.5),
        "HMC": HMCSampler(5, 0.3, num_leapfrog_steps=5),
        "parallel tempering": ParallelTemperingSampler(10, 0.5, num_temperatures=2),
    }
    target = GaussianPrior(shape[1]).to(device)
    for name, sampler in samplers.items():
        start = torch.randn(shape, generator=generator, device=device)
        ends = sampler.sample(start, target, generator=generator).latents
        allowed = 5 * (2 / ends.numel()) ** 0.5 + (0.01 if name == "Langevin" else 0.0)  # its discretisation error
        yield f"sampler: {name}, second moment of N(0, I)", abs(float(ends.square().mean()) - 1), allowed
    flat = text_model().to(device)
    flat.prior.out.weight.data.zero_()
    log_z = estimate_log_partition(flat, generator=generator).value
    yield "log Z of a flat tilt, nats", abs(log_z), 1e-3
    model, rows = text_model(), [[1, 5, 9, 30, 2], [1, 40, 2], [1, 7, 7, 8, 2]]
    for marginal in ("importance", "ais"):
        found = []
        for place in (torch.device("cpu"), device):
            seeded = torch.Generator(place).manual_seed(1)
            scores = copy.deepcopy(model).to(place).score(rows, marginal=marginal, num_samples=64, generator=seeded)
            found.append((scores.nll, scores.nll_standard_error))
        (one, error), (other, other_error) = found
        apart = float(((one - other).abs() / (error.square() + other_error.square()).sqrt().clamp(min=1e-3)).max())
        yield f"log p(x) by {marginal}, standard errors", apart, 5.0


def _apart(
    device: torch.device,
    compute: Callable[..., Tensors],
    model: Any,
    *arguments: Any,
    reference: Callable[..., Tensors] | None = None,
) -> float:
    """The largest difference between what a function gives on the device and it, or a `reference`, on the CPU."""
    found = []
    for function, place in ((compute, device), (reference or compute, torch.device("cpu"))):
        there = [_to(argument, place) for argument in arguments]
        found.append([value.detach().cpu() for value in function(copy.deepcopy(model).to(place), *there)])
    return difference(*found)


def _to(argument: Any, device: torch.device) -> Any:
    if isinstance(argument, dict):
        return {name: value.to(device) for name, value in argument.items()}
    return argument.to(device) if isinstance(argument, torch.Tensor) else argument


def _likelihoods(model: Any, inputs: Any, z: torch.Tensor) -> Tensors:
    """`log p(x | z)`, its score, and the gradients of the weights."""
    value = model.decoder.log_prob(inputs, z)
    value.sum().backward()
    weights = [weight.grad for weight in model.decoder.parameters() if weight.grad is not None]
    return [value, *model.decoder.likelihood(inputs).value_and_score(z), *weights]


def _fused(model: Any, inputs: Any, z: torch.Tensor) -> Tensors:
    return [*FusedLSTMLikelihood(model.decoder, inputs).value_and_score(z)]


def _by_hand(model: Any, inputs: Any, z: torch.Tensor) -> Tensors:
    return [*LSTMLikelihood(model.decoder, inputs).value_and_score(z)]


def _greedy(model: Any, z: torch.Tensor) -> Tensors:
    return [model.generate(latents=z, do_sample=False).float()]


def _proposal(model: Any, inputs: Any) -> Tensors:
    proposal = model.encoder.propose(inputs)
    return [proposal.mean, proposal.log_std]


def _energy(model: Any, z: torch.Tensor) -> Tensors:
    return [model.prior.energy(z), model.prior.score(z)]


def _chain(model: Any, sampler: Sampler, inputs: Any, z: torch.Tensor) -> Tensors:
    return [model.sample_posterior(inputs, initial_latents=z, sampler=sampler).latents]


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def text_model(**settings: Any) -> LatentEBMForTextGeneration:
    """A small model whose weights are large enough for every path to matter."""
    short = {"name": "langevin", "num_steps": 3, "step_size": 0.1}
    sizes = {"vocab_size": 60, "hidden_size": 16, "embedding_size": 8, "latent_dim": 4, "prior_hidden_size": 8}
    config = {"dropout": 0.0, "max_sequence_length": 12, "prior_sampler": short, "posterior_sampler": short}
    model = LatentEBMForTextGeneration(LatentEBMTextConfig(**{**sizes, **config, **settings})).eval()
    generator = _seeded()
    for weight in model.parameters():
        weight.data.normal_(std=0.4, generator=generator)
    return model


def transformer(injection: str) -> dict[str, Any]:
    return {"decoder_type": "transformer", "latent_injection": injection, "num_attention_heads": 2}


def _image_model() -> LatentEBMForImageGeneration:
    torch.manual_seed(0)
    config = LatentEBMImageConfig(
        image_size=8, num_channels=1, latent_dim=4, decoder_channels=[8], decoder_first_size=4, prior_hidden_size=8
    )
    return LatentEBMForImageGeneration(config).eval()
