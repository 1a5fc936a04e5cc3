"""The plot of a chain report."""

import struct
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.chains import ChainReport, run_chain_report
from latent_ebm_text.evaluation.plots import plot_chain_report
from latent_ebm_text.latents.samplers import LangevinSampler
from tests.latents.samplers.targets import TwoModes, seeded


@pytest.fixture(scope="module")
def report() -> ChainReport:
    """Two superchains, each in a mode of its own."""
    modes = torch.tensor([-3.0, 3.0]).repeat_interleave(8)[:, None]
    return run_chain_report(
        TwoModes(), LangevinSampler(5, 0.2), modes, superchains=2, multiples=(1, 20), generator=seeded(1)
    )


def test_draws_a_png_into_a_new_folder(report: ChainReport, tmp_path: Path) -> None:
    path = plot_chain_report(report, tmp_path / "plots" / "chains.png")
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert struct.unpack(">II", content[16:24]) == (1430, 462)


def test_shows_energies_on_a_log_axis_and_superchains_that_share_no_ranks(
    report: ChainReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: saved.append(figure))
    plot_chain_report(report, tmp_path / "chains.png")

    energy, _, latent = saved[0].axes
    assert energy.get_xscale() == "log"
    steps, mean = next(line for line in energy.lines if line.get_label() == "mean of all chains").get_data()
    assert list(steps) == list(range(1, 101))
    assert mean == pytest.approx(report.trace.mean(dim=1).numpy(), rel=1e-5)

    low, high = (patch.get_data().values for patch in latent.patches)
    assert low == pytest.approx([2.0] * 10 + [0.0] * 10)  # one superchain holds the lower half of all ranks
    assert high == pytest.approx([0.0] * 10 + [2.0] * 10)
    assert f"nested R-hat {report.r_hat:.3f}" in latent.get_title()


def test_without_matplotlib_the_message_names_the_extra(
    report: ChainReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"pip install 'latent-ebm-text\[plots\]'"):
        plot_chain_report(report, tmp_path / "chains.png")
