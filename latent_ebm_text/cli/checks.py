"""The commands `verify` and `doctor`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Literal

import typer

from latent_ebm_text.cli.output import AsJson, Model, Revision, show


def verify(
    model: Model,
    dataset_name: Annotated[str | None, typer.Option(help="Where the card's data is, if not where it was.")] = None,
    evaluator: Annotated[
        Literal["full", "quick", "none"] | None,
        typer.Option(help="none leaves FPPL and RPPL out.", show_default="the card's"),
    ] = None,
    cache_dir: Annotated[str | None, typer.Option(help="Folder of trained evaluators.")] = None,
    revision: Revision = None,
    json: AsJson = False,
) -> None:
    """Measure the figures of a model's card again, and compare; leaves with 1 if one differs.

    A figure is the `same` up to a thousandth, `within` the card's 95 % interval, or it `differs`.

    \b
    latent-ebm verify me/latent-ebm-ptb --dataset-name path/to/ptb
    latent-ebm verify runs/quickstart --json
    """
    from latent_ebm_text.hub.verification import verify_text_model

    figures = verify_text_model(
        model, dataset_name=dataset_name, revision=revision, evaluator=evaluator, cache_dir=cache_dir
    )
    rows = [{**asdict(figure), "verdict": figure.verdict} for figure in figures]
    lines = [f"{'figure':<28}{'split':<12}{'card':>11}{'now':>11}  verdict"]
    for figure in figures:
        now = "-" if figure.now is None else f"{figure.now:.5g}"
        lines.append(f"{figure.name:<28}{figure.split:<12}{figure.card:>11.5g}{now:>11}  {figure.verdict}")
    show(rows, lines, json)
    if any(figure.verdict == "differs" for figure in figures):
        raise typer.Exit(1)


def doctor(
    run: Annotated[str | None, typer.Argument(help="Folder of a run, to be examined too.", show_default=False)] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask the Hub.")] = False,
    json: AsJson = False,
) -> None:
    """Examine installation, machine and data at hand; and a run: is its latent used, do its chains arrive?

    Every finding that is not well says what to change. Leaves with 1 if a run or the installation has a problem.

    \b
    latent-ebm doctor
    latent-ebm doctor runs/quickstart --json
    """
    from latent_ebm_text.doctor import examine_environment, examine_run

    findings = [*examine_environment(ask_hub=not offline), *(examine_run(run) if run else ())]
    mark = {"ok": "ok  ", "note": "note", "problem": "!!  "}
    lines = [f"{mark[finding.level]} {finding.subject}: {finding.message}" for finding in findings]
    show([asdict(finding) for finding in findings], lines, json)
    if any(finding.level == "problem" for finding in findings):
        raise typer.Exit(1)
