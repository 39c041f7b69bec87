"""The comparison page of an experiment in MLflow's UI, provisioned as a shared view.

MLflow keeps shared views as experiment tags `mlflow.sharedViewState.<key>`: an undocumented format,
checked on the 3.17 line. Where it is not understood, the page still opens with MLflow's own charts.
"""

from __future__ import annotations

import urllib.parse
from typing import Any

from focus_lab.specs.plan import KEEP_RATIO

VIEW_KEY = "focus-lab"
TRIALS = "tags.`focus_lab.trial_id` LIKE '%'"
"""MLflow's filter for trials, without the summary run."""
CELL_TAG = "focus_lab.cell"
"""Tag of a trial's run: the name of its cell."""


def view_path(tracking_id: str) -> str:
    """Path in MLflow's UI that opens the experiment on its charts.

    `workflowType` is needed: a new browser profile otherwise opens the page for language models.
    """
    return (
        f"#/experiments/{tracking_id}/runs?compareRunsMode=CHART"
        f"&workflowType=machine_learning&viewStateShareKey={VIEW_KEY}"
    )


def plain_path(tracking_id: str) -> str:
    """Path that opens the experiment's trials without the shared view: MLflow's own charts."""
    trials = urllib.parse.quote(TRIALS)
    return (
        f"#/experiments/{tracking_id}/runs?compareRunsMode=CHART"
        f"&workflowType=machine_learning&searchFilter={trials}"
    )


def shared_view(spec: dict[str, Any]) -> dict[str, Any]:
    """The view's state: trials only, AP against cost, then the curves; seeds grouped to means.

    Args:
        spec: the experiment's spec as JSON data.
    """
    objectives = list(spec.get("objectives", {})) or ["coco/AP", "cost/gflops"]
    quality = objectives[0]
    cost = objectives[1] if len(objectives) > 1 else "cost/gflops"
    charts = [
        _scatter("quality-cost", "tradeoff", f"{quality} against {cost}", cost, quality),
        _scatter(
            "quality-ratio", "tradeoff", f"{quality} against keep ratio",
            "tokens/keep_ratio", quality,
        ),
        _scatter(
            "recall-ratio", "tradeoff", "foreground recall against keep ratio",
            "tokens/keep_ratio", "tokens/foreground_recall",
        ),
        _bar("bar-quality", "tradeoff", quality),
        _bar("bar-cost", "tradeoff", cost),
        _line("line-quality", "curves", "coco/AP"),
        _line("line-quality-50", "curves", "coco/AP50"),
        _line("line-loss", "curves", "loss/total"),
    ]  # fmt: skip
    sections = [
        {
            "uuid": uuid, "name": name, "display": True, "isReordered": True, "isGenerated": False,
            # Two a row stay readable beside MLflow's panels.
            "columns": 2,
        }
        for uuid, name in (("tradeoff", "AP and compute"), ("curves", "Training"))
    ]  # fmt: skip
    return {
        "searchFilter": TRIALS,
        "orderByKey": "params.`keep_ratio`",
        "orderByAsc": True,
        "runsHidden": [],
        "runsHiddenMode": "SHOWALL",
        "runsPinned": [],
        "compareRunSections": sections,
        "compareRunCharts": charts,
        "isAccordionReordered": True,
        "groupBy": _grouping(spec.get("sweep", {})),
        "selectedColumns": [
            "params.`keep_ratio`",
            "params.`seed`",
            f"metrics.`{quality}`",
            f"metrics.`{cost}`",
        ],
    }


def _grouping(sweep: dict[str, Any]) -> dict[str, Any] | None:
    """What becomes one point: a keep ratio's seeds, or a cell's where cells differ in more."""
    if len(sweep.get("seeds", ())) < 2:
        return None
    ratios_alone = list(sweep.get("axes", ())) == [KEEP_RATIO] and not sweep.get("cells")
    key = ("param", "keep_ratio") if ratios_alone else ("tag", CELL_TAG)
    return {
        "aggregateFunction": "average",
        "groupByKeys": [{"mode": key[0], "groupByData": key[1]}],
    }


def _card(uuid: str, section: str, kind: str, title: str) -> dict[str, Any]:
    return {
        "uuid": uuid,
        "type": kind,
        "metricSectionId": section,
        "displayName": title,
        "deleted": False,
        "isGenerated": False,
        "runsCountToCompare": 100,
    }


def _scatter(uuid: str, section: str, title: str, x: str, y: str) -> dict[str, Any]:
    axes = {"xaxis": {"key": x, "type": "METRIC"}, "yaxis": {"key": y, "type": "METRIC"}}
    return _card(uuid, section, "SCATTER", title) | axes


def _bar(uuid: str, section: str, metric: str) -> dict[str, Any]:
    return _card(uuid, section, "BAR", metric) | {"metricKey": metric}


def _line(uuid: str, section: str, metric: str) -> dict[str, Any]:
    return _card(uuid, section, "LINE", metric) | {
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "lineSmoothness": 0,
    }
