"""The cache of prepared data, in the cache folder of `datasets`, under a hash of everything the data depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from latent_ebm_text.errors import UsageError


def cached_path(kind: str, identity: Any) -> Path:
    """Returns the cache path of prepared data, and creates its folder.

    Args:
        kind: The kind of data, which names the folder.
        identity: JSON-able value of everything that the data depends on.

    Raises:
        UsageError: If the cache cannot be written to.
    """
    import datasets

    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "latent_ebm_text" / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"prepared data cannot be kept in {folder}: {error.strerror}; set the environment variable "
            "HF_DATASETS_CACHE to another folder."
        ) from error
    return folder / key


def file_versions(files: Iterable[Path]) -> list[Any]:
    """A JSON-able identity of files, which also changes where one is rewritten and its modification time set back.

    `datasets` tells versions of a file apart by that time alone, so what it reads is cached in a folder of this
    identity.
    """
    stats = {str(file.absolute()): file.stat() for file in files}
    return [[file, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for file, stat in sorted(stats.items())]
