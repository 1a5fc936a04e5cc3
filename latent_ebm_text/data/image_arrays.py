"""Images in files of arrays: the IDX files in which MNIST is published, and NumPy's `.npz`."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latent_ebm_text.data.cache import cached_path, file_versions
from latent_ebm_text.data.formats import open_bytes
from latent_ebm_text.data.splits import SPLIT_ALIASES
from latent_ebm_text.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

Array = NDArray[Any]

_NUMPY = (".npz", ".npy")
#: Words of names that tell a split; MNIST calls its test images t10k.
_SPLIT_WORDS = SPLIT_ALIASES | {"t10k": "test"}


def array_files(path: Path) -> list[Path]:
    """The files of arrays of images at a path: the file itself, or those in a folder, where `.npy` may be anything."""
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.suffix.lower() == ".npz" or _is_idx(file))
    return [path] if path.suffix.lower() in _NUMPY or _is_idx(path) else []


def _is_idx(file: Path) -> bool:
    return re.search(r"idx[1-4]-ubyte", file.name.lower()) is not None


def read_array_files(files: list[Path], name: str) -> dict[str, Dataset]:
    """Reads images, and labels where there are some, from arrays whose names tell the split, such as `x_train`.

    Arrays of images have the shape `(n, height, width)`, `(n, height, width, channels)` or
    `(n, channels, height, width)`; labels have `(n,)` or `(n, 1)`.

    Args:
        files: What `array_files` returned.
        name: What they are called in messages.

    Returns:
        The splits, with the column `image`, and the integer column `label` where there are labels.

    Raises:
        DataError: If a file is damaged, its values are not integers from 0 to 255, or it is unclear which images and
            labels belong together.
    """
    from datasets import Dataset, Features, Image, Value

    splits: dict[str, dict[str, Array]] = {}
    for key, array in ((key, array) for file in files for key, array in _read_arrays(file)):
        words = re.findall("[a-z0-9]+", key.lower())
        split = next((_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS), "train")
        if array.ndim in (3, 4):
            column, array = "image", _as_images(array, key)
        elif array.dtype.kind in "iu" and array.size == len(array):
            column, array = "label", array.ravel()
        else:
            continue
        if column in splits.setdefault(split, {}):
            raise DataError(f"{name} holds two arrays of {split} {column}s, of which {key} is the second")
        splits[split][column] = array
    if not splits:
        raise DataError(f"{name} holds no images: no array has the shape (n, height, width) or that with channels")

    found = {}
    for split, columns in splits.items():
        lengths = {column: len(array) for column, array in columns.items()}
        if "image" not in columns or len(set(lengths.values())) != 1:
            raise DataError(f"{name} holds {lengths} for {split}, where one image for each label is expected")
        features = {"image": Image(), "label": Value("int64")}
        found[split] = Dataset.from_generator(
            _rows,
            features=Features({column: features[column] for column in columns}),
            cache_dir=str(cached_path("files", [file_versions(files), split])),
            gen_kwargs={"columns": columns},
        )
    return found


def _rows(columns: dict[str, Array]) -> Iterator[dict[str, Any]]:
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def _read_arrays(file: Path) -> Iterator[tuple[str, Array]]:
    """The arrays of a file, each with a name that begins with the file's."""
    if file.suffix.lower() not in _NUMPY:
        yield file.name, _read_idx(file)
        return
    try:
        loaded = np.load(file, allow_pickle=False)
        arrays = {"array": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{file} is damaged, or holds Python objects, which are not read; save arrays of numbers"
        ) from error
    for key, array in arrays.items():
        yield f"{file.name}, {key}", array


def _read_idx(file: Path) -> Array:
    """An array of bytes in the format IDX: its number of dimensions, their sizes, its values."""
    with open_bytes(file) as stream:
        content = stream.read()
    start = 4 + 4 * content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    shape = np.frombuffer(content[4:start], ">u4").astype(int).tolist() if 4 < start <= len(content) else None
    if shape is None or math.prod(shape) != len(content) - start:
        raise DataError(f"{file} is no complete IDX file of bytes")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _as_images(array: Array, key: str) -> Array:
    """Images as bytes, `(n, height, width)` or `(n, height, width, 3)`."""
    if array.ndim == 4 and array.shape[3] not in (1, 3) and array.shape[1] in (1, 3):
        array = array.transpose(0, 2, 3, 1)
    if array.ndim == 4 and array.shape[3] not in (1, 3):
        raise DataError(f"{key} has shape {array.shape}, where images have 1 or 3 channels")
    if array.size == 0 or array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 255:
        raise DataError(
            f"{key} holds {array.size:,} values of {array.dtype}, where integers from 0 to 255 are expected"
        )
    return (array[..., 0] if array.shape[3:] == (1,) else array).astype(np.uint8)
