"""Sample images with kept tokens, detections and ground truth drawn on them, as JPEG tiles."""

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
from focus_lab.analysis.records import ExperimentRecord
from focus_lab.analysis.samples import SampleImage, Samples, read_samples

MAX_IMAGES = 4
MAX_CELLS = 8
SCORE_THRESHOLD = 0.3
TILE_SIDE = 320
"""Pixels of a tile's long side, with the panels of the coarser levels below the image."""

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


@dataclass(frozen=True)
class Pictures:
    """Rows of tiles: an image a row, first alone with its ground truth, then once a cell."""

    rows: tuple[tuple[str, tuple[Tile, ...]], ...] = ()
    """(image id, tiles)."""
    legend: tuple[tuple[str, str], ...] = ()
    """(class name, colour) of the classes that appear."""
    left_out: tuple[str, ...] = ()
    """Cells that have samples but no room."""


def draw_pictures(record: ExperimentRecord) -> Pictures:
    """The same validation images in every cell, from each cell's first seed that has samples."""
    found: dict[str, tuple[int, Samples]] = {}
    for cell in record.cells:
        for trial in record.trials_of(cell.name):
            samples = read_samples(trial.samples) if trial.samples else None
            if samples and samples.images:
                found[cell.name] = (trial.seed, samples)
                break
    if not found:
        return Pictures()
    shown, left_out = list(found)[:MAX_CELLS], list(found)[MAX_CELLS:]
    first = found[shown[0]][1]
    rows = []
    labels: set[int] = set()
    for image_id in _spread(_common_ids([found[name][1] for name in shown])):
        tiles = [_truth_tile(first.images[image_id], first.class_names)]
        for name in shown:
            seed, samples = found[name]
            image = samples.images[image_id]
            labels |= {*image.truth.labels, *image.detections.labels}
            tiles.append(_cell_tile(image, samples.class_names, name, seed))
        drawn = tuple(tile for tile in tiles if tile)
        if drawn:
            rows.append((q.printable(image_id), drawn))
    legend = tuple((_class_name(first.class_names, label), _hex(label)) for label in sorted(labels))
    return Pictures(tuple(rows), legend, tuple(q.printable(name) for name in left_out))


def _common_ids(samples: Sequence[Samples]) -> list[str]:
    """Images that all trials have, in the first one's order."""
    return [
        image_id
        for image_id in samples[0].images
        if all(image_id in other.images for other in samples)
    ]


def _spread(ids: Sequence[str]) -> list[str]:
    places = np.linspace(0, len(ids) - 1, min(MAX_IMAGES, len(ids))).round().astype(int)
    return [ids[place] for place in dict.fromkeys(places.tolist())]


def _truth_tile(image: SampleImage, names: Sequence[str]) -> Tile | None:
    size = _tile_size(image)
    pixels = _pixels(image, size)
    if pixels is None:
        return None
    canvas = Image.fromarray(pixels.astype(np.uint8))
    _draw_truth(canvas, image, coloured=True)
    count = len(image.truth.labels)
    text = f"{count} {'object' if count == 1 else 'objects'}"
    found = _counted(image.truth.labels, names)
    alt = f"Image {q.printable(image.image_id)} with the ground truth: {found}"
    return Tile("ground truth", text, alt, _jpeg(canvas))


def _cell_tile(image: SampleImage, names: Sequence[str], cell: str, seed: int) -> Tile | None:
    """The finest level on the image itself, the coarser levels as panels below."""
    size = _tile_size(image)
    pixels = _pixels(image, size)
    if pixels is None:
        return None
    top = Image.fromarray(_veiled(pixels, image, 0).astype(np.uint8))
    _draw_truth(top, image, coloured=False)
    shown = _draw_detections(top, image, names)
    canvas = top
    coarser = len(image.depth_by_level) - 1
    if coarser:
        gap = _GAP * _FINE
        width = (size[0] - gap * (coarser - 1)) // coarser
        height = max(1, round(width * size[1] / size[0]))
        canvas = Image.new("RGB", (size[0], size[1] + gap + height), "white")
        canvas.paste(top, (0, 0))
        whole = Image.fromarray(pixels.astype(np.uint8))
        resized = whole.resize((width, height), Image.Resampling.LANCZOS)
        small = np.asarray(resized, dtype=np.float64)
        for level in range(1, coarser + 1):
            panel = Image.fromarray(_veiled(small, image, level).astype(np.uint8))
            canvas.paste(panel, ((level - 1) * (width + gap), size[1] + gap))
    share = q.percent(image.kept_share)
    name = q.printable(cell)
    caption = f"{share} of tokens kept, {len(shown)} found"
    alt = (
        f"Image {q.printable(image.image_id)}, cell {name}, seed {seed}: {share} of the tokens "
        f"kept; detections: {_counted(shown, names)}"
    )
    return Tile(name, caption, alt, _jpeg(canvas))


def _tile_size(image: SampleImage) -> tuple[int, int]:
    """(width, height) of the enlarged image, so that the tile with its panels is TILE_SIDE long."""
    height, width = image.original_size
    coarser = len(image.depth_by_level) - 1
    panels = 1 + 1 / coarser if coarser else 1.0
    scale = _FINE * TILE_SIDE / max(width, height * panels + (_GAP if coarser else 0))
    return max(1, int(width * scale)), max(1, int(height * scale))


def _pixels(image: SampleImage, size: tuple[int, int]) -> NDArray[np.float64] | None:
    """The image as float [h, w, 3] in [0, 255]; None when the file is no image."""
    try:
        with Image.open(image.path) as opened:
            resized = opened.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    except (OSError, ValueError):
        return None
    return np.asarray(resized, dtype=np.float64)


def _veiled(pixels: NDArray[np.float64], image: SampleImage, level: int) -> NDArray[np.float64]:
    """The image with its unrefined tokens greyed, deeper ones brighter.

    Args:
        pixels: [h, w, 3].
        image: whose tokens.
        level: 0 is the finest.
    """
    height, width = pixels.shape[:2]
    stride = image.strides[level]
    depth = image.depth_by_level[level]
    # Token of every pixel: the tile shows the input's valid part, scaled.
    rows = (np.arange(height) + 0.5) * image.input_size[0] / height / stride
    columns = (np.arange(width) + 0.5) * image.input_size[1] / width / stride
    rows = rows.astype(int).clip(max=depth.shape[0] - 1)
    columns = columns.astype(int).clip(max=depth.shape[1] - 1)
    shown = depth[rows][:, columns] / image.num_layers  # [h, w] in [0, 1]
    light = np.where(shown > 0, 0.4 + 0.6 * shown, 0.0)[..., None]
    grey = pixels.mean(axis=2, keepdims=True)
    background = 0.38 * grey + 0.62 * _SLATE
    veiled: NDArray[np.float64] = light * pixels + (1 - light) * background
    return veiled


def _draw_truth(canvas: Image.Image, image: SampleImage, *, coloured: bool) -> None:
    draw = ImageDraw.Draw(canvas)
    for box, label in zip(
        _scaled(image.truth.xyxy, image, canvas), image.truth.labels, strict=True
    ):
        if coloured:
            # Around the object, so that a small one stays visible.
            for margin, colour in ((4 * _FINE, "white"), (3 * _FINE, _hex(label))):
                x0, y0, x1, y1 = box
                outer = (x0 - margin, y0 - margin, x1 + margin, y1 + margin)
                draw.rectangle(outer, outline=colour, width=margin)
        else:
            _dashed(draw, box)


def _draw_detections(canvas: Image.Image, image: SampleImage, names: Sequence[str]) -> list[int]:
    """Draw what was found with enough confidence; returns its labels."""
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=11 * _FINE)
    found = image.detections
    scores = found.scores or [1.0] * len(found.labels)
    boxes = _scaled(found.xyxy, image, canvas)
    rows = [
        row
        for row in sorted(zip(scores, found.labels, boxes, strict=True), key=lambda row: row[0])
        if row[0] >= SCORE_THRESHOLD
    ]
    for _, label, box in rows:
        draw.rectangle(box, outline=_hex(label), width=2 * _FINE)
    for score, label, box in rows:
        text = f"{100 * score:.0f}"
        if len(names) > len(COLOURS):
            text = f"{_class_name(names, label)[:12]} {text}"  # colours repeat
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        width, height = right - left + 2 * _FINE, bottom - top + 2 * _FINE
        x = min(max(0.0, box[0]), canvas.width - width)
        y = box[1] - height if box[1] >= height else min(box[1], canvas.height - height)
        draw.rectangle((x, y, x + width, y + height), fill=_hex(label))
        draw.text((x + _FINE - left, y + _FINE - top), text, fill=_ink_on(label), font=font)
    return [label for _, label, _ in rows]


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
    return ", ".join(f"{count} {_class_name(names, label)}" for label, count in counts.items())


def _class_name(names: Sequence[str], label: int) -> str:
    return q.printable(names[label]) if 0 <= label < len(names) else f"class {label}"


def _hex(label: int) -> str:
    return COLOURS[label % len(COLOURS)]


def _ink_on(label: int) -> str:
    """Black or white, whichever reads better on the colour of a class."""
    red, green, blue = (int(_hex(label)[place : place + 2], 16) for place in (1, 3, 5))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"
