"""Samplers of unnormalised log-densities over latents. They know nothing about models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents.samplers.base import Sampler as Sampler
from latent_ebm_text.latents.samplers.base import SamplerOutput as SamplerOutput
from latent_ebm_text.latents.samplers.base import SamplerTrace as SamplerTrace
from latent_ebm_text.latents.samplers.chain_store import ChainStore as ChainStore
from latent_ebm_text.latents.samplers.langevin import LangevinSampler as LangevinSampler
from latent_ebm_text.latents.samplers.metropolis import HMCSampler as HMCSampler
from latent_ebm_text.latents.samplers.metropolis import MALASampler as MALASampler
from latent_ebm_text.latents.samplers.tempering import ParallelTemperingSampler as ParallelTemperingSampler
from latent_ebm_text.latents.samplers.watched import watch_chain as watch_chain

SAMPLERS: dict[str, type[Any]] = {
    sampler.name: sampler for sampler in (LangevinSampler, MALASampler, HMCSampler, ParallelTemperingSampler)
}


def sampler_from_dict(settings: Mapping[str, Any]) -> Sampler:
    """Builds a sampler from its JSON settings, the inverse of `sampler.to_dict()`.

    Args:
        settings: `{"name": "langevin", "num_steps": 60, "step_size": 0.4, ...}`.

    Raises:
        UsageError: If the name or a setting is unknown, or a value is out of range.
    """
    if not isinstance(settings, Mapping):
        raise UsageError(f"sampler settings must be a mapping such as {{'name': 'langevin', ...}}, got {settings!r}")
    arguments = dict(settings)
    name = arguments.pop("name", None)
    if not isinstance(name, str) or name not in SAMPLERS:
        raise UsageError(f"unknown sampler {name!r}; known samplers: {', '.join(sorted(SAMPLERS))}")
    known = [field.name for field in fields(SAMPLERS[name])]
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        raise UsageError(f"sampler {name!r} has no setting {unknown[0]!r}; its settings are {', '.join(known)}")
    missing = [
        field.name for field in fields(SAMPLERS[name]) if field.default is MISSING and field.name not in arguments
    ]
    if missing:
        raise UsageError(f"sampler {name!r} needs a setting {missing[0]!r}")
    sampler: Sampler = SAMPLERS[name](**arguments)
    return sampler
