"""What is measured of a latent's use: reconstructions that are known, and labels that are told or not."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from latent_ebm_text.data import TextCollator
from latent_ebm_text.evaluation.usefulness import interpolation_metrics, label_metrics, reconstruction_accuracy, tf_idf
from tests.helpers import tiny_model


@pytest.fixture
def classes():
    generator = np.random.default_rng(0)
    labels = generator.integers(2, size=1200)
    vectors = generator.normal(size=(1200, 3))
    vectors[:, 1] += 6 * labels
    return vectors, [["no", "yes"][label] for label in labels]


def test_labels_that_lie_apart_are_told_and_others_are_not(classes):
    vectors, labels = classes
    found = label_metrics("latent", vectors[:800], vectors[800:], labels[:800], labels[800:], seed=0)
    assert all(metric.value > 0.98 for metric in found.values())
    assert {metric.n for metric in found.values()} == {400}
    blind = label_metrics("latent", vectors[:800, :1], vectors[800:, :1], labels[:800], labels[800:], seed=0)
    assert all(0.4 < metric.value < 0.6 for metric in blind.values())


def test_the_scale_of_a_dimension_does_not_matter_to_the_probe(classes):
    vectors, labels = classes
    scaled = vectors * np.array([1.0, 1e-3, 1.0])
    pair = [
        label_metrics("latent", each[:800], each[800:], labels[:800], labels[800:], seed=0)["probe, latent"].value
        for each in (vectors, scaled)
    ]
    assert pair[0] == pair[1]


def test_words_tell_labels_that_are_words():
    train = ["a good film", "a bad film", "good acting", "bad acting"] * 60
    labels = [text.split().count("good") for text in train]
    found = label_metrics("TF-IDF", *tf_idf(train, ["a good story", "bad story"]), labels, [1, 0], seed=0)
    assert found["probe, TF-IDF"].value == 1.0
    assert found["neighbours of the same label, TF-IDF"].value == 1.0


@pytest.mark.parametrize(
    ("path", "distinct", "onward"),
    [
        ([[4, 5, 6], [4, 5, 9], [4, 8, 9], [7, 8, 9]], 1.0, 1.0),  # from one end to the other
        ([[4, 5, 6], [4, 5, 6], [4, 5, 6], [7, 8, 9]], 1 / 3, 1.0),  # a jump
        ([[4, 5, 6], [7, 8, 9], [4, 5, 6], [7, 8, 9]], 1.0, 2 / 3),  # there and back
    ],
)
def test_paths_pass_from_one_end_to_the_other(monkeypatch, path, distinct, onward):
    model = tiny_model()
    monkeypatch.setattr(model, "interpolate", lambda *args: torch.tensor([[1, *row, 2] for row in path]))
    dataset = Dataset.from_dict({"input_ids": [[1, 5, 2]] * 5, "length": [2] * 5})
    found = interpolation_metrics(model, dataset, TextCollator(0), num_points=4, seed=0)
    assert found["distinct steps of a path"].value == pytest.approx(distinct)
    assert found["onward steps of a path"].value == pytest.approx(onward)
    assert found["distinct steps of a path"].n == 2


def test_reconstructions_are_compared_place_by_place(monkeypatch):
    model = tiny_model()
    rows = [[1, 5, 6, 2], [1, 7, 2], [1, 8, 9, 10, 2]]
    decoded = torch.tensor([[1, 5, 6, 2, 0], [1, 8, 2, 0, 0], [1, 8, 9, 4, 4]])
    monkeypatch.setattr(model, "generate", lambda latents, **options: decoded[: len(latents)])
    dataset = Dataset.from_dict({"input_ids": rows, "length": [3, 2, 4]})
    found = reconstruction_accuracy(model, dataset, TextCollator(0), num_sentences=9, batch_size=8, seed=0)
    assert found["tokens in place"].value == pytest.approx((1 + 1 / 2 + 2 / 4) / 3)
    assert found["exact reconstructions"].value == pytest.approx(1 / 3)
