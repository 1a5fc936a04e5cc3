"""Generative models whose latent vector has a learned energy-based prior.

The public names are imported when they are first used, so that `import latent_ebm_text` costs next to nothing. The
Auto classes of transformers know the models, see `models/auto.py`.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

from latent_ebm_text.models.auto import register_with_transformers

if TYPE_CHECKING:
    from latent_ebm_text.anomaly.detectors import LatentEBMDetector as LatentEBMDetector
    from latent_ebm_text.anomaly.detectors import LatentEBMTextDetector as LatentEBMTextDetector
    from latent_ebm_text.latents.posterior import LatentPosterior as LatentPosterior
    from latent_ebm_text.latents.prior import EnergyPrior as EnergyPrior
    from latent_ebm_text.latents.samplers import ChainStore as ChainStore
    from latent_ebm_text.latents.samplers import LangevinSampler as LangevinSampler
    from latent_ebm_text.models.configuration import LatentEBMConfig as LatentEBMConfig
    from latent_ebm_text.models.configuration import LatentEBMImageConfig as LatentEBMImageConfig
    from latent_ebm_text.models.configuration import LatentEBMTextConfig as LatentEBMTextConfig
    from latent_ebm_text.models.modeling_image import LatentEBMForImageGeneration as LatentEBMForImageGeneration
    from latent_ebm_text.models.modeling_text import LatentEBMForTextGeneration as LatentEBMForTextGeneration

_HOMES = {
    "LatentEBMConfig": "models.configuration",
    "LatentEBMImageConfig": "models.configuration",
    "LatentEBMTextConfig": "models.configuration",
    "LatentEBMForImageGeneration": "models.modeling_image",
    "LatentEBMForTextGeneration": "models.modeling_text",
    "LatentEBMDetector": "anomaly.detectors",
    "LatentEBMTextDetector": "anomaly.detectors",
    "LatentPosterior": "latents.posterior",
    "EnergyPrior": "latents.prior",
    "ChainStore": "latents.samplers",
    "LangevinSampler": "latents.samplers",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


register_with_transformers()
