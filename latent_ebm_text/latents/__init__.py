"""The mathematics of latents: priors, posteriors, samplers and integrals, and tools such as paths and classifiers.

This package knows log-densities and positions, and nothing about models, tokens or pixels.
"""

from latent_ebm_text.latents.classifier import fit_classifier as fit_classifier
from latent_ebm_text.latents.control import Control as Control
from latent_ebm_text.latents.control import ControlledDensity as ControlledDensity
from latent_ebm_text.latents.heads import LatentClassifier as LatentClassifier
from latent_ebm_text.latents.heads import LatentRegressor as LatentRegressor
from latent_ebm_text.latents.interpolation import latent_path as latent_path
from latent_ebm_text.latents.interpolation import linear_path as linear_path
from latent_ebm_text.latents.interpolation import low_energy_path as low_energy_path
from latent_ebm_text.latents.interpolation import path_action as path_action
from latent_ebm_text.latents.interpolation import spherical_path as spherical_path
from latent_ebm_text.latents.neighbours import LatentIndex as LatentIndex
from latent_ebm_text.latents.neighbours import Neighbours as Neighbours
from latent_ebm_text.latents.regression import fit_regressor as fit_regressor
