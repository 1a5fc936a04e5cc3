"""Amortised inference: networks that propose a Gaussian posterior in one pass. The baselines' way to a latent."""

from latent_ebm_text.encoders.base import GaussianPosterior as GaussianPosterior
from latent_ebm_text.encoders.base import LatentEncoder as LatentEncoder
