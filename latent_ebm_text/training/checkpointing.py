"""Checkpoints that stay intact if the process is killed at any moment.

A checkpoint is a folder `step-00000100/` with `<name>.safetensors` files, `state.json`, and `manifest.json` with the
size and SHA-256 of the other files, and the SHA-256 of its own content. It is written under a temporary name, flushed
to disk, and then published by one rename, so a folder with the final name is always complete. Removal is a rename
followed by the deletion. Only one process may write to a folder, on a POSIX file system.
"""

import hashlib
import json
import os
import re
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor, distribute_tensor

from latent_ebm_text import __version__
from latent_ebm_text.errors import CheckpointError, UsageError
from latent_ebm_text.training.files import flush

FORMAT_VERSION = 1
MAX_JSON_BYTES = 64 * 2**20

_PUBLISHED_NAME = re.compile(r"step-(\d{8,})")
_LEFTOVER_NAME = re.compile(r"\.(?:tmp|trash)-(\d+)-.*")
_SAFE_FILE_NAME = re.compile(r"\w[\w.-]*", re.ASCII)


class IncompleteCheckpointError(CheckpointError):
    """A checkpoint is half-written or corrupt; an earlier one may still be good."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint in memory; `tensors` maps every saved name to its tensors, on the CPU."""

    path: Path
    step: int
    tensors: dict[str, dict[str, torch.Tensor]]
    state: dict[str, Any]


# Saving


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: dict[str, dict[str, torch.Tensor]],
    state: dict[str, Any],
    *,
    identity: dict[str, Any],
    keep_last: int = 2,
    best_step: int | None = None,
) -> Path:
    """Publishes `<folder>/step-<8 digits>/`, then removes all but the `keep_last` newest checkpoints and `best_step`.

    A complete checkpoint of this step is returned and never overwritten.

    Args:
        folder: The folder of all checkpoints of a run; created if needed.
        step: Number of optimizer steps done.
        tensors: One file per entry; shapes, strides and shared memory are arbitrary.
        state: The JSON-able rest, at most 64 MB of JSON. Tuples become lists, and keys become strings.
        identity: What a run must have in common with this checkpoint to load it, such as the model's sizes.
        keep_last: Number of newest checkpoints that are kept besides the best one, with the new one.
        best_step: The step of a checkpoint that is always kept.

    Raises:
        UsageError: If `step`, `keep_last`, a name, `state` or `identity` is invalid.
        CheckpointError: If the checkpoint cannot be written (earlier ones are unchanged), or `folder` already holds
            this step of another model.
    """
    if step < 0 or keep_last < 1:
        raise UsageError(f"a checkpoint needs step >= 0 and keep_last >= 1, got step={step} and keep_last={keep_last}")
    for name in tensors:
        if not _SAFE_FILE_NAME.fullmatch(name):
            raise UsageError(f"{name!r} cannot name a checkpoint file; use letters, digits, '_', '-' and '.'")
    state_json, identity_json = _to_json("state", state), _to_json("identity", identity)

    published = folder / _name_of(step)
    temporary = folder / f".tmp-{os.getpid()}-{published.name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        if published.exists():
            try:
                _verify(published, identity)
                return published
            except IncompleteCheckpointError:
                _move_to_trash(published)
        temporary.mkdir()
        _write_files(temporary, step, tensors, state_json, json.loads(identity_json))
        os.rename(temporary, published)
        flush(folder)
        # Checkpoints of later steps are corrupt ones that a resumed run skipped; they must not displace good ones.
        earlier = [path for path in find_checkpoints(folder) if _step_of(path) <= step]
        for path in earlier[keep_last:]:
            if _step_of(path) != best_step:
                _move_to_trash(path)
        _remove_leftovers(folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot save the checkpoint of step {step} in {folder}: {error}; earlier checkpoints are unchanged"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # it does not exist if all went well
    return published


def _write_files(
    folder: Path, step: int, tensors: dict[str, dict[str, torch.Tensor]], state_json: str, identity: dict[str, Any]
) -> None:
    for name, group in tensors.items():
        save_file(_with_own_memory(group), folder / f"{name}.safetensors")
    (folder / "state.json").write_text(state_json, encoding="utf-8")
    manifest = {
        "format_version": FORMAT_VERSION,
        "library_version": __version__,
        "step": step,
        "identity": identity,
        "files": {
            path.name: {"size": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(folder.iterdir())
        },
    }
    manifest["sha256"] = _sha256_of_json(manifest)
    (folder / "manifest.json").write_text(_to_json("manifest", manifest), encoding="utf-8")
    for path in folder.iterdir():
        flush(path)
    flush(folder)


def _with_own_memory(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies tensors as needed: safetensors requires contiguous tensors that share no memory, as tied weights do."""
    separate: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        address = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if address in seen else tensor
        seen.add(address)
    return separate


def _to_json(what: str, value: dict[str, Any]) -> str:
    try:
        text = json.dumps(value, indent=2)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the {what} of a checkpoint must be JSON-able: {error}") from error
    if len(text) > MAX_JSON_BYTES:  # json.dumps writes ASCII, so characters are bytes
        raise UsageError(f"the {what} of a checkpoint is {len(text)} bytes of JSON; store large arrays as tensors")
    return text


def _move_to_trash(path: Path) -> None:
    os.rename(path, path.with_name(f".trash-{os.getpid()}-{path.name}"))


def _remove_leftovers(folder: Path) -> None:
    """Deletes the temporary and trash folders of this process and of processes that no longer run."""
    for path in folder.iterdir():
        match = _LEFTOVER_NAME.fullmatch(path.name)
        if match and (int(match[1]) == os.getpid() or not _is_alive(int(match[1]))):
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # it is alive and belongs to another user
    return True


# Loading


def find_checkpoints(folder: Path) -> list[Path]:
    """Returns the published checkpoints in `folder`, newest first; none if it does not exist. Links are ignored."""
    if not folder.is_dir():
        return []
    published = [path for path in folder.iterdir() if _PUBLISHED_NAME.fullmatch(path.name)]
    return sorted((path for path in published if path.is_dir() and not path.is_symlink()), key=_step_of, reverse=True)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _name_of(step: int) -> str:
    return f"step-{step:08d}"


def load_checkpoint(path: Path, *, identity: dict[str, Any]) -> Checkpoint:
    """Verifies every byte of the checkpoint at `path`, then loads it on the CPU.

    Raises:
        IncompleteCheckpointError: If a file is missing, unreadable, truncated or altered.
        CheckpointError: If it belongs to another model, was written by another version of the library, or has content
            that this library never writes (links, paths that leave the folder, excessive sizes).
    """
    step, names = _verify(path, identity)
    try:
        tensors = {Path(name).stem: load_file(path / name) for name in names if name.endswith(".safetensors")}
    except (OSError, SafetensorError) as error:
        raise IncompleteCheckpointError(f"{path} cannot be read: {error}") from error
    return Checkpoint(path=path, step=step, tensors=tensors, state=_read_json(path / "state.json"))


def load_latest_checkpoint(folder: Path, *, identity: dict[str, Any]) -> tuple[Checkpoint | None, list[str]]:
    """Loads the newest complete checkpoint in `folder`; also returns why newer ones are incomplete, one line each.

    Raises:
        CheckpointError: If the newest complete checkpoint belongs to another model or library version. This is never a
            reason to resume from an older one or to start from scratch.
    """
    skipped: list[str] = []
    for path in find_checkpoints(folder):
        try:
            return load_checkpoint(path, identity=identity), skipped
        except IncompleteCheckpointError as error:
            skipped.append(str(error))
    return None, skipped


def _verify(path: Path, identity: dict[str, Any]) -> tuple[int, list[str]]:
    """Checks that a checkpoint is complete, and then that it belongs to this run; returns step and file names."""
    manifest = _read_json(path / "manifest.json")
    own = manifest.pop("sha256", None)
    if own is not None and own != _sha256_of_json(manifest):
        raise IncompleteCheckpointError(
            f"{path} is corrupt: the SHA-256 of manifest.json is not the one that it holds"
        )
    try:
        step, saved_version, saved_identity = manifest["step"], manifest["library_version"], manifest["identity"]
        format_version = manifest["format_version"]
        files = {name: (entry["size"], entry["sha256"]) for name, entry in manifest["files"].items()}
        is_sound = isinstance(step, int) and isinstance(saved_identity, dict) and "state.json" in files
    except (AttributeError, KeyError, TypeError):
        is_sound = False
    if not is_sound:
        raise IncompleteCheckpointError(f"{path} is corrupt: manifest.json lacks required entries")
    if format_version != FORMAT_VERSION:
        raise CheckpointError(f"{path} has format version {format_version}, this library reads {FORMAT_VERSION}")
    if path.name != _name_of(step):
        raise IncompleteCheckpointError(f"{path} is corrupt: manifest.json is that of step {step}")

    for name, (size, sha256) in files.items():
        if not _SAFE_FILE_NAME.fullmatch(name):
            raise CheckpointError(f"{path} is refused: its manifest names {name!r}, which is not a plain file name")
        found = _size_of(path / name)
        if found != size:
            raise IncompleteCheckpointError(f"{path} is half-written: {name} has {found} bytes instead of {size}")
        try:
            is_same = _sha256(path / name) == sha256
        except OSError as error:
            raise IncompleteCheckpointError(f"{path} cannot be read: {error}") from error
        if not is_same:
            raise IncompleteCheckpointError(f"{path} is corrupt: the SHA-256 of {name} is not the one in the manifest")

    if str(saved_version).split(".")[:2] != __version__.split(".")[:2]:
        raise CheckpointError(
            f"{path} was written by latent_ebm_text {saved_version}, this is {__version__}; "
            "use the version that wrote it, or another output folder"
        )
    wanted = json.loads(_to_json("identity", identity))  # tuples become lists, as in the manifest
    differing = [
        key
        for key in sorted(saved_identity.keys() | wanted.keys())
        if key not in saved_identity or key not in wanted or saved_identity[key] != wanted[key]
    ]
    if differing:
        both = [f"{key} is {_show(saved_identity, key)} there and {_show(wanted, key)} here" for key in differing]
        raise CheckpointError(f"{path} belongs to another model: {'; '.join(both)}")
    return step, list(files)


def _show(identity: dict[str, Any], key: str) -> str:
    return repr(identity[key]) if key in identity else "absent"


def _size_of(path: Path) -> int:
    try:
        status = path.lstat()
    except FileNotFoundError as error:
        raise IncompleteCheckpointError(f"{path.parent} is half-written: {path.name} is missing") from error
    except OSError as error:
        raise IncompleteCheckpointError(f"{path.parent} cannot be read: {error}") from error
    if not stat.S_ISREG(status.st_mode):  # a link could lead anywhere, and a pipe would block forever
        raise CheckpointError(f"{path.parent} is refused: {path.name} is a symbolic link or another special file")
    return status.st_size


def _read_json(path: Path) -> dict[str, Any]:
    size = _size_of(path)
    if size > MAX_JSON_BYTES:
        raise CheckpointError(f"{path.parent} is refused: {path.name} has {size} bytes, more than {MAX_JSON_BYTES}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise IncompleteCheckpointError(f"{path.parent} is corrupt: {path.name} cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise IncompleteCheckpointError(f"{path.parent} is corrupt: {path.name} is not a JSON object")
    return value


def _sha256_of_json(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


# Optimizer


def flatten_optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Splits the state of `optimizer` into tensors with names such as `state.0.exp_avg`, and a JSON-able rest."""
    packed = optimizer.state_dict()
    sections = {"state": packed["state"], "param_groups": dict(enumerate(packed["param_groups"]))}
    tensors: dict[str, torch.Tensor] = {}
    rest: dict[str, Any] = {}
    for section, entries in sections.items():
        rest[section] = {str(index): {} for index in entries}
        for index, entry in entries.items():
            for name, value in entry.items():
                if isinstance(value, torch.Tensor):
                    tensors[f"{section}.{index}.{name}"] = value
                else:
                    rest[section][str(index)][name] = value
    return tensors, rest


def restore_optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], rest: dict[str, Any]
) -> None:
    """Restores the state that `flatten_optimizer_state` returned, directly or from a checkpoint.

    Raises:
        CheckpointError: If the state belongs to an optimizer with other parameters, groups or settings. The learning
            rates may differ.
    """
    own = [dict(group) for group in optimizer.param_groups]
    try:
        sections = {
            section: {
                # JSON has no tuples; the only setting of an optimizer that is a list is `params`
                int(index): {k: tuple(v) if isinstance(v, list) and k != "params" else v for k, v in entry.items()}
                for index, entry in rest[section].items()
            }
            for section in ("state", "param_groups")
        }
        for key, value in tensors.items():
            section, index, name = key.split(".", 2)
            sections[section][int(index)][name] = value.clone()  # or the next step would modify the caller's tensors
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        for number, moments in sections["state"].items():
            tensors_of_weight = {name: value for name, value in moments.items() if isinstance(value, torch.Tensor)}
            moments |= {name: sharded_like(value, weights[number]) for name, value in tensors_of_weight.items()}
        groups = [group for _, group in sorted(sections["param_groups"].items())]
        optimizer.load_state_dict({"state": sections["state"], "param_groups": groups})
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"this optimizer state belongs to another optimizer: {error}") from error
    for group, before in zip(optimizer.param_groups, own, strict=True):
        for name in before.keys() & group.keys() - {"params", "lr"}:
            if group[name] != before[name]:
                raise CheckpointError(
                    f"this optimizer state belongs to another optimizer: {name} is {group[name]} there and "
                    f"{before[name]} here"
                )


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor, gathered where it is sharded; every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(whole: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A tensor, sharded as a parameter of the same shape is; itself where neither is sharded."""
    if not isinstance(parameter, DTensor) or whole.shape != parameter.shape:
        return whole
    local = parameter.to_local()
    whole = whole.to(local.device, local.dtype)
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements)
