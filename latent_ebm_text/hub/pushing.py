"""Pushing a model with its card, in one commit that arrives as a whole or not at all."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from latent_ebm_text.errors import UsageError, reading
from latent_ebm_text.hub.access import hub_errors
from latent_ebm_text.hub.card import PLOTS, build_card, is_edited
from latent_ebm_text.hub.folders import IMAGE, TEXT, find_model, model_kind, read_json, run_of

#: Files of a run and of its evaluation that are pushed with the model.
_RUN_FILES = ("results.json", "metrics.jsonl", "samples.txt")
_EVALUATION_FILES = ("evaluation.json", "chains.json")
#: Files that any new repository may hold.
_HARMLESS = {".gitattributes", "README.md", ".gitignore"}
REMOTE_CODE = "remote_code.py"
_CLASSES = {
    TEXT: ("LatentEBMTextConfig", "LatentEBMForTextGeneration", "AutoModelForCausalLM"),
    IMAGE: ("LatentEBMImageConfig", "LatentEBMForImageGeneration", "AutoModel"),
}


@dataclass(frozen=True)
class Pushed:
    """The result of a push.

    Attributes:
        repo_id: The repository.
        url: The page of the commit.
        commit: The SHA of the commit.
        kept_card: Whether a card that was edited by hand was left as it was.
    """

    repo_id: str
    url: str
    commit: str
    kept_card: bool


def open_repository(
    repo_id: str | None, *, default_name: str, private: bool = False, revision: str | None = None
) -> str:
    """Makes sure that a model may be pushed, before any work is done for it, and creates the repository if need be.

    Args:
        repo_id: The repository, `name` or `namespace/name`.
        default_name: The name of the repository if none is given.
        private: Whether a new repository is private.
        revision: A branch, created if need be.

    Returns:
        The full id of the repository.

    Raises:
        UsageError: If there is no token, it lacks the right to write, or the name is taken by something else.
        HubError: If the Hub cannot be reached.
    """
    name, api = repo_id or default_name, HfApi()
    with hub_errors(f"pushing to {name}"):
        user = api.whoami()
        namespaces = [user["name"], *(organisation["name"] for organisation in user.get("orgs", []))]
        full = name if "/" in name else f"{user['name']}/{name}"
        if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise UsageError(f"pushing to {full}: the token of {user['name']} may only read; make one that may write")
        if full.split("/")[0] not in namespaces:
            raise UsageError(
                f"pushing to {full}: {user['name']} may not write there, but to {', '.join(namespaces)}; choose "
                "another name"
            )
        api.create_repo(full, private=private, exist_ok=True)
        _refuse_what_is_not_ours(api, full)
        if revision is not None:
            api.create_branch(full, branch=revision, exist_ok=True)
    return full


def _refuse_what_is_not_ours(api: HfApi, repo_id: str) -> None:
    files = set(api.list_repo_files(repo_id))
    if files <= _HARMLESS:
        return
    kind = None
    if "config.json" in files:
        config = read_json(Path(api.hf_hub_download(repo_id, "config.json")))
        kind = config.get("model_type")
    if kind not in _CLASSES:
        what = f"a model of type {kind!r}" if kind else f"other files ({', '.join(sorted(files - _HARMLESS)[:3])})"
        raise UsageError(f"pushing to {repo_id}: the name is taken, by {what}; choose another one")


def push_run(
    name: str | Path,
    repo_id: str | None = None,
    *,
    private: bool = False,
    revision: str | None = None,
    evaluation: str | Path | None = None,
    remote_code: bool = False,
    overwrite_card: bool = False,
) -> Pushed:
    """Pushes a model with its card, metrics, samples and plots, in one commit.

    A push that breaks off changes nothing on the Hub; when it is repeated, files that were uploaded before are not
    sent again. A card that was edited by hand, on the Hub or locally, is kept.

    Args:
        name: The folder of a run or of a model.
        repo_id: The repository; by default one named after the run, of the owner of the token.
        private: Whether a new repository is private.
        revision: The branch to push to.
        evaluation: The folder of an evaluation, whose metrics are then added to the card.
        remote_code: Whether to add the code that loads the model with `trust_remote_code=True`.
        overwrite_card: Whether to replace the card even if it was edited by hand.

    Raises:
        UsageError: If there is no model or evaluation, or as [`open_repository`].
        HubError: If the Hub cannot be reached or breaks off.
        DataError: If the files of the run are damaged.
    """
    model_folder = find_model(name)
    run = run_of(model_folder)
    evaluation = _evaluation_folder(evaluation, name)
    default_name = (run or model_folder).resolve().name
    full = open_repository(repo_id, default_name=default_name, private=private, revision=revision)
    with reading(run or model_folder):
        card = build_card(model_folder, full, run=run, evaluation=evaluation, remote_code=remote_code)
    local = model_folder / "README.md"
    with hub_errors(f"pushing to {full}"), TemporaryDirectory() as scratch:
        kept_card = not overwrite_card and _remote_card_is_edited(full, revision, Path(scratch))
        files: dict[str, Path | bytes] = {
            path.name: path for path in sorted(model_folder.iterdir()) if path.is_file() and path.name != "README.md"
        }
        files |= _companions(run, (*_RUN_FILES, *PLOTS))
        files |= _companions(evaluation, (*_EVALUATION_FILES, "samples.txt", *PLOTS))
        if remote_code:
            files |= remote_code_files(model_folder)
        if not kept_card and not overwrite_card and local.is_file() and is_edited(local.read_text(encoding="utf-8")):
            files["README.md"] = local
        elif not kept_card:
            files["README.md"] = card.encode()
        commit = commit_files(full, files, message=f"Push {default_name}", revision=revision)
    return Pushed(full, commit.commit_url, commit.oid, kept_card)


def push_first_card(model: Any, repo_id: str, *, private: bool | None = None, token: Any = None) -> None:
    """Adds the card to a repository before the first push of a model by its own `push_to_hub`.

    Args:
        model: The model.
        repo_id: The repository, which is created if need be.
        private: Whether a new repository is private.
        token: The token, as the Hub's client takes it.
    """
    api = HfApi(token=token)
    full = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if api.file_exists(full, "README.md"):
        return
    origin = Path(model.name_or_path or "/nowhere")
    with TemporaryDirectory() as scratch:
        if (origin / "config.json").is_file():
            with reading(origin):
                card = build_card(origin, full, run=run_of(origin))
        else:
            model.config.save_pretrained(scratch)
            card = build_card(Path(scratch), full)
    api.upload_file(
        repo_id=full, path_in_repo="README.md", path_or_fileobj=card.encode(), commit_message="Add the model's card"
    )


def preview_card(
    name: str | Path,
    repo_id: str | None = None,
    *,
    evaluation: str | Path | None = None,
    remote_code: bool = False,
) -> str:
    """The card that [`push_run`] with the same arguments would generate; the Hub is not asked."""
    model_folder = find_model(name)
    run = run_of(model_folder)
    title, evaluated = repo_id or (run or model_folder).resolve().name, _evaluation_folder(evaluation, name)
    with reading(run or model_folder):
        return build_card(model_folder, title, run=run, evaluation=evaluated, remote_code=remote_code)


def _evaluation_folder(evaluation: str | Path | None, name: str | Path) -> Path | None:
    if evaluation is None:
        return None
    if not (Path(evaluation) / "evaluation.json").is_file():
        raise UsageError(f"{evaluation} holds no evaluation.json; make one with: latent-ebm evaluate --model {name}")
    return Path(evaluation)


def commit_files(repo_id: str, files: dict[str, Path | bytes], *, message: str, revision: str | None) -> Any:
    """Commits files, which are given by their paths in the repository, in one commit."""
    operations = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=content) for path, content in files.items()]
    return HfApi().create_commit(repo_id, operations, commit_message=message, revision=revision)


def remote_code_files(model_folder: Path) -> dict[str, Path | bytes]:
    """The files by which the Auto classes load a model as remote code: one module, named in the configuration."""
    config_class, model_class, auto_class = _CLASSES[model_kind(model_folder)]
    config = read_json(model_folder / "config.json")
    stem = REMOTE_CODE.removesuffix(".py")
    config["auto_map"] = {"AutoConfig": f"{stem}.{config_class}", auto_class: f"{stem}.{model_class}"}
    code = (
        '"""Loads the model with the package that made it: pip install latent-ebm-text."""\n\n'
        f"from latent_ebm_text import {config_class}, {model_class}  # noqa: F401\n"
    )
    return {REMOTE_CODE: code.encode(), "config.json": (json.dumps(config, indent=2) + "\n").encode()}


def _companions(folder: Path | None, names: tuple[str, ...]) -> dict[str, Path | bytes]:
    return {} if folder is None else {name: folder / name for name in names if (folder / name).is_file()}


def _remote_card_is_edited(repo_id: str, revision: str | None, folder: Path) -> bool:
    try:
        path = HfApi().hf_hub_download(repo_id, "README.md", revision=revision, local_dir=folder)
    except LocalEntryNotFoundError:  # the Hub did not answer, so that nothing is known about the card
        raise
    except EntryNotFoundError:
        return False
    return is_edited(Path(path).read_text(encoding="utf-8"))
