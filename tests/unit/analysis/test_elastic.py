import json
from dataclasses import replace

import pytest

from focus_lab.analysis.elastic import compare_elastic, elastic_as_json, elastic_table, saving
from focus_lab.analysis.findings import find
from focus_lab.analysis.quantities import TIMES
from focus_lab.analysis.records import CellRecord, ExperimentRecord, TrialRecord
from focus_lab.analysis.report import write_report
from focus_lab.analysis.summary import compare

# Differences .01 .02 .03 and .00 -.01 .01; of the means over both ratios .005 .005 .02.
APS = {
    "one@0.1": (0.40, 0.42, 0.44),
    "one@1.0": (0.50, 0.50, 0.53),
    "alone-0.1": (0.39, 0.40, 0.41),
    "alone-1.0": (0.50, 0.51, 0.52),
}
# Of an epoch; the elastic training takes 100 s, those alone 200, 300 and 400 s together.
SECONDS = {"one": (50.0, 50.0, 50.0), "alone": (50.0, 75.0, 100.0)}


def _record(seeds=(0, 1, 2), seconds=SECONDS, epochs=2):
    cells = tuple(
        CellRecord(
            name,
            {},
            name == "alone-1.0",
            ratio,
            ratio,
            read_from="one" if name.startswith("one") else None,
            alone=f"alone-{ratio}" if name.startswith("one") else None,
        )
        for name in APS
        for ratio in [float(name[-3:])]
    )
    trials = tuple(
        TrialRecord(
            f"{name}-{seed}",
            name,
            seed,
            "SUCCEEDED",
            curves={
                "coco/AP": [(epoch, APS[name][seed]) for epoch in range(1, epochs + 1)],
                "train/seconds": [(epoch, seconds[name[:-4]][seed]) for epoch in (1, 2)],
            },
        )
        for name in APS
        for seed in seeds
    )
    return ExperimentRecord("elastic", "", {"coco/AP": "max"}, cells, trials, {})


def _one(record):
    (found,) = compare_elastic(compare(record))
    return found


def test_each_gap_is_paired_by_seed_and_corrected_for_the_other_ratios():
    small, large = _one(_record()).gaps
    assert small.difference.mean == pytest.approx(0.02)
    # The 97.5 % point of Student's t with two degrees of freedom is 4.302653.
    half = 4.302653 * 0.01 / 3**0.5
    assert (small.difference.low, small.difference.high) == pytest.approx(
        (0.02 - half, 0.02 + half)
    )
    # With two degrees of freedom p = 1 - t / sqrt(t^2 + 2); t^2 is 12.
    assert small.difference.p_value == pytest.approx(1 - (12 / 14) ** 0.5)
    assert small.p_holm == pytest.approx(2 * (1 - (12 / 14) ** 0.5))
    assert (large.difference.mean, large.p_holm) == (pytest.approx(0), pytest.approx(1))
    assert not small.decided
    assert not large.decided


def test_the_mean_gap_is_taken_seed_by_seed():
    mean = _one(_record()).mean
    half = 4.302653 * 0.0086603 / 3**0.5
    assert (mean.n, mean.mean) == (3, pytest.approx(0.01))
    assert (mean.low, mean.high) == pytest.approx((0.01 - half, 0.01 + half), abs=1e-6)


def test_seconds_saved_are_a_multiple_with_an_interval_of_logarithms():
    found = _one(_record())
    assert (found.seconds, found.seconds_alone) == (100.0, 300.0)
    assert found.saved.mean == pytest.approx((2 * 3 * 4) ** (1 / 3))
    assert (found.saved.low, found.saved.high) == pytest.approx((1.21444, 6.85118), rel=1e-4)
    assert saving(found).startswith(
        f"Compute saved: 2.88{TIMES} [1.21, 6.85]: the 2 trainings alone took 300 s, the elastic "
        "one 100 s in the mean over 3 seeds."
    )


def test_one_seed_has_numbers_but_no_interval_and_decides_nothing():
    found = _one(_record(seeds=(1,)))
    assert (found.saved.mean, found.saved.low) == (pytest.approx(3), None)
    assert f"3.00{TIMES} (one seed)" in saving(found)
    assert [gap.p_holm for gap in found.gaps] == [None, None]
    assert not any(gap.decided for gap in found.gaps)


def test_seconds_that_were_not_all_recorded_are_not_compared():
    """A sum over some of the epochs would be too small."""
    found = _one(_record(epochs=3))
    assert found.saved is None
    assert "not known" in saving(found)
    assert found.mean is not None


def test_a_seed_that_failed_anywhere_is_no_part_of_mean_and_saving():
    record = _record()
    trials = tuple(
        replace(trial, state="FAILED") if trial.id == "alone-0.1-2" else trial
        for trial in record.trials
    )
    found = _one(replace(record, trials=trials))
    assert [gap.difference.n for gap in found.gaps] == [2, 3]
    assert (found.mean.n, found.saved.n) == (2, 2)
    assert found.saved.mean == pytest.approx(6**0.5)


def test_without_cells_trained_alone_there_is_nothing_to_compare(make_record):
    assert compare_elastic(compare(make_record({"a": {0: 0.2}}))) == ()
    record = _record()
    cells = tuple(replace(cell, alone=None) for cell in record.cells)
    assert compare_elastic(compare(replace(record, cells=cells))) == ()


def test_the_table_has_a_row_a_ratio_and_their_mean():
    table = elastic_table(_one(_record()))
    minus = "\N{MINUS SIGN}"
    assert table.rows == (
        ("0.1", "0.420", "0.400", "3", "+0.020", f"[{minus}0.005, +0.045]", "0.148",
         "not decided", "alone-0.1"),
        ("1", "0.510", "0.510", "3", "+0.000", f"[{minus}0.025, +0.025]", "1.000",
         "not decided", "alone-1.0"),
        ("mean of 2", "", "", "3", "+0.010", f"[{minus}0.012, +0.032]", "", "", ""),
    )  # fmt: skip


def test_the_report_has_it_in_every_form(tmp_path):
    page = write_report(_record(), tmp_path).read_text()
    markdown = (tmp_path / "report.md").read_text()
    for text in (page, markdown):
        assert "One training for every keep ratio (one)" in text
        assert f"Compute saved: 2.88{TIMES}" in text
    (found,) = json.loads((tmp_path / "report.json").read_text())["elastic"]
    assert found == json.loads(json.dumps(elastic_as_json(_one(_record()))))
    assert found["gaps"][0]["difference"]["p_holm"] == pytest.approx(0.14836, abs=1e-5)
    assert found["saved"]["ratio"] == pytest.approx(2.8845, abs=1e-4)
    assert found["mean_difference"]["n"] == 3


def test_the_answer_names_gap_and_saving():
    answer = " ".join(find(compare(_record())).answer)
    assert "against cells trained at 0.1 and 1 alone AP differs by +0.010" in answer
    assert f"decided at no ratio; those took 2.9{TIMES} the seconds of the elastic one." in answer


def test_a_report_without_elastic_cells_does_not_speak_of_them(make_record, tmp_path):
    page = write_report(make_record({"a": {0: 0.2}, "base": {0: 0.3}}), tmp_path).read_text()
    assert "One training for every keep ratio" not in page
    assert json.loads((tmp_path / "report.json").read_text())["elastic"] == []
