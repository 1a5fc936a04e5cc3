"""Errors of the Hub's client, turned into one line that says what to do."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, errors

from latent_ebm_text.errors import HubError, LatentEBMError, UsageError

#: What the client's HTTP library raises when there is no answer; its name differs between versions of the client.
TRANSPORT_ERROR: type[BaseException] = errors.HfHubHTTPError.__bases__[0]


@contextmanager
def hub_errors(task: str) -> Iterator[None]:
    """Turns what the Hub's client raises into a [`HubError`] or [`UsageError`].

    Args:
        task: What is being done, such as `"pushing to me/model"`; every message begins with it.

    Raises:
        UsageError: If there is no token, it is wrong or lacks rights, or a name is invalid.
        HubError: If there is no network, offline mode is on, the disk is full, or the Hub answers with another error.
    """
    try:
        yield
    except LatentEBMError:
        raise
    except (OSError, ValueError, RuntimeError, TRANSPORT_ERROR) as error:
        raise explain(error, task) from error


def explain(error: BaseException, task: str) -> LatentEBMError:
    """The error to raise instead of one by the Hub's client or the disk."""
    chain = list(_causes(error))
    if any(isinstance(cause, OSError) and cause.errno == errno.ENOSPC for cause in chain):
        return _disk_full(task)
    for cause in chain:
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return HubError(f"{task}: offline mode is on; unset HF_HUB_OFFLINE")
        if isinstance(cause, errors.LocalTokenNotFoundError):
            return UsageError(f"{task}: there is no Hugging Face token; run `hf auth login` or set HF_TOKEN")
        if isinstance(cause, errors.HFValidationError):
            return UsageError(f"{task}: {_line(cause)}")
        if isinstance(cause, errors.HfHubHTTPError):
            return _answered(cause, task)
        if isinstance(cause, (TRANSPORT_ERROR, ConnectionError)):
            return HubError(f"{task}: {constants.ENDPOINT} cannot be reached ({_line(cause)}); try again later")
    return HubError(f"{task}: {_line(error)}")


def _answered(error: errors.HfHubHTTPError, task: str) -> LatentEBMError:
    status = error.response.status_code if error.response is not None else None
    if isinstance(error, errors.GatedRepoError):
        return UsageError(f"{task}: access is restricted; ask for it on the model's page, and log in")
    if isinstance(error, errors.RevisionNotFoundError):
        return UsageError(f"{task}: there is no such revision")
    if isinstance(error, errors.RepositoryNotFoundError):
        return UsageError(f"{task}: the Hub has no such repository, or hides it from you; log in if it is private")
    if status == 401:
        return UsageError(f"{task}: the Hub does not know this token; run `hf auth login` again or correct HF_TOKEN")
    if status == 403:
        return UsageError(
            f"{task}: this token may not do that; it must be one with write access, of a member of that namespace"
        )
    return HubError(f"{task}: the Hub answered {status} ({_line(error)}); try again later")


def _disk_full(task: str) -> HubError:
    cache = Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(next(path for path in (cache, *cache.parents) if path.exists())).free
    return HubError(
        f"{task}: the disk is full ({free / 2**20:,.0f} MiB free in {cache}); make room (`hf cache prune`) or set "
        "HF_HOME to a larger disk, and run it again: what is complete is kept"
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, the one it was raised from, and so on."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
