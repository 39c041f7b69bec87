"""The report of an experiment: a page, the same in Markdown, for papers and for machines."""

from __future__ import annotations

import json
import math
import os
import re
import threading
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from focus_lab.analysis import drawing, overlays, pictures, tables
from focus_lab.analysis import quantities as q
from focus_lab.analysis.ablation import ablation_table, paper_table
from focus_lab.analysis.breakdowns import Breakdown, read_breakdowns
from focus_lab.analysis.confusion import ConfusionTable, confusion_table
from focus_lab.analysis.elastic import compare_elastic, elastic_as_json, elastic_table, saving
from focus_lab.analysis.excerpt import excerpt
from focus_lab.analysis.figures import Plot, draw_plots
from focus_lab.analysis.findings import Findings, exploratory, find
from focus_lab.analysis.latex import as_float, as_latex
from focus_lab.analysis.records import ExperimentRecord
from focus_lab.analysis.spreadsheet import CELLS, TRIALS, cells_csv, trials_csv
from focus_lab.analysis.summary import Comparison, compare
from focus_lab.analysis.tables import Table

PAGE = "report.html"
MARKDOWN = "report.md"
MACHINE = "report.json"
TERMINAL = "report.txt"
PLOTS = "plots"
TABLES = "tables"


def write_report(record: ExperimentRecord, folder: Path) -> Path:
    """Write `report.html`, `.md`, `.json` and `.txt`, `plots/*.svg` and `tables/*`.

    Each file is replaced in one step, so a reader never sees half of it. Works on whatever the
    record has: what is missing is said to be missing.

    Args:
        record: the experiment as it stands.
        folder: made if missing.

    Returns:
        The page.

    Raises:
        OSError: the folder cannot be written.
    """
    comparison = compare(record)
    found = find(comparison)
    breakdowns = read_breakdowns(record)
    drawn = draw_plots(comparison, breakdowns)
    context = _context(comparison, found, drawn) | {
        "pictures": pictures.draw_pictures(comparison),
        "confusions": _confusions(comparison, breakdowns),
        "confusions_excerpt": excerpt(comparison, breakdowns).sentence,
    }
    (folder / PLOTS).mkdir(parents=True, exist_ok=True)
    (folder / TABLES).mkdir(exist_ok=True)
    kept = {f"{plot.name}.svg" for plot in drawn}
    for plot in drawn:
        _write(folder / PLOTS / f"{plot.name}.svg", drawing.as_file(plot.svg))
    for stale in (folder / PLOTS).glob("*.svg"):
        if stale.name not in kept:
            stale.unlink()
    for name in ("ablation", "accuracy", "cost"):
        _write(folder / TABLES / f"{name}.tex", as_latex(context[name], context["exploratory"]))
    paper = as_float(paper_table(comparison), record.name, context["exploratory"])
    _write(folder / TABLES / "paper.tex", paper)
    _write(folder / TABLES / CELLS, cells_csv(comparison))
    _write(folder / TABLES / TRIALS, trials_csv(record))
    environment = _environment()
    _write(folder / MACHINE, _machine_text(record, found))
    _write(folder / TERMINAL, tables.as_text(record) + "\n")
    _write(folder / MARKDOWN, environment.get_template("report.md.jinja").render(context))
    _write(folder / PAGE, environment.get_template("report.html.jinja").render(context))
    return folder / PAGE


def _context(comparison: Comparison, found: Findings, drawn: list[Plot]) -> dict[str, Any]:
    record = comparison.record
    return {
        "record": record,
        "title": q.printable(record.name),
        "description": q.printable(record.description) if record.description else "",
        "findings": found,
        "exploratory": exploratory(comparison),
        "ablation": ablation_table(comparison),
        "elastic": [(elastic_table(one), saving(one)) for one in compare_elastic(comparison)],
        "accuracy": tables.accuracy_table(comparison),
        "cost": tables.cost_table(comparison),
        "trials": tables.trials_table(record),
        "plots": {plot.name: plot for plot in drawn},
        "share": None if record.foreground_share is None else q.percent(record.foreground_share),
        "objectives": _objectives(comparison),
        "seeds": max((cell.n for cell in comparison.cells), default=0),
        "has_baseline": comparison.baseline is not None,
        "baseline": q.printable(comparison.baseline.name) if comparison.baseline else "",
        "facts": {str(name): _fact(value) for name, value in record.facts.items()},
        "spec": json.dumps(_finite(record.spec), indent=2, ensure_ascii=False, default=str),
        "threshold": overlays.SCORE_THRESHOLD,
    }


def _confusions(
    comparison: Comparison, breakdowns: dict[str, list[Breakdown]]
) -> list[ConfusionTable]:
    """The baseline's first."""
    shown = excerpt(comparison, breakdowns).shown
    ordered = sorted(shown, key=lambda cell: cell is not comparison.baseline)
    return [confusion_table(cell.name, breakdowns[cell.name]) for cell in ordered]


def _objectives(comparison: Comparison) -> str:
    words = {"max": "more is better", "min": "less is better"}
    return ", ".join(
        f"{metric} ({words.get(direction, direction)})"
        for metric, direction in comparison.objectives.items()
    )


def _machine_text(record: ExperimentRecord, found: Findings) -> str:
    content = {
        "name": record.name,
        "description": record.description,
        "objectives": record.objectives,
        "foreground_share": record.foreground_share,
        "exploratory": list(record.exploratory),
        "findings": {"answer": found.answer, "certainty": found.certainty},
        "cells": tables.cells_as_json(record),
        "elastic": [elastic_as_json(one) for one in compare_elastic(compare(record))],
        "trials": [
            {
                "id": trial.id,
                "cell": trial.cell,
                "seed": trial.seed,
                "state": trial.state,
                "message": trial.message,
                "stopped_early": record.stopped_before(trial) is not None,
                "metrics": {metric: trial.final(metric) for metric in sorted(trial.curves)},
            }
            for trial in record.trials
        ],
        "facts": record.facts,
        "spec": record.spec,
    }
    return json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False, default=str)


def _finite(value: Any) -> Any:
    """JSON data without the numbers that JSON does not know."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _fact(value: Any) -> str:
    return q.MISSING if value is None or value == "" else q.printable(str(value))


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: bool(name and name.endswith(".html.jinja")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"md": _markdown, "inline": _inline, "fenced": _fenced}
    environment.globals |= {"md_table": _markdown_table}
    return environment


def _inline(plot: Plot) -> Markup:
    # Text in the SVG was escaped by matplotlib, the title by `inline`.
    return Markup(drawing.inline(plot.svg, plot.title))


def _markdown(text: str) -> str:
    """Text as Markdown shows it letter by letter: no markup and no HTML from names."""
    return escape(re.sub(r"([\\`*\[\]|])", r"\\\1", text), quote=False)


def _markdown_table(table: Table) -> str:
    rules = ["---" if place in table.text_columns else "--:" for place in range(len(table.columns))]
    rows = [table.columns, *table.rows]
    lines = ["| " + " | ".join(_markdown(text) for text in row) + " |" for row in rows]
    return "\n".join([lines[0], "| " + " | ".join(rules) + " |", *lines[1:]])


def _fenced(code: str) -> str:
    """JSON between fences; a backtick in a string cannot end them."""
    return "```json\n" + code.replace("`", "\\u0060") + "\n```"


def _write(path: Path, text: str) -> None:
    """Replace a file in one step."""
    part = path.with_name(f".{path.name}-{os.getpid()}-{threading.get_ident()}")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
