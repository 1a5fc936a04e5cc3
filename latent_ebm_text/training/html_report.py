"""A run on one page: figures, plots, samples, settings, in a file that needs no other."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader

from latent_ebm_text.hub.card import PICTURES
from latent_ebm_text.hub.figures import run_figures

_NUM_SAMPLES = 64


def write_html_report(folder: Path, record: dict[str, Any]) -> Path:
    """Writes `report.html` into a run's folder.

    Args:
        folder: The run's, with its pictures and samples.
        record: The content of its `results.json`.
    """
    figures = run_figures(record)
    samples = folder / "samples.txt"
    page = (
        Environment(loader=PackageLoader("latent_ebm_text.training", ""), autoescape=True)
        .get_template("report.html.jinja")
        .render(
            title=folder.resolve().name,
            record=record,
            data=[line.strip() for line in record["data"]],
            figures=figures,
            definitions={figure.name: figure.definition for figure in figures},
            pictures={
                caption: base64.b64encode((folder / name).read_bytes()).decode()
                for name, caption in PICTURES.items()
                if (folder / name).is_file()
            },
            samples=samples.read_text(encoding="utf-8").splitlines()[:_NUM_SAMPLES] if samples.is_file() else [],
            settings=yaml.safe_dump(record["settings"], sort_keys=False).rstrip(),
        )
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path
