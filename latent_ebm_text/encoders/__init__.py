"""Amortised inference: networks that propose a Gaussian posterior in one pass. What a VAE infers with, and where
Langevin chains may start."""

from latent_ebm_text.encoders.base import GaussianPosterior as GaussianPosterior
from latent_ebm_text.encoders.base import LatentEncoder as LatentEncoder
