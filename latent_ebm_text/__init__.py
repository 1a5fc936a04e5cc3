"""Generative models whose latent vector has a learned energy-based prior.

The public names are imported when they are first used, so that `import latent_ebm_text` costs next to nothing.
The models are known to the Auto classes of transformers, see `registration.py`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from latent_ebm_text.registration import register_with_transformers
from latent_ebm_text.version import __version__ as __version__

if TYPE_CHECKING:
    from latent_ebm_text.configuration import LatentEBMConfig as LatentEBMConfig
    from latent_ebm_text.configuration import LatentEBMImageConfig as LatentEBMImageConfig
    from latent_ebm_text.configuration import LatentEBMTextConfig as LatentEBMTextConfig
    from latent_ebm_text.detection import LatentEBMDetector as LatentEBMDetector
    from latent_ebm_text.modeling_image import LatentEBMForImageGeneration as LatentEBMForImageGeneration
    from latent_ebm_text.modeling_text import LatentEBMForTextGeneration as LatentEBMForTextGeneration
    from latent_ebm_text.posterior import LatentPosterior as LatentPosterior
    from latent_ebm_text.prior import EnergyPrior as EnergyPrior
    from latent_ebm_text.samplers import ChainStore as ChainStore
    from latent_ebm_text.samplers import LangevinSampler as LangevinSampler
    from latent_ebm_text.text_detection import LatentEBMTextDetector as LatentEBMTextDetector

_HOMES = {
    "LatentEBMConfig": "configuration",
    "LatentEBMImageConfig": "configuration",
    "LatentEBMTextConfig": "configuration",
    "LatentEBMForImageGeneration": "modeling_image",
    "LatentEBMForTextGeneration": "modeling_text",
    "LatentEBMDetector": "detection",
    "LatentEBMTextDetector": "text_detection",
    "LatentPosterior": "posterior",
    "EnergyPrior": "prior",
    "ChainStore": "samplers",
    "LangevinSampler": "samplers",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


register_with_transformers()
