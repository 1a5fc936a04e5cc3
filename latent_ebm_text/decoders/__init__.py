"""Decoders p(x | z). A decoder knows nothing of priors, samplers and training."""

from latent_ebm_text.decoders.base import LatentDecoder as LatentDecoder
from latent_ebm_text.decoders.lstm import LSTMDecoder as LSTMDecoder
