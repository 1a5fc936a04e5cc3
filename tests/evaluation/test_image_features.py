"""The features of a classifier of the data set: it classifies well, is cached, and is named after its data."""

import dataclasses

import pytest
import torch

from latent_ebm_text.data.images import ImageCollator, load_image_dataset
from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation import image_features as image_classifier
from latent_ebm_text.evaluation.image_features import collect_features, frechet_distance

pytest.importorskip("sklearn", reason="needs scikit-learn")


@pytest.fixture(scope="module")
def corpus():
    return load_image_dataset("digits")


def test_it_classifies_digits_and_its_features_see_noise(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(image_classifier, "NUM_STEPS", 150)
    classifier, name = image_classifier.load_classifier(corpus, cache_dir=tmp_path)
    assert image_classifier.accuracy(classifier, corpus) > 0.85
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.safetensors"]

    # Nearer to other images of the set than the same images are with noise.
    images = torch.cat(list(ImageCollator(8, 1).batches(corpus.splits["train"], 512, max_images=1000)))
    noisy = (images[500:] + 0.5 * torch.randn(500, 1, 8, 8, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    real, others, spoilt = (
        collect_features(classifier.features, [part].__getitem__, 1) for part in (images[:500], images[500:], noisy)
    )
    assert frechet_distance(real, others) < 0.5 * frechet_distance(real, spoilt)

    # From the cache the second time: without a step of training, and with the same weights.
    monkeypatch.setattr(image_classifier, "_train", None)
    again, same_name = image_classifier.load_classifier(corpus, cache_dir=tmp_path)
    assert same_name == name
    assert torch.equal(again.features(images[:5]), classifier.features(images[:5]))


def test_a_damaged_cache_is_trained_again_and_the_global_generator_left_alone(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(image_classifier, "NUM_STEPS", 1)
    state = torch.random.get_rng_state()
    first, name = image_classifier.load_classifier(corpus, cache_dir=tmp_path)
    (tmp_path / f"{name}.safetensors").write_bytes(b"damaged")
    again, _ = image_classifier.load_classifier(corpus, cache_dir=tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)
    for weight, same in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(weight, same)


def test_another_seed_is_another_classifier(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(image_classifier, "NUM_STEPS", 1)
    names = {image_classifier.load_classifier(corpus, cache_dir=tmp_path, seed=seed)[1] for seed in (0, 1)}
    assert len(names) == len(list(tmp_path.iterdir())) == 2


def test_images_without_classes(corpus, tmp_path):
    unlabelled = dataclasses.replace(corpus, splits=corpus.splits.remove_columns("label"))
    with pytest.raises(UsageError, match="has no label column of integers: name it by label_column"):
        image_classifier.load_classifier(unlabelled, cache_dir=tmp_path)
