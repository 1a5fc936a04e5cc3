"""The anomaly protocol: who is trained on, who is scored, and how well scores tell."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from latent_ebm_text import LatentEBMForImageGeneration, LatentEBMImageConfig
from latent_ebm_text.anomaly.images import SCORES, anomaly_scores, held_out_split
from latent_ebm_text.data.images import ImageCollator
from latent_ebm_text.errors import DataError, UsageError
from tests.helpers import seeded


def test_the_class_held_out_is_never_trained_on_and_always_scored():
    labels = np.random.default_rng(0).integers(10, size=1000)
    training, test = held_out_split(labels, 4, seed=0)
    assert sorted([*training, *test]) == list(range(1000))
    assert 4 not in labels[training]
    assert len(training) == int(0.8 * (labels != 4).sum())
    again, other = held_out_split(labels, 4, seed=0)[0], held_out_split(labels, 4, seed=1)[0]
    assert np.array_equal(training, again)
    assert not np.array_equal(training, other)


def test_classes_that_cannot_be_held_out():
    with pytest.raises(DataError, match=r"class 7 is not among those of the images: \[1, 2\]"):
        held_out_split(np.array([1, 2, 1]), 7, seed=0)
    with pytest.raises(DataError, match="all images are of class 1"):
        held_out_split(np.array([1, 1, 1]), 1, seed=0)


@pytest.mark.parametrize("encoder", [None, 4])
def test_what_the_model_cannot_make_is_anomalous(encoder):
    torch.manual_seed(0)
    config = LatentEBMImageConfig(
        latent_dim=2, image_size=8, num_channels=1, decoder_channels=[8, 8], prior_hidden_size=8,
        encoder_hidden_size=encoder,
        posterior_sampler={"name": "langevin", "num_steps": 20, "step_size": {"start": 0.2, "end": 0.1}},
    )  # fmt: skip
    model = LatentEBMForImageGeneration(config)
    known = model.generate(num_samples=6, generator=seeded(), output_type="np")
    unknown = np.random.default_rng(0).integers(256, size=(6, 8, 8, 1), dtype=np.uint8)
    images = {"pixels": [image.tobytes() for image in (*known, *unknown)]}

    class Rows:
        def __len__(self):
            return 12

        def __getitem__(self, rows):
            return {"pixels": images["pixels"][rows]}

    scores = anomaly_scores(model, Rows(), ImageCollator(8, 1), num_chains=2, mode_steps=20, batch_size=5)

    assert scores.keys() == SCORES.keys() - {"error", "rarity", "calibrated"} - (
        {"proposal"} if encoder is None else set()
    )
    for name, values in scores.items():
        assert name in ("unexplained", "prior_energy") or float(values[:6].max()) < float(values[6:].min())
    # The most probable latent is at least as probable as a draw that was climbed from.
    assert bool((scores["mode"] <= scores["joint"] + 1e-3).all())


def test_the_proposal_scores_without_a_chain():
    torch.manual_seed(0)
    config = LatentEBMImageConfig(
        latent_dim=2, image_size=8, num_channels=1, decoder_channels=[8, 8], prior_hidden_size=8, encoder_hidden_size=4
    )
    model, pixels = LatentEBMForImageGeneration(config), np.arange(128, dtype=np.uint8)
    rows = Dataset.from_dict({"pixels": [pixels[:64].tobytes(), pixels[64:].tobytes()]})
    scores = anomaly_scores(model, rows, ImageCollator(8, 1), num_chains=0)
    assert scores.keys() == {"joint", "proposal", "squared_error", "prior_energy", "unexplained"}
    images = ImageCollator(8, 1)(list(rows))["pixel_values"]
    mean = model.encoder.propose({"pixel_values": images}).mean
    expected = model.prior.energy(mean) - model.log_prob(images, latents=mean)
    torch.testing.assert_close(scores["proposal"], expected.detach().double())
    distance = model.generate(latents=mean).sub(images).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(scores["squared_error"], distance.double())

    model.encoder = None
    with pytest.raises(UsageError, match="without an encoder needs num_chains of 1 or more"):
        anomaly_scores(model, rows, ImageCollator(8, 1), num_chains=0)


def test_the_calibrated_score_is_fitted_on_training_images_alone():
    torch.manual_seed(0)
    config = LatentEBMImageConfig(
        latent_dim=2, image_size=8, num_channels=1, decoder_channels=[8, 8], prior_hidden_size=8, encoder_hidden_size=4
    )
    model, rng = LatentEBMForImageGeneration(config), np.random.default_rng(0)

    def rows(number):
        pixels = rng.integers(256, size=(number, 64), dtype=np.uint8)
        return Dataset.from_dict({"pixels": [image.tobytes() for image in pixels]})

    training, test = rows(60), rows(10)
    usual, scores = (
        anomaly_scores(model, images, ImageCollator(8, 1), num_chains=0, training_images=training)
        for images in (training, test)
    )
    alone = anomaly_scores(model, test.select([3]), ImageCollator(8, 1), num_chains=0, training_images=training)
    assert scores["calibrated"][3].item() == pytest.approx(alone["calibrated"].item(), abs=1e-4)
    for name in ("error", "rarity"):
        assert float(usual[name].mean()) == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(scores["calibrated"], torch.maximum(scores["error"], scores["rarity"]))
