"""The end of every run, whatever its modality: results, a page for people, the model's card, and the Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from latent_ebm_text.hub.card import build_card, is_edited
from latent_ebm_text.hub.training import TrainingPusher
from latent_ebm_text.training.arguments import HubArguments, TrainingArguments
from latent_ebm_text.training.html_report import write_html_report


def finish_run(folder: Path, results: dict[str, Any], paths: dict[str, Path]) -> dict[str, Any]:
    """Writes `results.json`, `report.html`, and the card beside the model, unless that was edited by hand.

    Args:
        folder: The run's folder.
        results: What was measured, and the record of the run.
        paths: Files that were written already.

    Returns:
        The results, with all paths.
    """
    paths = {**paths, "results": folder / "results.json", "report": folder / "report.html"}
    results = {**results, "paths": {name: str(path) for name, path in paths.items()}}
    paths["results"].write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    write_html_report(folder, results)
    card = folder / "model" / "README.md"
    if not card.is_file() or not is_edited(card.read_text(encoding="utf-8")):
        card.write_text(build_card(folder / "model", str(folder / "model"), run=folder), encoding="utf-8")
    return results


def make_pusher(hub_args: HubArguments, args: TrainingArguments, accelerator: Accelerator) -> TrainingPusher | None:
    """What pushes the run, on the main process, if that is wished; every process waits for the check of the token.

    Raises:
        UsageError: If pushing will not be allowed.
        HubError: If the Hub cannot be reached.
    """
    pusher = None
    if hub_args.push_to_hub and accelerator.is_main_process:
        pusher = TrainingPusher(hub_args, Path(args.output_dir), accelerator.print)
    accelerator.wait_for_everyone()
    return pusher
