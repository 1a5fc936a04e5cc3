"""The plot of a text model's evaluation."""

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.plots import plot_text_report
from latent_ebm_text.evaluation.text import SentenceDraws
from tests.helpers import seeded


def draws(latent_dim: int) -> SentenceDraws:
    first, second, prior = (torch.randn(50, latent_dim, generator=seeded(seed)) for seed in range(3))
    lengths = np.arange(50) + 2
    nll = torch.tensor(lengths)
    energies, nlls = (torch.zeros(50), torch.ones(50)), (nll, 3 * nll, 3 * nll, 2 * nll)
    return SentenceDraws(first, second, 2 * prior, *energies, *nlls, lengths, lengths)


@pytest.mark.parametrize("latent_dim", [3, 0])
def test_draws_a_png_for_models_with_and_without_a_latent(latent_dim: int, tmp_path: Path) -> None:
    path = plot_text_report(draws(latent_dim), ["a b c", "d"], tmp_path / "plots" / "evaluation.png")
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert struct.unpack(">II", content[16:24]) == (1210, 825)


def test_shows_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: saved.append(figure))
    plot_text_report(
        draws(3),
        ["a b c", "d"],
        tmp_path / "evaluation.png",
        marginal_nll=np.full(20, 7.0),
        marginal_lengths=np.arange(20) + 5,
    )
    nll, energy, spread, lengths = saved[0].axes
    curves = {line.get_label(): line.get_xydata() for line in nll.get_lines()}
    assert curves["reconstruction NLL"] == pytest.approx(curves["reconstruction NLL"][:, :1].repeat(2, axis=1))
    assert curves["prior NLL"][:, 1] == pytest.approx(3 * curves["prior NLL"][:, 0])
    assert set(curves["marginal NLL"][:, 1]) == {7.0}
    stds = {line.get_label(): line.get_ydata() for line in spread.get_lines()}
    assert list(stds["prior draws"]) == sorted(stds["prior draws"], reverse=True)
    assert stds["prior draws"].mean() > 1.5 * stds["posterior draws"].mean()
    assert {text.get_text() for text in lengths.get_legend().get_texts()} == {"real", "generated"}
    assert {text.get_text() for text in energy.get_legend().get_texts()} == {"posterior draws", "prior draws"}


def test_names_the_extra_where_matplotlib_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"latent-ebm-text\[plots\]"):
        plot_text_report(draws(2), ["a"], tmp_path / "evaluation.png")
