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
    from latent_ebm_text.anomaly.image_detector import LatentEBMImageDetector as LatentEBMImageDetector
    from latent_ebm_text.anomaly.text_detector import LatentEBMTextDetector as LatentEBMTextDetector
    from latent_ebm_text.commands.text_trainer import LatentEBMTrainer as LatentEBMTrainer
    from latent_ebm_text.data.tokenizers import make_tokenizer as make_tokenizer
    from latent_ebm_text.latents import Control as Control
    from latent_ebm_text.latents import LatentClassifier as LatentClassifier
    from latent_ebm_text.latents import LatentIndex as LatentIndex
    from latent_ebm_text.latents import LatentRegressor as LatentRegressor
    from latent_ebm_text.latents import fit_classifier as fit_classifier
    from latent_ebm_text.latents import fit_regressor as fit_regressor
    from latent_ebm_text.latents.posterior import LatentPosterior as LatentPosterior
    from latent_ebm_text.latents.prior import EnergyPrior as EnergyPrior
    from latent_ebm_text.latents.prior import GaussianPrior as GaussianPrior
    from latent_ebm_text.latents.samplers import ChainStore as ChainStore
    from latent_ebm_text.latents.samplers import HMCSampler as HMCSampler
    from latent_ebm_text.latents.samplers import LangevinSampler as LangevinSampler
    from latent_ebm_text.latents.samplers import MALASampler as MALASampler
    from latent_ebm_text.latents.samplers import ParallelTemperingSampler as ParallelTemperingSampler
    from latent_ebm_text.models.configuration import LatentEBMConfig as LatentEBMConfig
    from latent_ebm_text.models.configuration import LatentEBMImageConfig as LatentEBMImageConfig
    from latent_ebm_text.models.configuration import LatentEBMTextConfig as LatentEBMTextConfig
    from latent_ebm_text.models.loading import load_text_model as load_text_model
    from latent_ebm_text.models.modeling_image import LatentEBMForImageGeneration as LatentEBMForImageGeneration
    from latent_ebm_text.models.modeling_text import LatentEBMForTextGeneration as LatentEBMForTextGeneration
    from latent_ebm_text.models.pretrained import load_decoder_tokenizer as load_decoder_tokenizer
    from latent_ebm_text.models.scoring import AnomalyScores as AnomalyScores
    from latent_ebm_text.training.arguments import TrainingArguments as TrainingArguments

_HOMES = {
    "AnomalyScores": "models.scoring",
    "ChainStore": "latents.samplers",
    "Control": "latents",
    "EnergyPrior": "latents.prior",
    "GaussianPrior": "latents.prior",
    "HMCSampler": "latents.samplers",
    "LangevinSampler": "latents.samplers",
    "LatentClassifier": "latents",
    "LatentEBMConfig": "models.configuration",
    "LatentEBMDetector": "anomaly.detectors",
    "LatentEBMForImageGeneration": "models.modeling_image",
    "LatentEBMForTextGeneration": "models.modeling_text",
    "LatentEBMImageConfig": "models.configuration",
    "LatentEBMImageDetector": "anomaly.image_detector",
    "LatentEBMTextConfig": "models.configuration",
    "LatentEBMTextDetector": "anomaly.text_detector",
    "LatentEBMTrainer": "commands.text_trainer",
    "LatentIndex": "latents",
    "LatentPosterior": "latents.posterior",
    "LatentRegressor": "latents",
    "MALASampler": "latents.samplers",
    "ParallelTemperingSampler": "latents.samplers",
    "TrainingArguments": "training.arguments",
    "fit_classifier": "latents",
    "fit_regressor": "latents",
    "load_decoder_tokenizer": "models.pretrained",
    "load_text_model": "models.loading",
    "make_tokenizer": "data.tokenizers",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


register_with_transformers()
