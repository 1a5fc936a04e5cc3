"""Where prepared data is kept: beside what `datasets` caches, under a hash of all that it was made of."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from latent_ebm_text.errors import UsageError


def cached_path(kind: str, identity: Any) -> Path:
    """The place of something prepared, in a folder that exists.

    kind: what it is, the name of the folder.
    identity: JSON-able, everything that it depends on.

    Raises `UsageError` if the cache cannot be written to.
    """
    import datasets

    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "latent_ebm_text" / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"prepared data cannot be kept in {folder}: {error.strerror}; name another folder in the environment "
            "variable HF_DATASETS_CACHE."
        ) from error
    return folder / key
