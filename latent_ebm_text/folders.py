"""Model folders that others have made: what is wrong with one is said before anything in it is trusted."""

from __future__ import annotations

import json
import os
from pathlib import Path

from latent_ebm_text.errors import DataError

#: Far more than any configuration or list of weight files needs.
MAX_JSON_BYTES = 16 * 2**20
_INDEX = "model.safetensors.index.json"


def check_model_folder(folder: str | os.PathLike[str]) -> None:
    """Refuses a folder whose files lead out of it or cannot be what they say; a name that is no folder passes.

    Weights are read from safetensors alone and no code of a folder is run, whatever this finds. Links may lead to
    where a folder of the Hub's cache keeps its files.

    Raises:
        DataError: A file is a link out of the folder, a JSON file is far too large or too deep, or the list of weight
            files names one elsewhere.
    """
    root = Path(folder)
    if not root.is_dir():
        return
    snapshots = [parent for parent in root.resolve().parents if parent.name == "snapshots"]
    roots = [root.resolve(), *(parent.parent / "blobs" for parent in snapshots)]
    for path in sorted(root.iterdir()):
        target = path.resolve()
        if path.is_symlink() and not any(target.is_relative_to(allowed) for allowed in roots):
            raise DataError(f"{root} is refused: {path.name} is a link out of the folder, to {target}")
    for path in (root / "config.json", root / "generation_config.json", root / _INDEX):
        if path.is_file():
            content = _read_json(path)
            files = content.get("weight_map") if path.name == _INDEX else {}
            for name in files.values() if isinstance(files, dict) else ("",):
                if not isinstance(name, str) or name in ("", "..") or Path(name).name != name:
                    raise DataError(f"{root} is refused: {_INDEX} names {name!r}, which is not a plain file name")


def _read_json(path: Path) -> dict[str, object]:
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise DataError(f"{path.parent} is refused: {path.name} has {size} bytes, more than {MAX_JSON_BYTES}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path.parent} cannot be read: {path.name} is no sound JSON ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path.parent} cannot be read: {path.name} is not a JSON object")
    return content
