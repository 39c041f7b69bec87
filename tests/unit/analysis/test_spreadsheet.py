import csv
import io
from dataclasses import replace

import pytest

from focus_lab.analysis.spreadsheet import cells_csv, trials_csv
from focus_lab.analysis.summary import compare

APS = {"a, b": {0: 0.20, 1: 0.22}, "base": {0: 0.34, 1: 0.27}}


def _read(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_a_row_a_cell_and_metric_with_difference_and_certainty(make_record):
    rows = {(r["cell"], r["metric"]): r for r in _read(cells_csv(compare(make_record(APS))))}
    row = rows["a, b", "coco/AP"]
    assert float(row["mean"]) == pytest.approx(0.21)
    assert float(row["difference"]) == pytest.approx(-0.095)
    assert (row["seeds"], row["baseline"], row["decided"]) == ("2", "no", "no")
    assert float(row["p"]) == float(row["p_holm"])
    assert row["hedges_g"] == row["difference_bootstrap95_low"] == ""  # two seeds
    base = rows["base", "coco/AP"]
    assert (base["baseline"], base["difference"], base["decided"]) == ("yes", "", "")
    assert ("a, b", "coco/APL") not in rows  # no such box


def test_a_row_a_trial_and_metric_at_its_last_epoch(make_record):
    record = make_record(APS)
    lost = replace(record.trials[1], state="FAILED", curves={})
    rows = _read(trials_csv(replace(record, trials=(record.trials[0], lost))))
    found = [r for r in rows if r["trial"] == "a, b-0" and r["metric"] == "coco/AP"]
    assert [(r["epoch"], r["value"]) for r in found] == [("2", "0.2")]
    assert [(r["state"], r["metric"]) for r in rows if r["trial"] == "a, b-1"] == [("FAILED", "")]


def test_names_are_no_formulas_and_may_have_any_letter(make_record):
    aps = {"=1+1": {0: 0.2}, 'say "x"\n日本': {0: 0.3}}
    names = {row["cell"] for row in _read(cells_csv(compare(make_record(aps))))}
    assert names == {"'=1+1", 'say "x"\n日本'}
