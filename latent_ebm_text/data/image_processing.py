"""Converts images to tensors in [-1, 1] and back. Needs the extra `image` (Pillow)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from latent_ebm_text.errors import DataError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

_MODES = {1: "L", 3: "RGB"}
_GREY_MODES = ("1", "L", "LA", "I", "F", "I;16")
_ORIENTATION = 0x0112  # the EXIF tag with which cameras and phones say how a picture must be turned


class LatentEBMImageProcessor(BaseImageProcessor):
    """Turns images into the `pixel_values` of an image model, and a model's images into Pillow images.

    It is saved with the model.

    Args:
        image_size: Height and width of the model's images.
        num_channels: 1 for grey, 3 for colour.
        do_adapt: Whether images of another size or mode are cropped to their central square, resized and converted,
            transparent ones on white; otherwise they are an error.
    """

    model_input_names = ["pixel_values"]

    def __init__(self, image_size: int = 32, num_channels: int = 3, do_adapt: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.image_size, self.num_channels, self.do_adapt = image_size, num_channels, do_adapt

    def __call__(self, images: Any, return_tensors: str = "pt") -> BatchFeature:
        """Converts Pillow images, or arrays of integers from 0 to 255, to `pixel_values`.

        Args:
            images: A `PIL.Image`, an integer array `(height, width)` or `(height, width, channels)`, or a list of
                these.
            return_tensors: Only `"pt"` is supported.

        Returns:
            A dictionary with `pixel_values`, `(batch, num_channels, image_size, image_size)` in [-1, 1].

        Raises:
            UsageError: If there are no images, or `return_tensors` is not `"pt"`.
            DataError: If an image has another size or mode, or values out of range.
        """
        if return_tensors != "pt":
            raise UsageError(f"return_tensors must be 'pt', got {return_tensors!r}")
        images = images if isinstance(images, list | tuple) else [images]
        if not images:
            raise UsageError("no images were given")
        return BatchFeature({"pixel_values": to_pixel_values([self.to_array(image) for image in images])})

    def to_array(self, image: Any) -> NDArray[np.uint8]:
        """Converts one image to bytes of shape `(image_size, image_size, num_channels)`."""
        picture = _upright(image) if _is_picture(image) else _picture_of_array(np.asarray(image))
        wanted_mode, wanted_size = _MODES[self.num_channels], (self.image_size, self.image_size)
        is_coded = picture.mode in ("1", "P")  # a bit or the row of a palette, between which there is nothing
        if self.do_adapt or is_coded:
            picture = _on_white(picture)
        if is_coded:
            picture = picture.convert(wanted_mode)
        if self.do_adapt:
            picture = _crop_and_resize(picture, self.image_size)
        if picture.size != wanted_size:
            width, height = picture.size
            raise DataError(
                f"an image has {width} x {height} pixels (width x height) where {self.image_size} x "
                f"{self.image_size} are expected: set image_size, or adapt_images to crop and resize"
            )
        if picture.mode in ("I", "F", "I;16"):
            low, high = picture.getextrema()
            raise DataError(
                f"an image of mode {picture.mode!r} holds values from {low} to {high}, where 0 to 255 are expected: "
                "convert the images to 8 bits a channel"
            )
        if picture.mode != wanted_mode and self.do_adapt:
            picture = picture.convert(wanted_mode)
        if picture.mode != wanted_mode:
            raise DataError(
                f"an image has {len(picture.getbands())} channels (mode {picture.mode!r}) where {self.num_channels} "
                f"({wanted_mode!r}) are expected: set adapt_images to convert, or num_channels (1 or 3)"
            )
        return np.asarray(picture, dtype=np.uint8).reshape(self.image_size, self.image_size, self.num_channels)

    def post_process(self, images: Tensor, output_type: Literal["pt", "np", "pil"] = "pil") -> Any:
        """Converts a model's images to another form.

        Args:
            images: `(batch, num_channels, image_size, image_size)` in [-1, 1].
            output_type: `"pt"` for the tensor itself, `"np"` for bytes of shape
                `(batch, image_size, image_size, num_channels)`, `"pil"` for a list of Pillow images.
        """
        return convert_images(images, output_type)


def size_and_channels(image: Any) -> tuple[int, int]:
    """The shorter side of a Pillow image or an array, and its channels: 1 if it is grey, 3 if it has colours.

    Raises:
        DataError: If it is neither.
    """
    if not _is_picture(image):
        image = _picture_of_array(np.asarray(image))
    return min(image.size), 1 if image.mode in _GREY_MODES else 3


def to_pixel_values(arrays: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Converts bytes, each `(height, width, channels)`, to a tensor `(batch, channels, height, width)` in [-1, 1]."""
    stacked = torch.from_numpy(np.stack(arrays))
    return stacked.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1.0)


def convert_images(images: Tensor, output_type: str) -> Any:
    """Converts images `(batch, channels, height, width)` in [-1, 1], see [`LatentEBMImageProcessor.post_process`]."""
    if output_type not in ("pt", "np", "pil"):
        raise UsageError(f"output_type must be 'pt', 'np' or 'pil', got {output_type!r}")
    if output_type == "pt":
        return images
    scaled = images.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    array = scaled.permute(0, 2, 3, 1).cpu().numpy()
    if output_type == "np":
        return array
    pillow = _pillow()
    return [pillow.fromarray(row[..., 0] if row.shape[-1] == 1 else row) for row in array]


def _is_picture(image: Any) -> bool:
    return hasattr(image, "getbands")


def _upright(picture: Image) -> Image:
    """The picture as viewers turn it."""
    if picture.getexif().get(_ORIENTATION, 1) == 1:
        return picture
    from PIL import ImageOps

    return ImageOps.exif_transpose(picture)


def _on_white(picture: Image) -> Image:
    """The picture on white where it is transparent: of what is drawn in black on nothing, only the mask says what."""
    if not picture.has_transparency_data:
        return picture
    layer = picture.convert("RGBA")
    return _pillow().alpha_composite(_pillow().new("RGBA", layer.size, "white"), layer).convert("RGB")


def _picture_of_array(array: NDArray[Any]) -> Image:
    if array.dtype.kind not in "biuf" or array.size == 0:
        raise DataError(
            f"an image must be a Pillow image or an array of bytes, got {array.dtype} of {array.size} values; "
            "open files with PIL.Image.open"
        )
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3)):
        raise DataError(f"an image must have shape (height, width) or (height, width, 1 or 3), got {array.shape}")
    if not np.issubdtype(array.dtype, np.integer) or array.min() < 0 or array.max() > 255:
        raise DataError(
            f"an image holds {array.dtype} values from {array.min()} to {array.max()}, where integers from 0 to 255 "
            "are expected"
        )
    array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    picture: Image = _pillow().fromarray(array.astype(np.uint8))
    return picture


def _crop_and_resize(picture: Image, size: int) -> Image:
    """Crops the central square and resizes it."""
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    return square if side == size else square.resize((size, size), _pillow().Resampling.BICUBIC)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError("images need Pillow: pip install 'latent-ebm-text[image]'") from error
    return Image
