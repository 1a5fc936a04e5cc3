"""Images from every source, and those that cannot be used."""

import gzip
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
    with pytest.raises(UsageError, match=r"ending '.csv'; give a .parquet, .* or a folder"):
        load_image_dataset(str(tmp_path / "a.csv"))
    (tmp_path / "tar").mkdir()
    (tmp_path / "tar" / "train.tar").write_bytes(b"no archive")
    with pytest.raises(DataError, match="tar cannot be read: "):
        load_image_dataset(str(tmp_path / "tar"))


# -------- arrays


PIXELS = np.random.default_rng(0).integers(256, size=(60, 6, 6), dtype=np.uint8)
LABELS = np.arange(60, dtype=np.uint8) % 7


def idx(array):
    return b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def as_idx(folder):
    for split, size in (("train", 60), ("t10k", 20)):
        (folder / f"{split}-images-idx3-ubyte").write_bytes(idx(PIXELS[:size]))
        (folder / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(LABELS[:size])))
    return folder


def as_npz(folder):
    np.savez(folder / "a.npz", x_train=PIXELS, y_train=LABELS, x_test=PIXELS[:20], y_test=LABELS[:20], names=["a"])
    return folder / "a.npz"


def as_npz_per_split(folder):
    for split, size in (("train", 60), ("test", 20)):
        np.savez(folder / f"{split}.npz", images=PIXELS[:size, ..., None].astype(int), labels=LABELS[:size, None])
    return folder


@pytest.mark.parametrize("layout", [as_idx, as_npz, as_npz_per_split])
def test_arrays_are_images_with_their_labels(tmp_path, layout):
    corpus = load_image_dataset(str(layout(tmp_path)))
    assert {split: len(rows) for split, rows in corpus.splits.items()} == {"train": 57, "validation": 3, "test": 20}
    assert [np.frombuffer(row, np.uint8).tolist() for row in corpus.splits["test"]["pixels"]] == [
        image.ravel().tolist() for image in PIXELS[:20]
    ]
    assert corpus.splits["test"]["label"][:] == LABELS[:20].tolist()


def test_arrays_with_the_channels_first(tmp_path):
    colours = np.stack([PIXELS, 255 - PIXELS, PIXELS // 2], axis=1)
    np.save(tmp_path / "a.npy", colours)
    corpus = load_image_dataset(str(tmp_path / "a.npy"))
    assert (corpus.image_size, corpus.num_channels) == (6, 3)
    found = {pixels for rows in corpus.splits.values() for pixels in rows["pixels"]}
    assert found == {image.transpose(1, 2, 0).tobytes() for image in colours}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npz", {"x": PIXELS / 255}, "a.npz, x holds 2,160 values of float64, where integers from 0 to 255"),
        ("a.npz", {"x": PIXELS.astype(int) * 2}, "where integers from 0 to 255 are expected"),
        ("a.npz", {"x": np.zeros((9, 2, 6, 6), np.uint8)}, "where images have 1 or 3 channels"),
        ("a.npz", {"x": PIXELS, "y": LABELS[1:]}, "{'image': 60, 'label': 59} for train, where one image"),
        ("a.npz", {"y": LABELS}, "where one image for each label"),
        ("a.npz", {"x": PIXELS, "z": PIXELS}, "two arrays of train images, of which a.npz, z is the second"),
        ("a.npz", {"x": LABELS[None] / 2}, "holds no images"),
        ("a.npz", {"x": np.array([None])}, "a.npz is damaged, or holds Python objects"),
        ("a.npz", b"junk", "a.npz is damaged, or holds Python objects"),
        ("a-idx3-ubyte", idx(PIXELS)[:-1], "a-idx3-ubyte is no complete IDX file"),
        ("a-idx3-ubyte", b"\0\0\x08", "is no complete IDX file"),
        ("a-idx3-ubyte.gz", idx(PIXELS), "cannot be decompressed"),
        ("a.h5", b"\x89HDF", "a.h5 is HDF5, which is not read: write its arrays into a .npz file"),
    ],
)
def test_arrays_that_are_no_images(tmp_path, name, content, message):
    if isinstance(content, dict):
        np.savez(tmp_path / name, **content)
    else:
        (tmp_path / name).write_bytes(content)
    for path in (tmp_path / name, tmp_path):
        with pytest.raises((DataError, UsageError), match=message.replace("a.h5", path.name)):
            load_image_dataset(str(path))
