"""The table and the plot of several runs."""

import json
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from sweep_table import describe_sweep, plot_frontier

from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.estimates import Estimate
from latent_ebm_text.evaluation.report import Report


def write_run(folder: Path, weight: float, **metrics: float) -> Path:
    report = Report({})
    report.add({name: Estimate(value, (value - 1, value + 1), 9, "made up") for name, value in metrics.items()})
    report.write(folder / f"w={weight}" / "evaluation")
    (folder / f"w={weight}" / "results.json").write_text('{"training_seconds": 90.0}')
    return folder / f"w={weight}" / "evaluation"


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    metrics = {"reconstruction NLL": 20.0, "prior NLL": 24.0, "energy gap": 0.5}
    other = {"reconstruction NLL": 12.0, "prior NLL": 40.0, "energy gap": 2.0}
    return {
        "w=1.0": write_run(tmp_path, 1.0, **metrics, RPPL=30.0, FPPL=20.0),
        "w=2.0": write_run(tmp_path, 2.0, **other, RPPL=45.0, FPPL=25.0),
    }


def test_a_row_for_every_run_and_a_column_for_every_metric_there_is(runs: dict[str, Path]) -> None:
    head, _, first, second = describe_sweep(runs, ["w"]).splitlines()
    assert head == "| w | reconstruction NLL | prior NLL | energy gap | FPPL | RPPL | training |"
    assert first == "| w=1.0 | 20 ± 1 | 24 ± 1 | 0.5 ± 1 | 20 ± 1 | 30 ± 1 | 1.5 min |"
    assert second.startswith("| w=2.0 | 12 ± 1 | 40 ± 1 ")


def test_a_metric_that_one_run_lacks_and_one_that_is_not_to_be_trusted(runs: dict[str, Path]) -> None:
    path = runs["w=1.0"] / "evaluation.json"
    report = json.loads(path.read_text())
    del report["metrics"]["RPPL"]
    report["metrics"]["prior NLL"]["warning"] = "made up"
    path.write_text(json.dumps(report))
    _, _, first, _ = describe_sweep(runs, ["w"]).splitlines()
    assert first == "| w=1.0 | 20 ± 1 | 24 ± 1 (!) | 0.5 ± 1 | 20 ± 1 | - | 1.5 min |"


def test_the_frontier(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plot_frontier(runs, tmp_path / "new" / "frontier.png").read_bytes().startswith(b"\x89PNG")
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: saved.append(figure))
    plot_frontier(runs, tmp_path / "frontier.png")
    left, middle, right = saved[0].axes
    assert left.get_ylabel() == "RPPL"
    assert [tuple(line.get_xydata()[0]) for line in left.get_lines()] == [(4.0, 30.0), (28.0, 45.0)]
    assert [tuple(line.get_xydata()[0]) for line in middle.get_lines()] == [(0.5, 30.0), (2.0, 45.0)]
    assert [tuple(line.get_xydata()[0]) for line in right.get_lines()] == [(20.0, 30.0), (25.0, 45.0)]
    assert [text.get_text() for text in left.texts] == ["w=1.0", "w=2.0"]


def test_names_the_extra_where_matplotlib_is_missing(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"latent-ebm-text\[plots\]"):
        plot_frontier(runs, tmp_path / "frontier.png")
