"""From a matplotlib figure to SVG: as a file, or inline so that the page's colours rule it."""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Sequence
from html import escape

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

# Okabe and Ito's palette without its yellow, which vanishes on white; ink stands for its black.
INK, MUTED, RULE = "#1b1c1d", "#5e6063", "#d2d3d4"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")

_PAGE_COLOURS = {
    INK: "currentColor",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    COLOURS[0]: "var(--blue)",
}
_FONT = "system-ui, 'Segoe UI', Helvetica, Arial, sans-serif"
_RENDERING = threading.Lock()


def new_figure(width: float = 5.6, height: float = 3.7) -> Figure:
    """An empty figure, sizes in inches, with room made for its labels."""
    return Figure(figsize=(width, height), layout="constrained")


def style(axes: Axes, *, x: str, y: str) -> None:
    """Quiet axes with labels."""
    axes.set_xlabel(x, color=INK, fontsize=10, parse_math=False)
    axes.set_ylabel(y, color=INK, fontsize=10, parse_math=False)
    axes.tick_params(colors=MUTED, labelsize=9, labelcolor=INK)
    axes.grid(True, color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_facecolor("none")
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(MUTED)


def legend(figure: Figure, handles: Sequence[Artist], labels: Sequence[str], columns: int) -> None:
    """A legend below the axes, outside of every curve."""
    # matplotlib leaves out labels that begin with an underscore.
    shown = [f"\N{NO-BREAK SPACE}{label}" if label.startswith("_") else label for label in labels]
    box = figure.legend(
        handles,
        shown,
        loc="outside lower center",
        ncols=max(1, min(columns, len(labels))),
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        handlelength=2.4,
        columnspacing=1.2,
    )
    for text in box.get_texts():
        text.set_parse_math(False)


def legend_columns(labels: Sequence[str], characters: int = 62) -> int:
    """How many columns a legend of these labels has room for."""
    longest = max((len(label) for label in labels), default=1) + 7
    return max(1, min(4, characters // longest))


def to_svg(figure: Figure, salt: str) -> str:
    """The figure as SVG text; equal figures give equal text.

    Args:
        figure: what to draw.
        salt: part of the ids in the SVG, which must differ between the figures of a page.
    """
    # matplotlib's SVG settings and Python's warning filters are global: one figure at a time.
    with (
        _RENDERING,
        warnings.catch_warnings(),
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}),
    ):
        # Names may have letters that the measuring font lacks; the reader's browser has them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        # A layout measures before it moves; the second measures what the first has pushed out.
        figure.draw_without_rendering()
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", buffer.getvalue(), flags=re.DOTALL)
    return re.sub(r"(font: [^;\"]*?px) [^;\"]*", rf"\1 {_FONT}", text)


def as_file(svg: str) -> str:
    """SVG that stands alone, on white."""
    return re.sub(
        r"(<svg [^>]*>)", r'\1<rect width="100%" height="100%" fill="#fff"/>', svg, count=1
    )


def inline(svg: str, title: str) -> str:
    """SVG for an HTML page: no prolog, no address, the page's colours, a title to be read aloud."""
    text = svg[svg.index("<svg ") :]
    opening, rest = text.split(">", 1)
    opening = re.sub(r' (xmlns(:\w+)?|version|width|height)="[^"]*"', "", opening)
    for colour, name in _PAGE_COLOURS.items():
        rest = rest.replace(colour, name)
    # Ids of groups repeat from figure to figure and nothing refers to them.
    rest = re.sub(r'<g id="[^"]*"', "<g", rest)
    return f'{opening} role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>{rest}'


def place_labels(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    labels: Sequence[str],
    avoid: Sequence[tuple[float, float]] = (),
    size: float = 9,
) -> None:
    """Write a label beside each point where it covers no other label, point, or the axes' edge.

    Args:
        axes: where; its limits must be final. Its figure's layout is frozen.
        points: in data coordinates.
        labels: one a point.
        avoid: further places that labels should not cover, in data coordinates.
        size: of the letters, in points.
    """
    if not points:
        return
    figure = axes.figure.get_figure(root=True)
    assert figure is not None
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    with _RENDERING, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.draw_without_rendering()
        sizes = [
            renderer.get_text_width_height_descent(label, FontProperties(size=size), False)[:2]
            for label in labels
        ]
    figure.set_layout_engine("none")
    frame = axes.get_window_extent(renderer)
    centres = axes.transData.transform(points)
    taken = _squares(centres, 6)
    if avoid:
        taken = np.concatenate([taken, _squares(axes.transData.transform(avoid), 2)])
    per_point = figure.dpi / 72
    for point, (x, y), label, (width, height) in zip(points, centres, labels, sizes, strict=True):
        best = min(
            _candidates(x, y, width, height),
            key=lambda found: _cost(found[0], taken, frame) + 0.5 * found[1],
        )
        box, distance = best
        taken = np.concatenate([taken, _extents(box)[None]])
        far = distance > 16
        axes.annotate(
            label,
            point,
            xytext=((box.x0 - x) / per_point, (box.y0 - y) / per_point),
            textcoords="offset points",
            fontsize=size,
            color=INK,
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.6} if far else None,
        )


def _candidates(x: float, y: float, width: float, height: float) -> list[tuple[Bbox, float]]:
    """(box, distance from the point) in pixels, the best places first."""
    found = []
    for distance in (9.0, 15.0, 24.0, 36.0, 50.0):
        for right, up in ((1, 0), (1, 1), (1, -1), (0, 1), (0, -1), (-1, 1), (-1, -1), (-1, 0)):
            left = x + right * distance - width * (1 - right) / 2
            bottom = y + up * distance - height * (1 - up) / 2
            found.append((Bbox.from_bounds(left, bottom, width, height), distance))
    return found


def _squares(centres: NDArray[np.float64], half: float) -> NDArray[np.float64]:
    """Squares around centres as [n, 4] x0 y0 x1 y1."""
    return np.concatenate([np.asarray(centres) - half, np.asarray(centres) + half], axis=1)


def _cost(box: Bbox, taken: NDArray[np.float64], frame: Bbox) -> float:
    """Area that a label would share with others, and that it would have outside of the axes."""
    shared = _shared_area(_extents(box.padded(2)), taken).sum()
    inside = _shared_area(_extents(box), _extents(frame)[None]).sum()
    return float(shared + 4 * (box.width * box.height - inside))


def _extents(box: Bbox) -> NDArray[np.float64]:
    return np.asarray(box.extents, dtype=np.float64)


def _shared_area(box: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    area: NDArray[np.float64] = np.prod((high - low).clip(min=0), axis=1)
    return area
