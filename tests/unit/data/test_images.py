from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from focus_lab.data.images import read_image, read_size
from focus_lab.errors import DataError

COLOR = (200, 40, 90)


def saved(folder, image, name="a.png", **options):
    path = folder / name
    image.save(path, **options)
    return path


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    image = Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode)
    name = "a.png" if mode in ("1", "L", "LA", "P", "RGB", "RGBA") else "a.tif"
    if mode == "HSV":
        image = image.convert("RGB")
    pixels = read_image(saved(tmp_path, image, name), (4, 5))
    assert pixels.shape == (3, 4, 5)
    assert str(pixels.dtype) == "torch.uint8"
    assert (pixels >= 254).all()


def test_channels_are_red_green_blue(tmp_path):
    path = saved(tmp_path, Image.new("RGB", (2, 2), COLOR))
    assert read_image(path, (2, 2))[:, 0, 0].tolist() == list(COLOR)


def test_sixteen_bits_are_scaled_not_cut_off(tmp_path):
    values = np.array([[0, 255, 256], [0x8000, 0xFFFF, 0x1234]], dtype=np.uint16)
    path = saved(tmp_path, Image.fromarray(values))
    assert read_image(path, (2, 3))[1].tolist() == [[0, 0, 1], [128, 255, 0x12]]


def test_a_transparent_palette_gives_its_colours(tmp_path):
    image = Image.new("RGB", (3, 3), COLOR).quantize(4)
    path = saved(tmp_path, image, transparency=b"\x10\x20")
    assert read_image(path, (3, 3))[:, 1, 1].tolist() == list(COLOR)


@pytest.fixture
def turned(tmp_path):
    """A file of 6 x 4 stored pixels that viewers show as 4 x 6."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((4, 6, 3), dtype=np.uint8)
    pixels[0, 0] = COLOR
    return saved(tmp_path, Image.fromarray(pixels), exif=exif)


def test_the_orientation_tag_is_ignored_when_annotations_give_the_stored_size(turned):
    assert read_image(turned, (4, 6))[:, 0, 0].tolist() == list(COLOR)


def test_the_orientation_tag_is_followed_when_annotations_give_the_turned_size(turned):
    assert read_image(turned, (6, 4))[:, 0, 3].tolist() == list(COLOR)


def test_another_size_than_annotated_is_an_error(tmp_path):
    path = saved(tmp_path, Image.new("RGB", (5, 4)))
    with pytest.raises(DataError, match=r"a\.png: its size differs .*got 5 x 4 pixels for 4 x 5"):
        read_image(path, (5, 4))


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), name)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=rf"{name}: is not a readable image"):
        read_image(path, (64, 64))


@pytest.mark.parametrize("content", [b"", b"not an image"])
def test_a_file_that_is_no_image_is_an_error(tmp_path, content):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match="is not a readable image"):
        read_image(path, (4, 4))
    with pytest.raises(DataError, match="is not a readable image"):
        read_size(path)


def test_floating_point_pixels_are_refused(tmp_path):
    path = saved(tmp_path, Image.new("F", (3, 3), 0.5), "a.tif")
    with pytest.raises(DataError, match="store 8 or 16 bits"):
        read_image(path, (3, 3))


def test_the_size_is_read_from_the_header(tmp_path):
    assert read_size(saved(tmp_path, Image.new("L", (5, 4)))) == (4, 5)
