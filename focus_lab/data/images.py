"""Image files to RGB tensors, whatever their mode; every failure names the file."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from focus_lab.errors import DataError

_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)


def read_image(path: Path, size: tuple[int, int]) -> Tensor:
    """Decode an image file to RGB.

    Grey, palette, CMYK, 16-bit and transparent images are converted; an alpha channel is dropped,
    and of an animation the first frame is taken. Boxes of COCO files count in stored pixels, so the
    EXIF orientation is ignored; only if the annotated size is that of the turned picture and not of
    the stored one is it turned.

    Args:
        path: the file.
        size: (height, width) that the annotations give, in pixels.

    Returns:
        uint8 [3, H, W] of that size; the memory is laid out pixel by pixel (H, W, 3).

    Raises:
        DataError: if the file cannot be decoded or has another size.
    """
    try:
        with Image.open(path) as image:
            pixels = _rgb_pixels(_as_annotated(image, size))
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    if pixels.shape[:2] != size:
        raise DataError(
            f"{path}: its size differs from its annotations, "
            f"got {pixels.shape[1]} x {pixels.shape[0]} pixels for {size[1]} x {size[0]}; "
            "boxes would be misplaced: annotate this file or restore the original"
        )
    return torch.from_numpy(pixels).permute(2, 0, 1)


def decode_image(file: BinaryIO, name: str) -> Tensor:
    """Decode an image that has no annotations, as `read_image` does: in its stored pixels.

    Args:
        file: the content of an image file.
        name: what to call it in an error.

    Returns:
        uint8 [3, H, W], RGB.

    Raises:
        DataError: if it cannot be decoded.
    """
    try:
        with Image.open(file) as image:
            return torch.from_numpy(_rgb_pixels(image)).permute(2, 0, 1)
    except _UNREADABLE as error:
        raise DataError(
            f"{name}: is not a readable image, got {type(error).__name__}: {error}; "
            "send the bytes of a PNG or JPEG file"
        ) from error


def read_size(path: Path) -> tuple[int, int]:
    """(height, width) of the stored pixels, from the file's header.

    Raises:
        DataError: if the file is not an image.
    """
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: BaseException) -> DataError:
    return DataError(
        f"{path}: is not a readable image, got {type(error).__name__}: {error}; "
        "replace the file or remove it from the annotations"
    )


def _as_annotated(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    stored = (image.height, image.width)
    if stored == size or stored != (size[1], size[0]):
        return image
    return ImageOps.exif_transpose(image)


def _rgb_pixels(image: Image.Image) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    """A writable uint8 [H, W, 3]."""
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow would cut values off at 255 instead of scaling them.
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        return np.repeat((wide >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range; store 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        # Pillow warns when transparency is dropped from a palette in one step.
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))
