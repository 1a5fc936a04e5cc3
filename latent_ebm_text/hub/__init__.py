"""Models on the Hugging Face Hub: loading, pushing, and the card that tells what a model is and how good."""

from latent_ebm_text.hub.loading import find_model as find_model
from latent_ebm_text.hub.loading import load_text_model as load_text_model
from latent_ebm_text.hub.pushing import push_run as push_run
