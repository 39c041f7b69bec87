"""How a metric is called and written: one place, so that table, plot and sentence agree."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence

TIMES = "\N{MULTIPLICATION SIGN}"

MISSING = "—"
"""Stands for what was not measured; never a number in its place."""

NO_BOX = "none"
"""Stands for pycocotools' -1: the validation images have no box of that kind."""

_LABELS = {
    "coco/AR": "AR",
    "cost/gflops": "GFLOPs",
    "cost/gmacs": "GMACs",
    "cost/encoder_gflops": "encoder GFLOPs",
    "cost/gflops_800x1333": f"GFLOPs at 800{TIMES}1333",
    "cost/latency_ms": "latency, median (ms)",
    "cost/latency_p95_ms": "latency, p95 (ms)",
    "cost/params": "parameters",
    "cost/peak_memory_mib": "peak memory (MiB)",
    "tokens/kept": "tokens kept",
    "tokens/kept_share": "share of tokens kept",
    "tokens/foreground_recall": "foreground recall",
    "train/images_per_second": "training images/s",
    "loss/total": "loss",
}
_AXIS = re.compile(r"(?<![^,])[^,=]+=")
"""What stands before a value in the name of a point of the axes."""
_SHARES = (
    "tokens/kept_share",
    "tokens/foreground_share",
    "tokens/foreground_recall",
    "train/data_share",
)


def label(metric: str) -> str:
    """Name of a metric for readers."""
    if metric in _LABELS:
        return _LABELS[metric]
    section, _, name = metric.partition("/")
    return name if section == "coco" and name else metric


def is_no_box(metric: str, value: float) -> bool:
    """Whether pycocotools says that there is no such box, instead of giving a number."""
    return metric.startswith("coco/") and value < 0


def number(metric: str, value: float | None) -> str:
    """A value of a metric as text; AP as pycocotools prints it, in [0, 1]."""
    if value is None or not math.isfinite(value):
        return MISSING
    if metric.startswith("coco/"):
        text = f"{value:.3f}"
    elif metric.startswith(_SHARES):
        text = percent(value)
    elif metric == "cost/params":
        text = _magnitude(value)
    else:
        text = significant(value)
    return _minus(text)


def signed(metric: str, value: float | None) -> str:
    """A difference of two values of a metric, with its sign."""
    text = number(metric, value)
    return text if value is None or text == MISSING or value < 0 else f"+{text}"


def interval(metric: str, low: float | None, high: float | None, *, sign: bool = False) -> str:
    """An interval as `[low, high]`, empty when there is none."""
    if low is None or high is None:
        return ""
    write = signed if sign else number
    return f"[{write(metric, low)}, {write(metric, high)}]"


def percent(share: float) -> str:
    """A share as per cent, with a decimal below 10."""
    value = 100 * share
    return _minus(f"{value:.0f} %" if abs(value) >= 9.95 or value == 0 else f"{value:.1f} %")


def probability(p_value: float | None) -> str:
    """A p-value with three decimals."""
    if p_value is None:
        return MISSING
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def effect(size: float | None) -> str:
    """An effect size with its sign."""
    return MISSING if size is None else _minus(f"{size:+.1f}")


def ratio(value: float | None, reference: float | None) -> str:
    """A value as a multiple of a reference."""
    if value is None or not reference or reference < 0:
        return MISSING
    return f"{value / reference:.2f}{TIMES}"


def ratio_of_tokens(value: float) -> str:
    """A keep ratio, as it stands in a spec."""
    return f"{value:.4g}"


def significant(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, never with an exponent below a million."""
    if value == 0:
        return "0"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return _minus(f"{value:,.{min(max(0, places), 8)}f}".replace(",", "\N{NARROW NO-BREAK SPACE}"))


def short(value: object) -> str:
    """A value from a spec as text: a variant as its kind, then its other fields."""
    if isinstance(value, dict) and "kind" in value:
        others = (f"{name}={short(inner)}" for name, inner in value.items() if name != "kind")
        return " ".join((str(value["kind"]), *others))
    return value if isinstance(value, str) else json.dumps(value, default=str)


def field(path: str) -> str:
    """Short name of a field of a spec; of one that many parts have, with its part."""
    parts = path.split(".")
    return ".".join(parts[-2:] if parts[-1] in ("enabled", "kind") else parts[-1:])


def printable(name: str, width: int | None = None) -> str:
    """A name from a user on one line without control characters, cut to `width` characters."""
    clean = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    if width is not None and len(clean) > width:
        half = (width - 1) // 2
        clean = f"{clean[: width - 1 - half]}…{clean[-half:]}"
    return clean or "unnamed"


def distinct(names: Sequence[str], width: int) -> list[str]:
    """Names cut to `width` characters so that they can still be told apart, if that is possible.

    Points of several axes (`a=1,b=2,c=3`) are alike at both ends: of these the values remain.
    """
    cut = [printable(name, width) for name in names]
    values = [printable(_AXIS.sub("", name), width) for name in names]
    return values if len(set(values)) > len(set(cut)) else cut


def _magnitude(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{significant(value / size)} {letter}"
    return f"{value:.0f}"


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")
