"""Reads texts from the Hugging Face Hub, as whole data sets or as streams."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from latent_ebm_text.data.files import first_line
from latent_ebm_text.data.formats import FORMATS, ending
from latent_ebm_text.errors import DataError, UsageError

PTB_HUB_ID = "ptb-text-only/ptb_text_only"
# The main branch holds a loading script, which `datasets` refuses from version 4 on; this branch has the rows as
# parquet.
PTB_REVISION = "refs/convert/parquet"

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def refuse_what_cannot_be_a_hub_id(name: str) -> None:
    """Raises a `UsageError` if a name cannot be an id on the Hub and is therefore a path that does not exist."""
    if not _HUB_ID.fullmatch(name) or ending(Path(name)) in FORMATS:
        raise UsageError(f"there is no file or folder {name!r}; check the path (and the working directory).")


def read_hub(
    repo_id: str, revision: str | None, notes: list[str], *, streaming: bool = False
) -> tuple[dict[str, Any], list[Any]]:
    """Loads a data set of the Hub, or its cached copy if the Hub cannot be reached.

    Returns:
        The splits, `IterableDataset`s if `streaming`, and a JSON-able identity of the data.

    Raises:
        UsageError: If the Hub has no such data set.
        DataError: If it cannot be loaded, or the Hub cannot be reached and there is no cached copy.
    """
    import datasets

    obstacle = _what_keeps_us_from_the_hub()
    options = {"streaming": True} if streaming else {}
    try:
        with _cached_copies_only(obstacle is not None):
            splits = dict(datasets.load_dataset(repo_id, revision=revision, **options))
            identity = [repo_id, revision, _commit(repo_id, revision) if streaming else None]
    except datasets.exceptions.DatasetNotFoundError as error:
        raise UsageError(
            f"{repo_id!r} is neither a local file or folder nor found on the Hugging Face Hub: {first_line(error)}"
        ) from error
    except ConnectionError as error:
        raise DataError(
            f"{repo_id!r} is neither local nor cached, and the Hugging Face Hub cannot be reached "
            f"({obstacle or first_line(error)}): give the path of a local file or folder, or use the embedded corpus "
            "with --dataset_name grammar."
        ) from error
    except (datasets.exceptions.DatasetsError, ValueError, RuntimeError, OSError) as error:
        raise DataError(
            f"{repo_id!r} on the Hugging Face Hub cannot be loaded: {first_line(error)} "
            f"(for a set that is a loading script try revision={PTB_REVISION!r})"
        ) from error
    if obstacle is not None:
        notes.append(f"the Hub was not asked ({obstacle}): this is the latest cached copy, of any revision")
    return splits, identity


def _commit(repo_id: str, revision: str | None) -> str | None:
    """Returns the commit of a revision, because a stream must not be continued in another one."""
    from huggingface_hub import HfApi

    return HfApi().dataset_info(repo_id, revision=revision).sha


def _what_keeps_us_from_the_hub() -> str | None:
    """Returns why the Hub cannot be asked, or None, after one short request; `datasets` would retry for 23 s."""
    import datasets
    from huggingface_hub import get_session

    if datasets.config.HF_HUB_OFFLINE:
        return "offline mode is on: HF_HUB_OFFLINE or HF_DATASETS_OFFLINE"
    try:
        get_session().head(datasets.config.HF_ENDPOINT, timeout=5)  # any answer will do, of any status
    # The HTTP library of the Hub's client differs between versions, so there is no exception class to name.
    except Exception as error:
        return f"{datasets.config.HF_ENDPOINT}: {first_line(error)}"
    return None


@contextmanager
def _cached_copies_only(enabled: bool) -> Iterator[None]:
    """Puts `datasets` in offline mode temporarily; its environment variable is read only at import."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or enabled
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
