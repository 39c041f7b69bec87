"""Pixels of procedural scenes: textured backgrounds, and figures whose colours betray no class.

Integer arithmetic and Pillow's fixed-point resampling throughout: the same numbers give the same
bytes. Shape legend: H, W of the scene; h, w of a figure's patch.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from focus_lab.data.outlines import Polygon
from focus_lab.data.scene import Figure

Pixels = NDArray[np.uint8]
_OCTAVES = (64, 32, 16, 8, 4)
"""Cell sides of the background noise, in pixels."""
_CANDIDATES = 24


def paint_scene(
    figures: list[Figure], size: tuple[int, int], contrast: float, rng: np.random.Generator
) -> Pixels:
    """Background and figures.

    Args:
        figures: in drawing order.
        size: (height, width) in pixels.
        contrast: least distance in RGB (0..441) between a figure's colours and the mean of what it
            covers.
        rng: the scene's paint stream.

    Returns:
        uint8 [H, W, 3], RGB.
    """
    scene = paint_background(size, rng)
    for figure in figures:
        _paint_figure(scene, figure, contrast, rng)
    return scene


def paint_background(size: tuple[int, int], rng: np.random.Generator) -> Pixels:
    """A colour gradient with lines under several octaves of noise, uint8 [H, W, 3]."""
    height, width = size
    base = rng.integers(35, 221, 3)
    corners = (base + rng.integers(-45, 46, (3, 3, 3))).clip(0, 255).astype(np.uint8)
    canvas = Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR)
    _draw_lines(canvas, base, rng)
    noise = np.zeros((height, width), dtype=np.int16)
    amplitude = rng.uniform(20.0, 60.0)
    persistence = rng.uniform(0.45, 0.85)
    for cell in _OCTAVES:
        grid = (max(2, height // cell + 1), max(2, width // cell + 1))
        noise += _smooth_noise(grid, size, rng) * np.int16(amplitude) // np.int16(128)
        amplitude *= persistence
    grain = int(rng.integers(1, 9))
    noise += rng.integers(-grain, grain + 1, (height, width), dtype=np.int16)
    scene = np.array(canvas, dtype=np.int16)
    # Light and shade are not grey: each channel takes its own share of the noise.
    for channel, gain in enumerate(rng.integers(70, 129, 3).tolist()):
        scene[..., channel] += noise * np.int16(gain) // np.int16(128)
    return scene.clip(0, 255).astype(np.uint8)


def _smooth_noise(
    grid: tuple[int, int], size: tuple[int, int], rng: np.random.Generator
) -> NDArray[np.int16]:
    """Values in -128..127 on a coarse grid, interpolated to int16 [H, W]."""
    coarse = Image.fromarray(rng.integers(0, 256, grid, dtype=np.uint8))
    fine = coarse.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(fine).astype(np.int16) - np.int16(128)


def _draw_lines(canvas: Image.Image, base: NDArray[np.int64], rng: np.random.Generator) -> None:
    draw = ImageDraw.Draw(canvas)
    width, height = canvas.size
    for _ in range(int(rng.integers(0, 8))):
        color = tuple((base + rng.integers(-90, 91, 3)).clip(0, 255).tolist())
        thickness = int(rng.integers(1, 4))
        x0, y0, x1, y1 = (rng.random(4) * (width, height, width, height)).tolist()
        if rng.random() < 0.7:
            # Beyond both ends: real lines seldom stop inside the picture.
            dx, dy = x1 - x0, y1 - y0
            draw.line((x0 - dx, y0 - dy, x1 + dx, y1 + dy), fill=color, width=thickness)
        else:
            radius = rng.uniform(0.3, 1.0) * max(width, height)
            start = rng.uniform(0, 360)
            bounds = (x0 - radius, y0 - radius, x0 + radius, y0 + radius)
            draw.arc(bounds, start, start + rng.uniform(40, 200), fill=color, width=thickness)


def _paint_figure(scene: Pixels, figure: Figure, contrast: float, rng: np.random.Generator) -> None:
    height, width = math.ceil(figure.height), math.ceil(figure.width)
    region = scene[figure.top : figure.top + height, figure.left : figure.left + width]  # [h, w, 3]
    height, width = region.shape[:2]
    first, second = _colors(region[::2, ::2].reshape(-1, 3).mean(axis=0), contrast, rng)
    pattern = _pattern(height, width, rng)[..., None]
    fill = first + (second - first) * pattern // np.int32(255)
    alpha = _coverage(figure, height, width)[..., None].astype(np.int32)
    under = region.astype(np.int32)
    region[...] = (under + (fill - under) * alpha // 255).astype(np.uint8)


def _colors(
    under: NDArray[np.float64], contrast: float, rng: np.random.Generator
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Two colours of a texture, int32 [3] each, both at least `contrast` away from `under`."""
    candidates = rng.integers(0, 256, (_CANDIDATES, 3))
    first = _first_apart(candidates, under, contrast)
    if first is None:
        # The farthest corner of the RGB cube is at least 220 away from any colour.
        first = np.where(under < 127.5, 255, 0)
    nearby = (first + rng.integers(-80, 81, (_CANDIDATES, 3))).clip(0, 255)
    second = _first_apart(nearby, under, contrast)
    return first.astype(np.int32), (first if second is None else second).astype(np.int32)


def _first_apart(
    colors: NDArray[np.int64], under: NDArray[np.float64], contrast: float
) -> NDArray[np.int64] | None:
    apart = np.flatnonzero(((colors - under) ** 2).sum(axis=1) >= contrast**2)
    return colors[apart[0]] if apart.size else None


def _pattern(height: int, width: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """Share of the second colour, int32 [h, w] in 0..255.

    Plain, stripes, checks, gradient or mottled.
    """
    kind = int(rng.integers(5))
    period = int(rng.integers(3, 9))
    slope_x, slope_y = rng.integers(-2, 3, 2).tolist()
    y, x = np.ogrid[:height, :width]
    if kind == 0:
        return np.zeros((height, width), dtype=np.int32)
    share: NDArray[np.int32]
    if kind == 1:
        along = slope_x * x + slope_y * y if (slope_x or slope_y) else x + y
        share = along // period % 2 * 255
    elif kind == 2:
        share = (x // period + y // period) % 2 * 255
    elif kind == 3:
        share = (x * width + y * height) * 255 // (width**2 + height**2)
    else:
        grid = (max(2, height // period), max(2, width // period))
        share = _smooth_noise(grid, (height, width), rng) + np.int32(128)
    return share.astype(np.int32)


def _coverage(figure: Figure, height: int, width: int) -> Pixels:
    """Share of each pixel inside the outline, uint8 [h, w] in 0..255, by supersampling."""
    fine = 4 if max(height, width) <= 64 else 2
    mask = Image.new("L", (width * fine, height * fine), 0)
    draw = ImageDraw.Draw(mask)
    draw.polygon(_vertices(figure.outline.edge, fine), fill=255)
    if figure.outline.hole is not None:
        draw.polygon(_vertices(figure.outline.hole, fine), fill=0)
    return np.asarray(mask.reduce(fine))


def _vertices(polygon: Polygon, fine: int) -> list[tuple[float, float]]:
    # Pillow counts pixel centres, outlines count pixel edges: half a fine pixel between them.
    return [(x, y) for x, y in (polygon * fine - 0.5).tolist()]
