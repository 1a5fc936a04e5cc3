"""Integrals over the latent, with error bars: log Z of a prior and log p(x) of data."""

from latent_ebm_text.latents.integrals.ais import AnnealedImportanceSampler as AnnealedImportanceSampler
from latent_ebm_text.latents.integrals.bidirectional import Audit as Audit
from latent_ebm_text.latents.integrals.bidirectional import AuditedModel as AuditedModel
from latent_ebm_text.latents.integrals.bidirectional import audit as audit
from latent_ebm_text.latents.integrals.gaussian import GaussianProposal as GaussianProposal
from latent_ebm_text.latents.integrals.gaussian import WhitenedDensity as WhitenedDensity
from latent_ebm_text.latents.integrals.gaussian import laplace_approximation as laplace_approximation
from latent_ebm_text.latents.integrals.marginal import MarginalMethod as MarginalMethod
from latent_ebm_text.latents.integrals.marginal import posterior_log_weights as posterior_log_weights
from latent_ebm_text.latents.integrals.partition import LogPartition as LogPartition
from latent_ebm_text.latents.integrals.partition import bracket_log_partition as bracket_log_partition
from latent_ebm_text.latents.integrals.partition import long_run_draws as long_run_draws
from latent_ebm_text.latents.integrals.weights import LogIntegral as LogIntegral
from latent_ebm_text.latents.integrals.weights import importance_log_weights as importance_log_weights
