"""Image data: the data sets of the paper, scikit-learn's digits without a download, local folders and files, the Hub.

`load_image_dataset` is the single entry point. For any source it returns an `ImageCorpus` with the splits train,
validation and test as bytes of one size, decoded once and cached on disk by `datasets`, and a description of what the
data *is*.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from latent_ebm_text.data.cache import cached_path, file_versions
from latent_ebm_text.data.files import first_line
from latent_ebm_text.data.image_arrays import array_files, read_array_files
from latent_ebm_text.data.splits import SPLITS, choose_splits, cut_missing_splits
from latent_ebm_text.errors import DataError, LatentEBMError, UsageError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from latent_ebm_text.data.image_processing import LatentEBMImageProcessor

#: Hub id and configuration of the data sets that have a short name.
NAMED_SETS = {
    "mnist": ("ylecun/mnist", "mnist"),
    "svhn": ("ufldl-stanford/svhn", "cropped_digits"),
    "cifar10": ("uoft-cs/cifar10", "plain_text"),
    "celeba": ("flwrlabs/celeba", "img_align+identity+attr"),
}
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_HDF5 = (".h5", ".hdf5")
_FILES = "give a .parquet, .arrow, .npz, .npy or IDX file"


@dataclass(frozen=True)
class ImageCorpus:
    """Images that are ready for batching.

    Attributes:
        splits: Train, validation and test with the column `pixels`, the bytes of an image in the order height, width,
            channel, and an integer `label` if the source has one.
        name: What the data is, such as "mnist (ylecun/mnist, Hugging Face Hub)".
        image_size: Height and width of every image.
        num_channels: Number of channels of every image.
        skipped: Number of images per split that could not be read.
        fingerprint: First 16 hex digits of the SHA-256 over the pixels of all splits.
        notes: What was done to the data beyond reading it, one sentence each.
    """

    splits: DatasetDict
    name: str
    image_size: int
    num_channels: int
    skipped: dict[str, int]
    fingerprint: str
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """Returns what a run prints before training: name, rows and fingerprint of the data, and all notes."""
        rows = ", ".join(f"{len(split):,} {name}" for name, split in self.splits.items())
        size = f"{self.image_size} x {self.image_size} x {self.num_channels}"
        lines = [f"data: {self.name}: {rows} images of {size} (fingerprint {self.fingerprint})"]
        if any(self.skipped.values()):
            counts = ", ".join(f"{count:,} {split}" for split, count in self.skipped.items())
            lines.append(f"images that could not be read, skipped: {counts}")
        return "\n  ".join([*lines, *self.notes])


def load_image_dataset(
    name_or_path: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    train_split: str | None = None,
    image_size: int | None = None,
    num_channels: int | None = None,
    adapt: bool = False,
    strict: bool = False,
    num_images: int | None = None,
) -> ImageCorpus:
    """Loads images by name or path.

    Missing validation and test splits are cut off train, 5 % of its rows each and always the same rows.

    Args:
        name_or_path: `"digits"` (8 x 8 digits of scikit-learn, no download), `"mnist"`, `"svhn"`, `"cifar10"`,
            `"celeba"`, a local folder or file, or a Hub id. A folder holds parquet files or image files, in
            sub-folders named after splits, classes, or both; or files of arrays, see
            [`~latent_ebm_text.data.image_arrays.read_array_files`].
        image_column: The column to read; by default the only one that holds images.
        label_column: The integer column that becomes `label`; by default `label`, if it exists.
        train_split: The split to train on, if it is not the one called train.
        image_size: Height and width that every image must have; by default those of the first image.
        num_channels: Number of channels that every image must have; by default that of the first image.
        adapt: Whether to crop other images to their central square, and to resize and convert them.
        strict: Whether an unreadable image is an error; otherwise it is skipped and counted.
        num_images: Train on this many of the first images; by default on all.

    Raises:
        UsageError: If a path, name, column or option is invalid.
        DataError: If the data is empty, unreadable or of different sizes, or the Hub cannot be reached.
    """
    notes: list[str] = []
    path = Path(name_or_path).expanduser()
    if name_or_path == "digits":
        raw = _read_digits()
        name = "digits (8 x 8 digits of scikit-learn, 0 to 16 made 0 to 255)"
    elif path.exists():
        raw = _read(str(path.absolute()), name_or_path, None)
        name = f"local {'folder' if path.is_dir() else 'file'} {name_or_path}"
    else:
        repository, config = NAMED_SETS.get(name_or_path, (name_or_path, None))
        if not _HUB_ID.fullmatch(repository) or Path(repository).suffix:
            raise UsageError(
                f"there is no file or folder {name_or_path!r}; check the path (and the working directory)"
            )
        raw = _read(repository, name_or_path, config)
        name = f"{name_or_path} ({repository}, Hugging Face Hub)"

    chosen = choose_splits(list(raw), name, train_split, notes)
    splits = {split: raw[source] for split, source in chosen.items()}
    splits = cut_missing_splits(splits, name, notes, unit="images")
    if num_images is not None and num_images < len(splits["train"]):
        notes.append(f"train is the first {num_images:,} of {len(splits['train']):,} images")
        splits["train"] = splits["train"].select(range(num_images))
    splits = {
        split: _with_columns(dataset, image_column, label_column, f"{name}, {split}")
        for split, dataset in splits.items()
    }
    processor = _processor(splits, name, image_size, num_channels, adapt)
    if adapt:
        notes.append(
            f"images of other sizes are cropped to their central square and resized to {processor.image_size} pixels"
        )
    decoded, skipped = {}, {}
    for split, dataset in splits.items():
        decoded[split], skipped[split] = _decode_all(dataset, processor, f"{name}, {split}", strict)
    from datasets import DatasetDict

    return ImageCorpus(
        splits=DatasetDict(decoded),
        name=name,
        image_size=processor.image_size,
        num_channels=processor.num_channels,
        skipped=skipped,
        fingerprint=_fingerprint(decoded),
        notes=tuple(notes),
    )


class ImageCollator:
    """Collates examples with `pixels` to `pixel_values`, `(batch, channels, height, width)` in [-1, 1].

    Args:
        image_size: Height and width of every image.
        num_channels: Number of channels of every image.
    """

    def __init__(self, image_size: int, num_channels: int) -> None:
        self.shape = (image_size, image_size, num_channels)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        from latent_ebm_text.data.image_processing import to_pixel_values

        arrays = [np.frombuffer(example["pixels"], np.uint8).reshape(self.shape) for example in examples]
        return {"pixel_values": to_pixel_values(arrays)}

    def batches(
        self,
        images: Any,
        batch_size: int,
        *,
        max_images: int | None = None,
        progress: Callable[[range], Iterable[int]] = iter,
    ) -> Iterator[torch.Tensor]:
        """Yields the `pixel_values` of rows with `pixels`, in order.

        Args:
            images: The rows.
            batch_size: Images per batch.
            max_images: Use only this many of the first rows.
            progress: Wraps the range of batch starts, to show progress.
        """
        end = min(len(images), max_images or len(images))
        for start in progress(range(0, end, batch_size)):
            yield self.batch(images, start, min(start + batch_size, end))

    def batch(self, images: Any, start: int, end: int) -> torch.Tensor:
        """The `pixel_values` of the rows from `start` to `end`."""
        pixel_values: torch.Tensor = self([{"pixels": row} for row in images[start:end]["pixels"]])["pixel_values"]
        return pixel_values


# Sources


def _read_digits() -> dict[str, Dataset]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UsageError("the data set 'digits' needs scikit-learn: pip install 'latent-ebm-text[image]'") from error
    from datasets import Dataset

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    columns = {"pixels": [image.tobytes() for image in pixels], "label": digits.target.tolist()}
    return {"train": Dataset.from_dict(columns)}


def _read(source: str, name: str, config: str | None) -> dict[str, Dataset]:
    """Reads every split of a local folder or file or of a Hub data set, with undecoded images."""
    import datasets

    try:
        path = Path(source)
        files = [file for file in (path, *path.rglob("*")) if file.is_file()]
        endings = Counter(file.suffix.lower() for file in files)
        if (
            max(endings, key=endings.__getitem__, default="") in _HDF5
        ):  # most files decide, as for the reader of folders
            raise UsageError(f"{name} is HDF5, which is not read: write its arrays into a .npz file with numpy.savez")
        if arrays := array_files(path):
            return read_array_files(arrays, name)
        if path.is_file():
            kind = {".parquet": "parquet", ".arrow": "arrow"}.get(path.suffix.lower())
            if kind is None:
                raise UsageError(f"{name} has the ending {path.suffix!r}; {_FILES}, or a folder")
            cache = cached_path("files", file_versions([path]))
            return dict(datasets.load_dataset(kind, data_files={"train": source}, cache_dir=str(cache)))
        if path.is_dir():
            cache = cached_path("files", file_versions(files))
            return dict(datasets.load_dataset(source, cache_dir=str(cache)))
        return dict(datasets.load_dataset(source, config))
    except datasets.exceptions.DataFilesNotFoundError as error:
        raise DataError(f"{name} holds no images: {_FILES}, or a folder of pictures") from error
    except datasets.exceptions.DatasetNotFoundError as error:
        raise UsageError(f"{name!r} is neither a local folder nor found on the Hugging Face Hub") from error
    except ConnectionError as error:
        raise DataError(
            f"{name!r} is neither local nor cached, and the Hugging Face Hub cannot be reached: give the path of a "
            "local folder, or use --dataset_name digits, which needs no download"
        ) from error
    except LatentEBMError:
        raise
    except Exception as error:  # readers raise errors of the libraries of many formats
        raise DataError(f"{name} cannot be read: {first_line(error)}") from error


# Columns and pixels


def _with_columns(dataset: Dataset, image_column: str | None, label_column: str | None, origin: str) -> Dataset:
    """Keeps the columns `image` (undecoded) or `pixels`, and `label` if there is one."""
    from datasets import Image, Value

    features = dataset.features
    listing = f"its columns are {', '.join(features)}"
    if label_column is not None and label_column not in features:
        raise UsageError(f"column {label_column!r} does not exist in {origin}: {listing}")
    label = label_column or ("label" if "label" in features else None)
    if label is not None and not getattr(features[label], "dtype", "").startswith(("int", "uint")):
        if label_column is not None:
            raise UsageError(
                f"column {label!r} of {origin} holds no integers, so that it cannot be a label: {listing}"
            )
        label = None
    if "pixels" in features and image_column is None:
        return dataset
    images = [column for column, feature in features.items() if isinstance(feature, Image)]
    if image_column is None and len(images) != 1:
        raise UsageError(f"cannot tell which column of {origin} holds the images: {listing}; name it by image_column")
    image = image_column or images[0]
    if image not in images:
        raise UsageError(f"column {image!r} of {origin} holds no images: {listing}")
    kept = {image: "image"} | ({label: "label"} if label is not None else {})
    dataset = dataset.select_columns(list(kept)).rename_columns({a: b for a, b in kept.items() if a != b})
    if label is not None:
        dataset = dataset.cast_column("label", Value("int64"))
    return dataset.cast_column("image", Image(decode=False))


def _processor(
    splits: dict[str, Dataset], name: str, image_size: int | None, num_channels: int | None, adapt: bool
) -> LatentEBMImageProcessor:
    """Returns the image processor for the requested size, or else for that of the first image."""
    from latent_ebm_text.data.image_processing import LatentEBMImageProcessor, size_and_channels

    if num_channels not in (None, 1, 3):
        raise UsageError(f"num_channels must be 1 (grey) or 3 (colour), got {num_channels}")
    size, channels = image_size, num_channels
    train = splits["train"]
    if "pixels" in train.features:
        size, channels = size or 8, channels or 1
        if (size, channels) != (8, 1):
            raise UsageError(f"the digits have 8 x 8 x 1 values, not {size} x {size} x {channels}")
    elif size is None or channels is None:
        first = next((picture for row in train if (picture := _open(row["image"])) is not None), None)
        if first is None:
            raise DataError(f"{name} has no image that can be read")
        own_size, own_channels = size_and_channels(first)
        size, channels = size or own_size, channels or own_channels
    return LatentEBMImageProcessor(size, channels, do_adapt=adapt)


def _open(image: Mapping[str, Any]) -> Any:
    """Opens an image with Pillow; returns `None` if it cannot be read."""
    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError("images need Pillow: pip install 'latent-ebm-text[image]'") from error
    try:
        content = Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"]
        picture = Image.open(io.BytesIO(content))
        picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # what Pillow raises for broken files
        return None
    return picture


def _decode_all(
    dataset: Dataset, processor: LatentEBMImageProcessor, origin: str, strict: bool
) -> tuple[Dataset, int]:
    """Decodes the images to bytes; skips those that cannot be read, and returns their number too."""
    if "pixels" in dataset.features:
        return dataset, 0
    from datasets import Features, Value

    labels = {"label": Value("int64")} if "label" in dataset.features else {}
    decoded = dataset.map(
        _decode,
        batched=True,
        with_indices=True,
        remove_columns=["image"],
        fn_kwargs={"processor": processor, "origin": origin, "strict": strict},
        features=Features({"pixels": Value("binary"), **labels}),
        desc="Reading images",
    )
    readable = np.flatnonzero(decoded.with_format("arrow")[:].column("pixels").is_valid().to_numpy())
    skipped = len(decoded) - len(readable)
    if skipped == len(decoded):
        raise DataError(f"{origin} has no image that can be read")
    return (decoded.select(readable), skipped) if skipped else (decoded, 0)


def _decode(
    rows: dict[str, list[Any]],
    indices: list[int],
    *,
    processor: LatentEBMImageProcessor,
    origin: str,
    strict: bool,
) -> dict[str, list[Any]]:
    pixels: list[bytes | None] = []
    for index, image in zip(indices, rows["image"], strict=True):
        picture, place = _open(image), image["path"] or f"row {index}"
        if picture is None and strict:
            raise DataError(
                f"{origin}: {place} cannot be read as an image; remove it, or leave out --strict to skip it"
            )
        try:
            pixels.append(None if picture is None else processor.to_array(picture).tobytes())
        except DataError as error:
            raise DataError(f"{origin}: {place}: {error}") from error
    return {"pixels": pixels, **{name: values for name, values in rows.items() if name != "image"}}


def _fingerprint(splits: Mapping[str, Dataset]) -> str:
    digest = hashlib.sha256()
    for split in SPLITS:
        digest.update(f"{split} {len(splits[split])}\n".encode())
        for batch in splits[split].select_columns("pixels").iter(1000):
            digest.update(b"".join(batch["pixels"]))
    return digest.hexdigest()[:16]
