"""Colours that are drawn together, as people with the two common colour blindnesses see them."""

import itertools
import math
import re
from pathlib import Path

import pytest

from focus_lab import analysis
from focus_lab.analysis import marks, plots
from focus_lab.analysis.drawing import COLOURS, DASHES, INK

# Machado, Oliveira and Fernandes (2009), severity 1.0, on linear RGB.
SIGHTS = {
    "full": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
}
# Distances in Oklab, where black and white are 1 apart. The palette's closest pairs have 0.076 on a
# light page (green and pink, deuteranopia) and 0.069 on a dark one (blue and pink, protanopia):
# little for thin lines, so markers differ as well.
APART = 0.065
# Bars have no markers, but only neighbours touch.
NEIGHBOURS_APART = 0.12


def seen(colour, sight):
    """The colour in Oklab after what the eye leaves out."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    left = [sum(a * b for a, b in zip(row, linear, strict=True)) for row in SIGHTS[sight]]
    r, g, b = (min(1.0, max(0.0, value)) for value in left)
    long = math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b)
    middle = math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b)
    short = math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b)
    return (
        0.2104542553 * long + 0.7936177850 * middle - 0.0040720468 * short,
        1.9779984951 * long - 2.4285922050 * middle + 0.4505937099 * short,
        0.0259040371 * long + 0.7827717662 * middle - 0.8086757660 * short,
    )


def distance(one, other, sight):
    return math.dist(seen(one, sight), seen(other, sight))


def on_the_page(colours):
    """The colours as drawn, and as a dark page replaces them."""
    page = (Path(analysis.__file__).parent / "report.html.jinja").read_text()
    rule = re.search(r"prefers-color-scheme: dark\) \{ :root \{(.*)\}", page)[1]
    blue, ink = (re.search(rf"--{name}: (#\w+);", rule)[1] for name in ("blue", "ink"))
    dark = {COLOURS[0]: blue, INK: ink}
    return {"light": colours, "dark": [dark.get(colour, colour) for colour in colours]}


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize("page", ["light", "dark"])
def test_any_two_colours_can_be_told_apart(page, sight):
    pairs = itertools.combinations(on_the_page(COLOURS)[page], 2)
    close = {pair: found for pair in pairs if (found := distance(*pair, sight)) < APART}
    assert close == {}


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize("page", ["light", "dark"])
def test_parts_of_a_bar_that_touch_differ_clearly(page, sight):
    colours = on_the_page(plots.PART_COLOURS)[page]
    assert len(colours) == len(set(colours)) == len(plots.PARTS)
    found = [distance(*pair, sight) for pair in itertools.pairwise(colours)]
    assert min(found) > NEIGHBOURS_APART


@pytest.mark.parametrize(
    ("one", "other"),
    [
        # matplotlib's own red and green, and its blue and purple.
        ("#d62728", "#2ca02c"),
        ("#1f77b4", "#9467bd"),
        # Grey beside what deuteranopia makes of pink, and beside grey.
        ("#cc79a7", "#8fa0a8"),
        ("#808080", "#8a8a8a"),
    ],
)
def test_colours_that_look_alike_are_found(one, other):
    assert distance(one, other, "deuteranopia") < APART


def test_the_measure_is_oklabs():
    assert distance("#000000", "#ffffff", "full") == pytest.approx(1, abs=1e-4)
    # Of greys, no sight changes anything.
    for sight in SIGHTS:
        assert seen("#777777", sight) == pytest.approx(seen("#777777", "full"), abs=1e-4)


def test_no_two_cells_share_colour_marker_and_dash():
    count = len(COLOURS) * len(DASHES)
    looks = {(marks.marker(number), *marks.line(number).values()) for number in range(count)}
    assert len(looks) == count
    assert len({marks.marker(number) for number in range(len(COLOURS))}) == len(COLOURS)
