"""Images from every source, and those that cannot be used."""

import os

import datasets
import numpy as np
import pytest

from latent_ebm_text.data.images import ImageCollator, load_image_dataset
from latent_ebm_text.errors import DataError, UsageError

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")


def picture(seed, size=(6, 6), channels=3):
    pixels = np.random.default_rng(seed).integers(256, size=(size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


@pytest.fixture
def folder(tmp_path):
    """Writes images to sub-folders named after splits and classes."""
    for split, count in (("train", 6), ("test", 3)):
        for kind in ("cat", "dog"):
            place = tmp_path / "pictures" / split / kind
            place.mkdir(parents=True)
            for number in range(count):
                picture(number).save(place / f"{number}.png")
    return tmp_path / "pictures"


def parquet(path, pictures, **columns):
    features = datasets.Features({"img": datasets.Image()} | {name: datasets.Value("int64") for name in columns})
    datasets.Dataset.from_dict({"img": pictures, **columns}, features=features).to_parquet(path)
    return str(path)


def test_digits_need_no_download():
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    corpus = load_image_dataset("digits")
    assert (corpus.image_size, corpus.num_channels) == (8, 1)
    assert sum(len(split) for split in corpus.splits.values()) == 1797
    assert set(corpus.splits["test"]["label"]) == set(range(10))
    assert "digits (8 x 8 digits of scikit-learn" in corpus.describe()
    assert corpus.fingerprint == load_image_dataset("digits").fingerprint
    with pytest.raises(UsageError, match="8 x 8 x 1 values, not 32 x 32 x 1"):
        load_image_dataset("digits", image_size=32)


def test_pixels_are_those_of_the_file(tmp_path):
    pictures = [picture(seed) for seed in range(50)]
    corpus = load_image_dataset(parquet(tmp_path / "a.parquet", pictures, label=list(range(50))))
    for split in corpus.splits.values():
        batch = ImageCollator(6, 3)([{"pixels": pixels} for pixels in split["pixels"]])["pixel_values"]
        for label, image in zip(split["label"], batch, strict=True):
            expected = np.asarray(pictures[label]).transpose(2, 0, 1) / 127.5 - 1
            np.testing.assert_allclose(image.numpy(), expected, atol=1e-6)
    assert sorted(label for split in corpus.splits.values() for label in split["label"]) == list(range(50))


def test_a_folder_of_pictures(folder):
    corpus = load_image_dataset(str(folder))
    assert {split: len(rows) for split, rows in corpus.splits.items()} == {"train": 10, "validation": 2, "test": 6}
    assert (corpus.image_size, corpus.num_channels) == (6, 3)
    assert set(corpus.splits["test"]["label"]) == {0, 1}
    assert len(load_image_dataset(str(folder), num_images=4).splits["train"]) == 4


def test_pictures_that_were_rewritten_are_read_again_whatever_their_time_says(tmp_path):
    fingerprints = []
    for version in (0, 100):
        for number in range(60):
            file = tmp_path / f"{number}.bmp"
            before = file.stat().st_mtime_ns if file.exists() else None
            picture(version + number).save(file)
            if before is not None:
                os.utime(file, ns=(before, before))
        fingerprints.append(load_image_dataset(str(tmp_path)).fingerprint)
    assert fingerprints[0] != fingerprints[1]


def test_broken_files_are_skipped_and_counted_or_stop(folder):
    (folder / "test" / "cat" / "1.png").write_bytes(b"no picture")
    whole = (folder / "test" / "dog" / "0.png").read_bytes()
    (folder / "test" / "dog" / "0.png").write_bytes(whole[: len(whole) // 2])
    corpus = load_image_dataset(str(folder))
    assert corpus.skipped == {"train": 0, "validation": 0, "test": 2}
    assert len(corpus.splits["test"]) == 4
    assert "could not be read, skipped: 0 train, 0 validation, 2 test" in corpus.describe()
    with pytest.raises(DataError, match=r"1\.png cannot be read as an image; remove it"):
        load_image_dataset(str(folder), strict=True)


def test_images_of_other_sizes_and_modes(folder):
    picture(9, size=(9, 7)).save(folder / "train" / "cat" / "0.png")
    picture(9, channels=1).save(folder / "train" / "dog" / "0.png")
    with pytest.raises(DataError, match=r"0\.png: an image has .* are expected"):
        load_image_dataset(str(folder), image_size=6, num_channels=3)
    corpus = load_image_dataset(str(folder), image_size=6, num_channels=1, adapt=True)
    assert {len(pixels) for split in corpus.splits.values() for pixels in split["pixels"]} == {36}
    assert any("cropped to their central square" in note for note in corpus.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_column": "nose"}, "column 'nose' of .* holds no images: its columns are img, label"),
        ({"label_column": "nose"}, "column 'nose' does not exist in .*: its columns are img, label"),
    ],
)
def test_columns_that_are_not_there(tmp_path, options, message):
    path = parquet(tmp_path / "a.parquet", [picture(seed) for seed in range(10)], label=[0] * 10)
    with pytest.raises(UsageError, match=message):
        load_image_dataset(path, **options)


def test_sources_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="there is no file or folder './nothing'"):
        load_image_dataset("./nothing")
    with pytest.raises(DataError, match="the Hugging Face Hub cannot be reached"):
        load_image_dataset("me/no-such-images")
    (tmp_path / "empty").mkdir()
    with pytest.raises((DataError, UsageError), match="empty"):
        load_image_dataset(str(tmp_path / "empty"))
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(UsageError, match=r"ending '.csv'; give a .parquet file or a folder"):
        load_image_dataset(str(tmp_path / "a.csv"))
