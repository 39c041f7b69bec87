"""The names of the metrics that a trial can have: what an experiment may be ranked by."""

from __future__ import annotations

import difflib
import re

_PARTS = ("backbone", "neck", "scorer", "encoder", "decoder", "heads")

METRICS = (
    *(
        f"coco/{name}"
        for name in (
            "AP", "AP50", "AP75", "APS", "APM", "APL",
            "AR", "AR1", "AR10", "AR100", "ARS", "ARM", "ARL",
        )
    ),
    "cost/gflops",
    "cost/gmacs",
    "cost/gflops_800x1333",
    "cost/gmacs_800x1333",
    *(f"cost/{part}_gflops" for part in _PARTS),
    "cost/params",
    "cost/latency_ms",
    "cost/latency_p95_ms",
    "cost/peak_memory_mib",
    "tokens/keep_ratio",
    "tokens/total",
    "tokens/kept",
    "tokens/kept_share",
    "tokens/foreground_share",
    "tokens/foreground_recall",
    "tokens/foreground_recall_last_layer",
    "train/lr",
    "train/grad_norm",
    "train/images_per_second",
    "train/data_share",
    "train/seconds",
    "train/steps",
    "train/accumulation",
    "loss/total",
)  # fmt: skip
"""Metrics that every trial has."""

_FAMILIES = re.compile(
    r"coco/AP_class/.+|tokens/kept_(layer|level)_\d+|loss/[a-z0-9_]+|system/node\d+/[a-z_]+"
    r"|tokens/foreground_recall_(level_\d+|small|medium|large)"
)
"""Metrics that depend on the classes, the layers, the losses, the machines of a trial."""


def reading(ratio: float) -> str:
    """What stands before a metric that was read at another keep ratio than the trained one.

    `at_0.1/coco/AP` is the AP of an elastic training's weights at keep ratio 0.1.
    """
    return f"at_{ratio}/"


def is_metric(name: str) -> bool:
    """Whether a trial can have a metric of this name."""
    name = re.sub(r"^at_[0-9.e-]+/(?=(coco|cost|tokens)/)", "", name)
    return name in METRICS or _FAMILIES.fullmatch(name) is not None


def suggestion(name: str) -> str:
    """What may have been meant by a name that is no metric: the end of a sentence."""
    by_lower = {metric.lower(): metric for metric in METRICS}
    # `ap50` and `gflops` are meant as well as `coco/AP5O`.
    by_lower = {key.partition("/")[2]: metric for key, metric in by_lower.items()} | by_lower
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f"did you mean {by_lower[close[0]]}?" if close else f"known are {', '.join(METRICS)}"
