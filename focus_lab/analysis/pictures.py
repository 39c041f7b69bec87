"""The same validation images in every cell: as a whole, and layer by layer of the encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from focus_lab.analysis import quantities as q
from focus_lab.analysis.excerpt import excerpt
from focus_lab.analysis.overlays import (
    Tile,
    abbreviated,
    cell_tile,
    class_colour,
    class_name,
    layer_tile,
    truth_tile,
)
from focus_lab.analysis.samples import Samples, read_samples
from focus_lab.analysis.summary import Comparison

MAX_IMAGES = 4
LAYER_IMAGES = 2
"""Images that are shown layer by layer: each has a picture a cell and layer."""
MAX_LAYERS = 6


@dataclass(frozen=True)
class LayerRows:
    """One image, layer by layer."""

    image_id: str
    rows: tuple[tuple[str, tuple[Tile, ...]], ...]
    """(cell, a tile a layer from the first to the last)."""


@dataclass(frozen=True)
class Pictures:
    """Rows of tiles: an image a row, first alone with its ground truth, then once a cell."""

    rows: tuple[tuple[str, tuple[Tile, ...]], ...] = ()
    """(image id, tiles)."""
    layers: tuple[LayerRows, ...] = ()
    """Of the first images."""
    legend: tuple[tuple[str, str, str], ...] = ()
    """(class name, abbreviated, colour) of the classes that appear."""
    excerpt: str = ""
    """Which cells are shown, in a sentence; empty when all that have samples are."""


def draw_pictures(comparison: Comparison) -> Pictures:
    """The same validation images in every cell, from each cell's first seed that has samples."""
    record = comparison.record
    found: dict[str, tuple[int, Samples]] = {}
    for cell in record.cells:
        for trial in record.trials_of(cell.name):
            samples = read_samples(trial.samples) if trial.samples else None
            if samples and samples.images:
                found[cell.name] = (trial.seed, samples)
                break
    if not found:
        return Pictures()
    cells = excerpt(comparison, found)
    shown = [cell.name for cell in cells.shown]
    first = found[shown[0]][1]
    chosen = _spread(_common_ids([found[name][1] for name in shown]))
    rows = []
    labels: set[int] = set()
    for image_id in chosen:
        tiles = [truth_tile(first.images[image_id], first.class_names)]
        for name in shown:
            seed, samples = found[name]
            image = samples.images[image_id]
            labels |= {*image.truth.labels, *image.detections.labels}
            tiles.append(cell_tile(image, samples.class_names, name, seed))
        drawn = tuple(tile for tile in tiles if tile)
        if drawn:
            rows.append((q.printable(image_id), drawn))
    layers = [
        _layers(image_id, {name: found[name][1] for name in shown})
        for image_id in chosen[:LAYER_IMAGES]
    ]
    return Pictures(
        tuple(rows),
        tuple(one for one in layers if one.rows),
        tuple(
            (class_name(first.class_names, n), abbreviated(first.class_names, n), class_colour(n))
            for n in sorted(labels)
        ),
        cells.sentence,
    )


def _layers(image_id: str, samples: dict[str, Samples]) -> LayerRows:
    rows = []
    for name, of_cell in samples.items():
        image = of_cell.images[image_id]
        # Of many layers the first, the last, and some between.
        places = np.linspace(0, image.num_layers - 1, min(MAX_LAYERS, image.num_layers))
        tiles = [
            layer_tile(image, of_cell.class_names, name, layer)
            for layer in places.round().astype(int).tolist()
        ]
        drawn = tuple(tile for tile in tiles if tile)
        if drawn:
            rows.append((q.printable(name), drawn))
    return LayerRows(q.printable(image_id), tuple(rows))


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
