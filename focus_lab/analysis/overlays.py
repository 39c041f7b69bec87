"""A sample image with kept tokens, detections and ground truth drawn on it, as a JPEG tile."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from focus_lab.analysis import quantities as q
from focus_lab.analysis.drawing import COLOURS
from focus_lab.analysis.samples import SampleImage

SCORE_THRESHOLD = 0.3
TILE_SIDE = 320
"""Pixels of a tile's long side, with the panels of the coarser levels below the image."""
LAYER_SIDE = 200
"""The same of the tile of a single encoder layer."""

_FINE = 2
"""Tiles are drawn so many times larger and then reduced, which smooths lines and letters."""
_GAP = 4
_QUALITY = 82
_SLATE = np.array([52.0, 58.0, 72.0])
"""What tokens that no layer refines sink into."""


@dataclass(frozen=True)
class Tile:
    """One picture of the page."""

    title: str
    caption: str
    alt: str
    jpeg: bytes

    @property
    def source(self) -> str:
        """The picture as a data address, for `src`."""
        return f"data:image/jpeg;base64,{base64.b64encode(self.jpeg).decode('ascii')}"


def truth_tile(image: SampleImage, names: Sequence[str]) -> Tile | None:
    """The image with its true boxes; None when the file is no image."""
    size = _tile_size(image, TILE_SIDE)
    pixels = _pixels(image, size)
    if pixels is None:
        return None
    canvas = Image.fromarray(pixels.astype(np.uint8))
    _draw_truth(canvas, image, names, coloured=True)
    count = len(image.truth.labels)
    text = f"{count} {'object' if count == 1 else 'objects'}"
    found = _counted(image.truth.labels, names)
    alt = f"Image {q.printable(image.image_id)} with the ground truth: {found}"
    return Tile("ground truth", text, alt, _jpeg(canvas))


def cell_tile(image: SampleImage, names: Sequence[str], cell: str, seed: int) -> Tile | None:
    """What a trial keeps and finds in an image; None when the file is no image.

    The finest level lies on the image itself, the coarser levels are panels below.
    """
    depth = tuple(level / image.num_layers for level in image.depth_by_level)
    drawn = _drawn(image, depth, names, TILE_SIDE, labelled=True)
    if drawn is None:
        return None
    canvas, shown = drawn
    share = q.percent(image.kept_share)
    name = q.printable(cell)
    caption = f"{share} of tokens kept, {len(shown)} found"
    alt = (
        f"Image {q.printable(image.image_id)}, cell {name}, seed {seed}: {share} of the tokens "
        f"kept; detections: {_counted(shown, names)}"
    )
    return Tile(name, caption, alt, _jpeg(canvas))


def layer_tile(image: SampleImage, names: Sequence[str], cell: str, layer: int) -> Tile | None:
    """The tokens that one encoder layer refines, 0 the first; None when the file is no image."""
    kept = tuple(refined.astype(np.float64) for refined in image.refined_by(layer))
    drawn = _drawn(image, kept, names, LAYER_SIDE, labelled=False)
    if drawn is None:
        return None
    canvas, shown = drawn
    total = sum(level.size for level in kept)
    share = q.percent(sum(float(level.sum()) for level in kept) / max(1, total))
    alt = (
        f"Image {q.printable(image.image_id)}, cell {q.printable(cell)}, encoder layer "
        f"{layer + 1}: {share} of the tokens refined; {len(shown)} detections"
    )
    return Tile(f"layer {layer + 1}", f"{share} kept", alt, _jpeg(canvas))


def _drawn(
    image: SampleImage,
    light: Sequence[NDArray[np.float64]],
    names: Sequence[str],
    side: int,
    *,
    labelled: bool,
) -> tuple[Image.Image, list[int]] | None:
    """The canvas and the labels of the detections drawn.

    Args:
        image: which.
        light: how bright each token is in [0, 1], 0 greyed: [h, w] a level.
        names: of the classes.
        side: pixels of the tile's long side.
        labelled: whether detections wear class and score and the truth is drawn; a small tile has
            no room for that.
    """
    size = _tile_size(image, side)
    pixels = _pixels(image, size)
    if pixels is None:
        return None
    top = Image.fromarray(_veiled(pixels, image, light, 0).astype(np.uint8))
    if labelled:
        _draw_truth(top, image, names, coloured=False)
    shown = _draw_detections(top, image, names, labelled=labelled)
    coarser = len(light) - 1
    if not coarser:
        return top, shown
    gap = _GAP * _FINE
    width = (size[0] - gap * (coarser - 1)) // coarser
    height = max(1, round(width * size[1] / size[0]))
    canvas = Image.new("RGB", (size[0], size[1] + gap + height), "white")
    canvas.paste(top, (0, 0))
    whole = Image.fromarray(pixels.astype(np.uint8))
    small = np.asarray(whole.resize((width, height), Image.Resampling.LANCZOS), dtype=np.float64)
    for level in range(1, coarser + 1):
        panel = Image.fromarray(_veiled(small, image, light, level).astype(np.uint8))
        canvas.paste(panel, ((level - 1) * (width + gap), size[1] + gap))
    return canvas, shown


def _tile_size(image: SampleImage, side: int) -> tuple[int, int]:
    """(width, height) of the enlarged image, so that the tile with its panels is `side` long."""
    height, width = image.original_size
    coarser = len(image.depth_by_level) - 1
    panels = 1 + 1 / coarser if coarser else 1.0
    scale = _FINE * side / max(width, height * panels + (_GAP if coarser else 0))
    return max(1, int(width * scale)), max(1, int(height * scale))


def _pixels(image: SampleImage, size: tuple[int, int]) -> NDArray[np.float64] | None:
    """The image as float [h, w, 3] in [0, 255]; None when the file is no image."""
    try:
        with Image.open(image.path) as opened:
            resized = opened.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    except (OSError, ValueError):
        return None
    return np.asarray(resized, dtype=np.float64)


def _veiled(
    pixels: NDArray[np.float64],
    image: SampleImage,
    light: Sequence[NDArray[np.float64]],
    level: int,
) -> NDArray[np.float64]:
    """The image with its unrefined tokens greyed.

    Args:
        pixels: [h, w, 3].
        image: whose tokens.
        light: see `_drawn`.
        level: 0 is the finest.
    """
    height, width = pixels.shape[:2]
    stride = image.strides[level]
    depth = light[level]
    # Token of every pixel: the tile shows the input's valid part, scaled.
    rows = (np.arange(height) + 0.5) * image.input_size[0] / height / stride
    columns = (np.arange(width) + 0.5) * image.input_size[1] / width / stride
    rows = rows.astype(int).clip(max=depth.shape[0] - 1)
    columns = columns.astype(int).clip(max=depth.shape[1] - 1)
    shown = depth[rows][:, columns]  # [h, w] in [0, 1]
    share = np.where(shown > 0, 0.4 + 0.6 * shown, 0.0)[..., None]
    grey = pixels.mean(axis=2, keepdims=True)
    background = 0.38 * grey + 0.62 * _SLATE
    veiled: NDArray[np.float64] = share * pixels + (1 - share) * background
    return veiled


def _draw_truth(
    canvas: Image.Image, image: SampleImage, names: Sequence[str], *, coloured: bool
) -> None:
    draw = ImageDraw.Draw(canvas)
    boxes = _scaled(image.truth.xyxy, image, canvas)
    for box, label in zip(boxes, image.truth.labels, strict=True):
        if coloured:
            # Around the object, so that a small one stays visible.
            for margin, colour in ((4 * _FINE, "white"), (3 * _FINE, class_colour(label))):
                x0, y0, x1, y1 = box
                outer = (x0 - margin, y0 - margin, x1 + margin, y1 + margin)
                draw.rectangle(outer, outline=colour, width=margin)
        else:
            _dashed(draw, box)
    for box, label in zip(boxes, image.truth.labels, strict=True) if coloured else ():
        _write(draw, canvas, box, label, abbreviated(names, label))


def _draw_detections(
    canvas: Image.Image, image: SampleImage, names: Sequence[str], *, labelled: bool
) -> list[int]:
    """Draw what was found with enough confidence; returns its labels."""
    draw = ImageDraw.Draw(canvas)
    found = image.detections
    certain = found.scores or [1.0] * len(found.labels)
    boxes = _scaled(found.xyxy, image, canvas)
    rows = [
        row
        for row in sorted(zip(certain, found.labels, boxes, strict=True), key=lambda row: row[0])
        if row[0] >= SCORE_THRESHOLD
    ]
    for _, label, box in rows:
        x0, y0, x1, y1 = box
        # A light line outside, without which a dark frame is lost among greyed tokens.
        draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline="white", width=1)
        draw.rectangle(box, outline=class_colour(label), width=2 * _FINE if labelled else _FINE)
    for score, label, box in rows if labelled else ():
        _write(draw, canvas, box, label, f"{abbreviated(names, label)} {100 * score:.0f}")
    return [label for _, label, _ in rows]


def _write(
    draw: ImageDraw.ImageDraw,
    canvas: Image.Image,
    box: tuple[float, float, float, float],
    label: int,
    text: str,
) -> None:
    """A tag on the upper left corner of a box."""
    font = ImageFont.load_default(size=10 * _FINE)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 2 * _FINE, bottom - top + 2 * _FINE
    x = min(max(0.0, box[0]), canvas.width - width)
    y = box[1] - height if box[1] >= height else min(box[1], canvas.height - height)
    draw.rectangle((x, y, x + width, y + height), fill=class_colour(label))
    draw.text((x + _FINE - left, y + _FINE - top), text, fill=_ink_on(label), font=font)


def _scaled(
    xyxy: NDArray[np.float64], image: SampleImage, canvas: Image.Image
) -> list[tuple[float, float, float, float]]:
    """Boxes in pixels of the canvas, whose width is the image's."""
    scale = canvas.width / image.original_size[1]
    limit = np.array([canvas.width - 1, canvas.height - 1] * 2, dtype=np.float64)
    clipped = np.nan_to_num(xyxy * scale).clip(0, limit)
    return [(x0, y0, max(x0, x1), max(y0, y1)) for x0, y0, x1, y1 in clipped.tolist()]


def _dashed(draw: ImageDraw.ImageDraw, box: tuple[float, float, float, float]) -> None:
    """A thin white frame of dashes on a dark line, visible on every ground."""
    x0, y0, x1, y1 = box
    draw.rectangle(box, outline=(0, 0, 0), width=_FINE)
    step = 6.0 * _FINE
    for start in np.arange(x0, x1, 2 * step):
        end = min(start + step, x1)
        draw.line((start, y0, end, y0), fill="white", width=_FINE)
        draw.line((start, y1, end, y1), fill="white", width=_FINE)
    for start in np.arange(y0, y1, 2 * step):
        end = min(start + step, y1)
        draw.line((x0, start, x0, end), fill="white", width=_FINE)
        draw.line((x1, start, x1, end), fill="white", width=_FINE)


def _jpeg(canvas: Image.Image) -> bytes:
    small = (max(1, canvas.width // _FINE), max(1, canvas.height // _FINE))
    buffer = io.BytesIO()
    canvas.resize(small, Image.Resampling.LANCZOS).save(
        buffer, "JPEG", quality=_QUALITY, optimize=True
    )
    return buffer.getvalue()


def _counted(labels: Sequence[int], names: Sequence[str]) -> str:
    if not labels:
        return "none"
    counts = {label: list(labels).count(label) for label in sorted(set(labels))}
    return ", ".join(f"{count} {class_name(names, label)}" for label, count in counts.items())


def class_name(names: Sequence[str], label: int) -> str:
    """Name of a class as text."""
    return q.printable(names[label]) if 0 <= label < len(names) else f"class {label}"


def abbreviated(names: Sequence[str], label: int) -> str:
    """The shortest beginning of a class's name that no other class has, at most 12 letters."""
    name = class_name(names, label)
    others = [class_name(names, other) for other in range(len(names)) if other != label]
    return next(
        (
            name[:length]
            for length in range(1, min(12, len(name)))
            if not any(other.startswith(name[:length]) for other in others)
        ),
        name[:12],
    )


def class_colour(label: int) -> str:
    """Colour of a class's frames; colours repeat, the abbreviated names beside them do not."""
    return COLOURS[label % len(COLOURS)]


def _ink_on(label: int) -> str:
    """Black or white, whichever reads better on the colour of a class."""
    red, green, blue = (int(class_colour(label)[place : place + 2], 16) for place in (1, 3, 5))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"
