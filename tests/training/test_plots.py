"""The plot of a run."""

import json
import struct
import sys

import pytest

from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.plots import plot_training

TRAIN = {
    "kind": "train", "reconstruction_nll": 30.0, "energy_gap": 1.0, "penalty": 0.0, "posterior_std": 0.9,
    "prior_std": 1.0, "decoder_grad_norm": 20.0, "prior_grad_norm": 0.5,
}  # fmt: skip
VALIDATION = {"kind": "validation", "reconstruction_nll": 31.0, "prior_nll": 35.0}


@pytest.fixture
def write_metrics(tmp_path):
    def write(*records):
        path = tmp_path / "metrics.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    return write


def test_draws_a_png_into_a_new_folder(write_metrics, tmp_path):
    metrics = write_metrics({**TRAIN, "step": 50}, {**TRAIN, "step": 100}, {**VALIDATION, "step": 100})

    path = plot_training(metrics, tmp_path / "pictures" / "training.png")

    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert struct.unpack(">II", content[16:24]) == (1210, 770)


def test_the_picture_shows_the_figures(write_metrics, tmp_path):
    pictures = []
    for nll in (30.0, 20.0):
        metrics = write_metrics({**TRAIN, "step": 50}, {**TRAIN, "step": 100, "reconstruction_nll": nll})
        pictures.append(plot_training(metrics, tmp_path / "training.png").read_bytes())
    assert pictures[0] != pictures[1]


def test_a_run_cut_short_by_a_kill_can_be_drawn(write_metrics, tmp_path):
    metrics = write_metrics({**TRAIN, "step": 50})
    with metrics.open("a") as file:
        file.write('{"kind": "train", "st')
    assert plot_training(metrics, tmp_path / "training.png").exists()


def test_without_training_records_there_is_nothing_to_draw(write_metrics, tmp_path):
    metrics = write_metrics({**VALIDATION, "step": 100})
    with pytest.raises(UsageError, match="no training records"):
        plot_training(metrics, tmp_path / "training.png")


def test_without_matplotlib_the_message_names_the_extra(write_metrics, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"pip install 'latent-ebm-text\[plots\]'"):
        plot_training(write_metrics({**TRAIN, "step": 50}), tmp_path / "training.png")
