"""Pushing to the Hub while training: write access is checked before it, and no failure stops it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from accelerate import Accelerator
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from latent_ebm_text.commands.arguments import HubArguments
from latent_ebm_text.errors import HubError, LatentEBMError
from latent_ebm_text.hub.access import hub_errors
from latent_ebm_text.hub.pushing import open_repository, push_run
from latent_ebm_text.training.checkpointing import find_checkpoints


def make_pusher(args: HubArguments, folder: str, accelerator: Accelerator) -> TrainingPusher | None:
    """The pusher of a run on the main process, or None; the other processes wait until write access is checked.

    Raises:
        UsageError: If the token has no write access.
        HubError: If the Hub cannot be reached.
    """
    pusher = None
    if args.push_to_hub and accelerator.is_main_process:
        pusher = TrainingPusher(args, Path(folder), accelerator.print)
    accelerator.wait_for_everyone()
    return pusher


def push(pusher: TrainingPusher | None) -> None:
    """Pushes the finished run, if asked to, and prints the page of the commit.

    Raises:
        HubError: If the push fails; the message names the command that repeats it.
    """
    if pusher is not None:
        print(f"{'pushed':>15}: {pusher.push_result()}")


class TrainingPusher:
    """Pushes the model of a run.

    Args:
        args: Where to push, and when.
        folder: The folder of the run.
        show: Prints a line for people.

    Raises:
        UsageError: If the token has no write access, see [`~latent_ebm_text.hub.pushing.open_repository`].
        HubError: If the Hub cannot be reached.
    """

    def __init__(self, args: HubArguments, folder: Path, show: Callable[[str], Any] = print) -> None:
        self.args, self.folder, self.show = args, folder, show
        self.repo_id = open_repository(
            args.hub_model_id, default_name=folder.resolve().name, private=args.hub_private, revision=args.hub_revision
        )

    def push_so_far(self, model: Any, step: int, processor: Any) -> None:
        """Pushes the model at a step, and its checkpoint if asked to; a failure is reported and stops nothing.

        Args:
            model: The model.
            step: The step of the training.
            processor: Its tokenizer or image processor.
        """
        if self.args.hub_strategy == "end":
            return
        try:
            with hub_errors(f"pushing step {step}"), TemporaryDirectory() as scratch:
                for part in (model, processor):
                    part.save_pretrained(scratch)
                files = {path.name: path for path in Path(scratch).iterdir()}
                stale = []
                if self.args.hub_strategy == "checkpoint":
                    newest = find_checkpoints(self.folder / "checkpoints")[0]
                    files |= {f"checkpoints/{newest.name}/{path.name}": path for path in newest.iterdir()}
                    stale = [path for path in self._checkpoint_files() if path not in files]
                HfApi().create_commit(
                    self.repo_id,
                    [
                        *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()),
                        *(CommitOperationDelete(path_in_repo=name) for name in stale),
                    ],
                    commit_message=f"Step {step}",
                    revision=self.args.hub_revision,
                )
        except LatentEBMError as error:
            self.show(f"{error}; the training goes on")

    def push_result(self) -> str:
        """Pushes the finished run and returns the page of the commit.

        Raises:
            HubError: If the push fails; the message names the command that repeats it.
        """
        try:
            pushed = push_run(
                self.folder,
                self.repo_id,
                revision=self.args.hub_revision,
                remote_code=self.args.hub_remote_code,
            )
        except LatentEBMError as error:
            options = f" --revision {self.args.hub_revision}" if self.args.hub_revision else ""
            options += " --remote_code" if self.args.hub_remote_code else ""
            raise HubError(
                f"{error}. The model is complete in {self.folder}; push it again with: latent-ebm push {self.folder} "
                f"{self.repo_id}{options}"
            ) from error
        return pushed.url

    def _checkpoint_files(self) -> list[str]:
        files = HfApi().list_repo_files(self.repo_id, revision=self.args.hub_revision)
        return [path for path in files if path.startswith("checkpoints/")]
