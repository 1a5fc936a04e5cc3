"""Loads a text model by name: a folder of a model or of a run, or a Hub id."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from latent_ebm_text.errors import DataError, UsageError, in_one_line
from latent_ebm_text.hub.folders import TEXT, find_model, model_kind
from latent_ebm_text.hub.folders import check_model_folder as check_model_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from latent_ebm_text.models.modeling_text import LatentEBMForTextGeneration


def load_text_model(
    name: str | Path, revision: str | None = None
) -> tuple[LatentEBMForTextGeneration, PreTrainedTokenizerBase]:
    """A text model in evaluation mode, on a GPU if there is one, and its tokenizer.

    Args:
        name: A folder of a model or of a run, or a Hub id, see [`find_model`].
        revision: Revision of a model on the Hub.

    Raises:
        UsageError: As [`find_model`]; or if the model is not a text model, or does not fit its tokenizer.
        DataError: If a file is missing or damaged, or was written by a newer version of the library.
        HubError: As [`find_model`].
    """
    folder = find_model(name, revision)
    if model_kind(folder) != TEXT:
        raise UsageError(f"{name} is an image model; give a text model")
    import torch

    model, tokenizer = read_text_model(folder)
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def read_text_model(folder: str | Path) -> tuple[LatentEBMForTextGeneration, PreTrainedTokenizerBase]:
    """The text model in a folder, in evaluation mode on the CPU, and its tokenizer; errors as [`load_text_model`]."""
    from latent_ebm_text.data.tokenizers import check_tokenizer_fits
    from latent_ebm_text.models.modeling_text import LatentEBMForTextGeneration

    try:
        model = LatentEBMForTextGeneration.from_pretrained(folder).eval()
    except OSError as error:
        raise DataError(f"the model in {folder} is incomplete: {in_one_line(error)}") from error
    tokenizer = load_tokenizer(folder)
    is_pretrained = model.config.decoder_type == "causal_lm"
    check_tokenizer_fits(tokenizer, model.config.vocab_size, is_padded=is_pretrained)
    return model, tokenizer


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer in the folder of a model.

    Raises:
        DataError: If there is none, it is damaged, or it needs code that comes with the model.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        tokenizer("a", padding=True)  # some errors show only when it is used
    except Exception as error:  # tokenizers raise errors of whatever library they need
        raise DataError(f"the tokenizer in {folder} cannot be loaded: {in_one_line(error)}") from error
    return tokenizer
