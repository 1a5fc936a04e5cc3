"""The notebooks run from top to bottom in a kernel of their own."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples/notebooks").glob("*.ipynb"))


def test_there_are_three() -> None:
    assert len(NOTEBOOKS) == 3


# The kernel is reached over sockets of this machine, of which its messages of start and end warn.
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem == "energies_and_chains" else [pytest.mark.slow])
        for path in NOTEBOOKS
    ],
)
def test_notebook_runs_and_says_what_it_says(path: Path, tmp_path: Path) -> None:
    """Every cell, and those that printed something as it is stored print something again."""
    stored = nbformat.read(path, as_version=4)
    assert all(cell.outputs or "print" not in cell.source for cell in stored.cells if cell.cell_type == "code")
    run = nbformat.read(path, as_version=4)
    for cell in run.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    NotebookClient(run, timeout=280, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    for before, after in zip(stored.cells, run.cells, strict=True):
        if before.cell_type == "code":
            kinds = [{output.output_type for output in cell.outputs} - {"stream"} for cell in (before, after)]
            assert kinds[0] == kinds[1]
            assert bool(before.outputs) <= bool(after.outputs)
