"""Models by name: a folder, the folder of a run, or an id of the Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latent_ebm_text.errors import DataError, UsageError
from latent_ebm_text.hub.access import hub_errors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from latent_ebm_text.modeling_text import LatentEBMForTextGeneration

#: Kinds of model, as their configurations name them.
TEXT, IMAGE = "latent_ebm_text", "latent_ebm_image"
#: What a repository may hold that belongs to its model; pickles stay where they are.
_FILES = ["*.json", "*.safetensors", "*.txt", "*.md", "*.npz"]


def find_model(name: str | Path, revision: str | None = None) -> Path:
    """The local folder of a model.

    Args:
        name: A model's folder, the folder of a run that holds one, or an id of the Hub, which is downloaded unless it
            is in the cache.
        revision: Branch, tag or commit on the Hub.

    Raises:
        UsageError: If there is no such folder or repository, or it holds no model; of a run that has not ended it
            says so.
        HubError: If the Hub cannot be reached and has not been before, or the disk is full.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if revision is not None:
            raise UsageError(f"revision {revision!r} is for models on the Hub, and {name} is a folder; leave it out")
        return _in_folder(path)
    if path.exists():
        raise UsageError(f"{name} is a file; give the folder of a model, or an id of the Hub")
    if str(name).startswith((".", "/", "~")) or str(name).count("/") > 1:
        raise UsageError(f"there is no folder {name}; check the path (and the working directory)")
    from huggingface_hub import snapshot_download

    with hub_errors(f"{name} is no folder, and loading it from the Hub"):
        return _in_folder(Path(snapshot_download(str(name), revision=revision, allow_patterns=_FILES)))


def _in_folder(folder: Path) -> Path:
    for candidate in (folder, folder / "model"):
        if (candidate / "config.json").is_file():
            return candidate
    if (folder / "checkpoints").is_dir() or (folder / "metrics.jsonl").is_file():
        raise UsageError(
            f"{folder} is the folder of a run that has no model yet: its training has not ended. Run the same "
            "command again, which goes on from its newest checkpoint"
        )
    raise UsageError(f"{folder} holds no model: there is no config.json")


def model_kind(folder: Path) -> str:
    """`"latent_ebm_text"` or `"latent_ebm_image"`.

    Raises:
        UsageError: If the model is of another library.
        DataError: If its configuration cannot be read.
    """
    kind = _read_config(folder).get("model_type")
    if kind not in (TEXT, IMAGE):
        raise UsageError(f"{folder} holds a model of type {kind!r}, which is none of this library's")
    return str(kind)


def load_text_model(
    name: str | Path, revision: str | None = None
) -> tuple[LatentEBMForTextGeneration, PreTrainedTokenizerBase]:
    """A text model, ready to use on the best device there is, and its tokeniser.

    Args:
        name: As of [`find_model`].
        revision: The same.

    Raises:
        UsageError: As [`find_model`]; if the model is none of text, or was written by a newer version of the library.
        DataError: If a file is missing or damaged.
        HubError: As [`find_model`].
    """
    folder = find_model(name, revision)
    if model_kind(folder) != TEXT:
        raise UsageError(f"{name} is a model of images; this needs one of text")
    import torch
    from safetensors import SafetensorError
    from transformers import AutoTokenizer

    from latent_ebm_text.modeling_text import LatentEBMForTextGeneration

    try:
        model = LatentEBMForTextGeneration.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (UsageError, MemoryError):
        raise
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise DataError(f"the model in {folder} is incomplete or damaged: {str(error).splitlines()[0]}") from error
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / 'config.json'} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise DataError(f"{folder / 'config.json'} is no model configuration")
    return config
