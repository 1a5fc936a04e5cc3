"""The command `push`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from latent_ebm_text.cli.output import AsJson, show


def push(
    run: Annotated[str, typer.Argument(help="Folder of a run or of a model.", show_default=False)],
    repository: Annotated[
        str | None, typer.Argument(help="`name` or `namespace/name`; by default the run's name.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to, made where need be.")] = None,
    evaluation: Annotated[str | None, typer.Option(help="Folder of an evaluation, for the card.")] = None,
    remote_code: Annotated[bool, typer.Option("--remote-code", help="Let trust_remote_code=True load it.")] = False,
    overwrite_card: Annotated[bool, typer.Option("--overwrite-card", help="Replace a card edited by hand.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the card, and push nothing.")] = False,
    json: AsJson = False,
) -> None:
    """Push a model with its card, figures, samples and plots to the Hub, in one commit.

    A push that breaks off changes nothing there and can be repeated. A card that was edited by hand is kept.

    \b
    latent-ebm push runs/quickstart
    latent-ebm push runs/ptb-cpu me/latent-ebm-ptb --evaluation runs/evaluation --private
    latent-ebm push runs/ptb-cpu me/latent-ebm-ptb --dry-run
    """
    if dry_run:
        from latent_ebm_text.hub.pushing import preview_card

        card = preview_card(run, repository, evaluation=evaluation, remote_code=remote_code)
        show({"card": card}, [card], json)
        return
    from latent_ebm_text.hub import push_run

    pushed = push_run(
        run,
        repository,
        private=private,
        revision=revision,
        evaluation=evaluation,
        remote_code=remote_code,
        overwrite_card=overwrite_card,
    )
    kept = ["the card there was edited by hand and is kept (--overwrite-card replaces it)"] if pushed.kept_card else []
    show(asdict(pushed), [*kept, pushed.url], json)
