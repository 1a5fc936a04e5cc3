"""Integrals over the latent, with error bars: log Z of a prior and log p(x) of data. Imports torch only."""

from latent_ebm_text.likelihood.ais import AnnealedImportanceSampler as AnnealedImportanceSampler
from latent_ebm_text.likelihood.gaussian import GaussianProposal as GaussianProposal
from latent_ebm_text.likelihood.gaussian import WhitenedDensity as WhitenedDensity
from latent_ebm_text.likelihood.gaussian import fit_gaussian as fit_gaussian
from latent_ebm_text.likelihood.gaussian import laplace_approximation as laplace_approximation
from latent_ebm_text.likelihood.weights import LogIntegral as LogIntegral
from latent_ebm_text.likelihood.weights import importance_log_weights as importance_log_weights
