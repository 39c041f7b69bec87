import json
import re

import pytest

from focus_lab.analysis.summary import compare
from focus_lab.analysis.tables import (
    accuracy_table,
    as_text,
    cells_as_json,
    cost_table,
    summary_metrics,
)

TWO_SEEDS = {"keep=0.1": {0: 0.20, 1: 0.22}, "base": {0: 0.34, 1: 0.27}}


def _row(table, name):
    row = next(row for row in table.rows if row[0] == name)
    return list(zip(table.columns, row, strict=True))


def test_json_cells_have_mean_interval_front_and_difference(make_record):
    first, base = cells_as_json(make_record(TWO_SEEDS))
    assert (first["name"], first["n"], first["pareto"]) == ("keep=0.1", 2, True)
    assert first["mean"]["coco/AP"] == pytest.approx(0.21)
    low, high = first["ci95"]["coco/AP"]
    assert low < 0.21 < high
    assert first["difference"]["coco/AP"]["mean"] == pytest.approx(-0.095)
    difference = first["difference"]["coco/AP"]
    assert (difference["shown"], difference["decided"]) == (False, False)
    assert difference["p_holm"] == difference["p"]  # one comparison
    assert first["pareto_chance"] == 1.0  # nothing is cheaper
    assert 0.8 < base["pareto_chance"] < 1
    assert base["difference"] is None


def test_json_cells_are_null_where_there_is_nothing(make_record):
    (cell,) = cells_as_json(make_record({"a": {0: 0.2}}))
    assert cell["ci95"]["coco/AP"] is None
    assert cell["mean"]["coco/APL"] is None
    json.dumps(cell, allow_nan=False)


def test_summary_names_are_what_mlflow_allows_and_all_differ(make_record):
    names = [
        "keep_ratio=0.1,scoring=dense",
        "\N{GREEK SMALL LETTER ALPHA}",
        "β",
        "..",
        "A b",
        "a b",
        "x/../y",
    ]
    metrics = summary_metrics(make_record({name: {0: 0.2, 1: 0.3} for name in names}))
    assert all(re.fullmatch(r"[A-Za-z0-9_\-./]+", name) for name in metrics)
    assert not any(part in ("", ".", "..") for name in metrics for part in name.split("/"))
    assert len({name.lower() for name in metrics if name.endswith("/AP_mean")}) == len(names)
    assert metrics["summary/keep_ratio_0.1_scoring_dense/coco/AP_mean"] == pytest.approx(0.25)


def test_summary_metrics_leave_out_what_is_missing(make_record):
    metrics = summary_metrics(make_record({"a": {0: 0.2}}, latency=False))
    assert not any("APL" in name or "latency" in name or "ci95" in name for name in metrics)


def test_accuracy_shows_no_box_as_none_and_the_difference_with_its_verdict(make_record):
    table = accuracy_table(compare(make_record(TWO_SEEDS)))
    row = _row(table, "keep=0.1")
    assert ("APL", "none") in row
    assert ("difference to baseline", "\N{MINUS SIGN}0.095") in row
    assert ("decided?", "not decided") in row
    assert ("mean over layers", "0.06") in row
    assert ("difference to baseline", "baseline") in _row(table, "base")


def test_costs_stand_relative_to_the_baseline_and_missing_ones_as_dash(make_record):
    row = _row(cost_table(compare(make_record(TWO_SEEDS, latency=False))), "keep=0.1")
    assert ("GFLOPs", "10.0") in row
    assert ("\N{MULTIPLICATION SIGN} baseline", "0.50\N{MULTIPLICATION SIGN}") in row
    assert ("latency ms, median", "—") in row


def test_text_fits_the_terminal_and_says_that_one_seed_decides_nothing(make_record):
    cells = {f"a-very-long-name-of-a-cell-that-goes-on-{i}": {0: 0.2} for i in range(4)}
    text = as_text(make_record(cells))
    assert max(map(len, text.splitlines())) <= 110
    assert "One seed decides nothing" in text
    several = as_text(make_record({name: {0: 0.2, 1: 0.41, 2: 0.3} for name in cells}))
    assert max(map(len, several.splitlines())) <= 110
    assert "One seed" not in several


def test_text_of_nothing_is_the_heading(empty_record):
    assert as_text(empty_record).startswith("cell")
