"""The folders of models and runs: where they are, what they hold, and whether they can be trusted."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from latent_ebm_text.errors import DataError, UsageError
from latent_ebm_text.hub.access import TRANSPORT_ERROR, hub_errors

#: Kinds of model, as their configurations name them.
TEXT, IMAGE = "latent_ebm_text", "latent_ebm_image"
#: Far more than any JSON file of a model or a run needs.
MAX_JSON_BYTES = 16 * 2**20
#: The files of a repository that are downloaded with its model; pickles are not.
_FILES = ["*.json", "*.safetensors", "*.txt", "*.md", "*.npz"]
#: Where transformers looks for further chat templates.
_TEMPLATES = "additional_chat_templates"


# -------- finding


def find_model(name: str | Path, revision: str | None = None) -> Path:
    """The local folder of a model.

    Args:
        name: The folder of a model, the folder of a run that holds one, or an id on the Hub, which is downloaded
            unless it is in the cache.
        revision: Branch, tag or commit on the Hub.

    Raises:
        UsageError: If there is no such folder or repository, or it holds no model, such as the folder of a run that
            has not ended.
        HubError: If the Hub cannot be reached and the model is not in the cache, or the disk is full.
    """
    if not str(name).strip():
        raise UsageError("the name of a model must not be empty: give its folder, or an id of the Hub")
    path = Path(os.path.expanduser(name))  # a path of a user who does not exist stays as it is
    if path.is_dir():
        if revision is not None:
            raise UsageError(f"revision {revision!r} is for models on the Hub, and {name} is a folder; leave it out")
        return _model_in(path)
    if path.exists():
        raise UsageError(f"{name} is a file; give the folder of a model, or an id of the Hub")
    if str(name).startswith((".", "/", "~")) or str(name).count("/") > 1:
        raise UsageError(f"there is no folder {name}; check the path (and the working directory)")
    from huggingface_hub import snapshot_download

    with hub_errors(f"{name} is no folder, and loading it from the Hub"):
        return _model_in(Path(snapshot_download(str(name), revision=revision, allow_patterns=_FILES)))


def _model_in(folder: Path) -> Path:
    for candidate in (folder, folder / "model"):
        if (candidate / "config.json").is_file():
            return candidate
    if (folder / "checkpoints").is_dir() or (folder / "metrics.jsonl").is_file():
        raise UsageError(
            f"{folder} is the folder of a run that has no model yet: its training has not ended. Run the same "
            "command again, which resumes from its newest checkpoint"
        )
    raise UsageError(f"{folder} holds no model: there is no config.json")


def run_of(model_folder: Path) -> Path | None:
    """The folder of the run that made a model: the folder with its `results.json`, or `None` if there is none."""
    for candidate in (model_folder, model_folder.parent):
        if (candidate / "results.json").is_file():
            return candidate
    return None


# -------- reading


def model_kind(folder: Path) -> str:
    """`"latent_ebm_text"` or `"latent_ebm_image"`.

    Raises:
        UsageError: If the model is of another library.
        DataError: If its configuration cannot be read.
    """
    kind = _load(folder / "config.json").get("model_type")
    if kind not in (TEXT, IMAGE):
        raise UsageError(f"{folder} holds a model of type {kind!r}, which is none of this library's")
    return str(kind)


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file of a model or a run; empty if the file does not exist.

    Raises:
        DataError: If the file is damaged.
    """
    return _load(path) if path.is_file() else {}


def _load(path: Path) -> dict[str, Any]:
    """The JSON object in a file, which may have been made by somebody with bad intentions."""
    try:
        size = path.stat().st_size
        content = json.loads(path.read_text(encoding="utf-8")) if size <= MAX_JSON_BYTES else None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error
    if size > MAX_JSON_BYTES:
        raise DataError(f"{path} has {size} bytes, more than the {MAX_JSON_BYTES} that are accepted")
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a JSON object")
    return content


# -------- checking


def check_model(name: str | os.PathLike[str], subfolder: str = "", **options: Any) -> None:
    """[`check_model_folder`] for what transformers takes as the name of a model, a folder or an id on the Hub.

    Of a repository on the Hub the JSON files are downloaded, which a model needs anyway. Where that is not possible
    nothing is checked: transformers then says why the model cannot be loaded.

    Args:
        name: Folder or Hub id.
        subfolder: The folder within it that holds the model.
        **options: Options of `from_pretrained`, of which those are used that say where on the Hub the model is.
    """
    from huggingface_hub import snapshot_download

    folder = Path(name)
    if not os.path.exists(name):
        where = {key: options[key] for key in ("revision", "token", "cache_dir", "local_files_only") if key in options}
        try:
            folder = Path(snapshot_download(str(name), allow_patterns="*.json", **where))
        except (OSError, ValueError, RuntimeError, TRANSPORT_ERROR):
            return
    check_model_folder(folder / subfolder)


def check_model_folder(folder: str | os.PathLike[str]) -> None:
    """Refuses a folder whose files lead out of it or cannot be what they claim to be.

    A name that is no folder passes. Whatever this check finds, weights are read only from safetensors and no code in
    a folder is run. Links may lead to where a folder of the Hub's cache keeps its files.

    Raises:
        DataError: If a file is a link out of the folder, a JSON file is far too large or too deep, weights are named
            that lie elsewhere or are not safetensors, the tokenizer's settings name a file elsewhere, or the folder
            holds an adapter, whose configuration names the folder of its model.
    """
    root = Path(folder)
    if not root.is_dir():
        return
    snapshots = [parent for parent in root.resolve().parents if parent.name == "snapshots"]
    roots = [root.resolve(), *(parent.parent / "blobs" for parent in snapshots)]
    for path in sorted([*root.iterdir(), *root.glob(f"{_TEMPLATES}/*")]):
        if path.is_symlink() and not _is_within(path, roots):
            raise DataError(f"{root} is refused: {path.name} is a link out of the folder, to {path.resolve()}")
    if (root / "adapter_config.json").exists():
        raise DataError(
            f"{root} is refused: adapter_config.json leads to the model of an adapter elsewhere; load that model, and "
            "then the adapter with peft.PeftModel.from_pretrained"
        )
    read_json(root / "generation_config.json")
    _check_names_of_weights(root)
    for key, value in read_json(root / "tokenizer_config.json").items():
        # Paths of the machine that a tokenizer was trained on are common. They do no harm where they do not exist.
        leads_out = key.endswith("_file") and isinstance(value, str) and os.path.exists(value)
        names = value if key == "fast_tokenizer_files" and isinstance(value, list) else []
        if (leads_out and not _is_within(Path(value), roots)) or any(not _is_plain(name) for name in names):
            raise DataError(f"{root} is refused: {key} of tokenizer_config.json leads out of the folder, to {value}")


def _check_names_of_weights(root: Path) -> None:
    """Refuses weights that are named by a configuration or an index and are not safetensors in the folder."""
    named = []
    if (explicit := read_json(root / "config.json").get("transformers_weights")) is not None:
        named.append(("config.json", str(explicit).removesuffix(".index.json")))
    for index in sorted(root.glob("*.index.json")):
        files = read_json(index).get("weight_map", {})
        named += [(index.name, file) for file in (files.values() if isinstance(files, dict) else [files])]
    for source, file in named:
        if not _is_plain(file) or not file.endswith(".safetensors"):
            raise DataError(
                f"{root} is refused: {source} names {file!r}, which is not a safetensors file in the folder"
            )


def _is_plain(name: Any) -> bool:
    """Whether this is the name of a file, without a folder."""
    return isinstance(name, str) and Path(name).name == name


def _is_within(path: Path, roots: list[Path]) -> bool:
    return any(path.resolve().is_relative_to(root) for root in roots)
