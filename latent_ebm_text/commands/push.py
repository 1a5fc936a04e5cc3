"""The command `push`."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from latent_ebm_text.commands import parsing
from latent_ebm_text.commands.output import show
from latent_ebm_text.commands.parsing import argument
from latent_ebm_text.training.arguments import option


@dataclass
class PushArguments:
    """Push"""

    run: str = argument("Folder of a run or of a model.")
    repository: str | None = argument("`name` or `namespace/name`; the name of the run by default.", None)
    private: bool = option(False, "Make a new repository private.")
    revision: str | None = option(None, "Branch to push to, created if needed.")
    evaluation: str | None = option(None, "Folder of an evaluation, whose metrics join the card.")
    remote_code: bool = option(False, "Add the file that loads the model with trust_remote_code=True.")
    overwrite_card: bool = option(False, "Replace the card even if it was edited by hand.")
    dry_run: bool = option(False, "Print the card and push nothing.")
    json: bool = option(False, "Print JSON, for programs.")


def push(argv: list[str]) -> None:
    """Push a model with its card, metrics, samples and plots to the Hub, in one commit.

    A push that breaks off changes nothing there and can be repeated. A card that was edited by hand is kept.

        latent-ebm push runs/quickstart
        latent-ebm push runs/ptb me/latent-ebm-ptb --evaluation runs/evaluation --private
        latent-ebm push runs/ptb me/latent-ebm-ptb --dry_run
    """
    (args,) = parsing.parse_arguments(
        (PushArguments,), argv, description=parsing.description_of(push), prog="latent-ebm push"
    )
    from latent_ebm_text.hub.pushing import preview_card, push_run

    if args.dry_run:
        card = preview_card(args.run, args.repository, evaluation=args.evaluation, remote_code=args.remote_code)
        show({"card": card}, [card], args.json)
        return
    pushed = push_run(
        args.run,
        args.repository,
        private=args.private,
        revision=args.revision,
        evaluation=args.evaluation,
        remote_code=args.remote_code,
        overwrite_card=args.overwrite_card,
    )
    kept = ["the card there was edited by hand and is kept (--overwrite_card replaces it)"] if pushed.kept_card else []
    show(asdict(pushed), [*kept, pushed.url], args.json)
