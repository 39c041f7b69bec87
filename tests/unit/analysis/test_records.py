from dataclasses import replace

import pytest

from focus_lab.analysis.findings import find
from focus_lab.analysis.summary import compare
from focus_lab.analysis.tables import as_text, trials_table

# Trials of these records have two epochs.
APS = {"a": {0: 0.777, 1: 0.2}, "base": {0: 0.3, 1: 0.3}}


def _stopped(record, *ids):
    """The record with trials that came through one epoch of two."""
    trials = [
        replace(t, curves={m: points[:1] for m, points in t.curves.items()}) if t.id in ids else t
        for t in record.trials
    ]
    return replace(record, trials=tuple(trials))


def test_a_trial_that_was_stopped_early_is_part_of_no_mean(make_record):
    record = _stopped(make_record(APS, spec={"training": {"epochs": 2}}), "a-0")
    cell = compare(record).cells[0]
    assert (cell.n, cell.mean("coco/AP")) == (1, 0.2)
    row = trials_table(record).rows[0]
    assert row[1:3] == ("stopped early", "1 of 2")
    answer = " ".join(find(compare(record)).answer)
    assert "Of 4 trials 1 stopped early: listed below, and part of no mean." in answer
    # The seed that is left is not any seed.
    assert "Some seeds of a were stopped early" in answer
    assert "1 of 4 trials were stopped early: not compared." in as_text(record)


def _read_at_two_ratios(record, trained="elastic"):
    """The record with cells of ratios 0.1 and 0.2 as one training of each seed."""
    cells = [replace(c, read_from=trained) if c.name != "base" else c for c in record.cells]
    trials = [
        replace(t, id=f"{trained}-{t.seed}") if t.cell != "base" else t for t in record.trials
    ]
    return replace(record, cells=tuple(cells), trials=tuple(trials))


def test_a_training_that_was_read_at_several_ratios_is_one_trial(make_record):
    aps = {"elastic@0.1": {0: 0.2, 1: 0.2}, "elastic@0.2": {0: 0.25, 1: 0.25}, "base": {0: 0.3}}
    record = make_record(aps, spec={"training": {"epochs": 2}})
    trials = [
        replace(t, curves=t.curves | {"train/seconds": [(1, 30.0), (2, 40.0)]})
        for t in record.trials
    ]
    record = _read_at_two_ratios(replace(record, trials=tuple(trials)))
    assert [trial.id for trial in record.trainings] == ["elastic-0", "elastic-1", "base-0"]
    rows = trials_table(record).rows
    assert [row[0] for row in rows] == ["elastic, seed 0", "elastic, seed 1", "base, seed 0"]
    # As read at the largest ratio, which stands second.
    assert [row[3] for row in rows] == ["0.250", "0.250", "0.300"]
    assert {row[4] for row in rows} == {"70.0"}


def test_an_unfinished_training_that_was_to_be_read_at_several_ratios_counts_once(make_record):
    aps = {"elastic@0.1": {0: 0.2, 1: 0.2}, "elastic@0.2": {0: 0.25, 1: 0.25}, "base": {0: 0.3}}
    record = _read_at_two_ratios(make_record(aps, spec={"training": {"epochs": 2}}))
    failed = tuple(
        replace(t, state="FAILED", curves={}) if t.id == "elastic-0" else t for t in record.trials
    )
    answer = " ".join(find(compare(replace(record, trials=failed))).answer)
    assert "Of 3 trials 1 failed" in answer
    stopped = _stopped(record, "elastic-0")
    answer = " ".join(find(compare(stopped)).answer)
    assert "Of 3 trials 1 stopped early" in answer
    assert "Some seeds of elastic@0.1 and elastic@0.2 were stopped early" in answer
    assert "1 of 3 trials were stopped early: not compared." in as_text(stopped)


def test_a_cell_of_stopped_trials_is_not_ranked(make_record):
    # Better than the baseline after one epoch already.
    record = _stopped(make_record(APS, spec={"training": {"epochs": 2}}), "a-0", "a-1")
    comparison = compare(record)
    assert [cell.name for cell in comparison.measured] == ["base"]
    assert not comparison.cells[0].on_front
    answer = " ".join(find(comparison).answer)
    assert answer.startswith("base reaches AP 0.300")
    assert "Every trial of a that succeeded was stopped early" in answer
    assert "Some seeds" not in answer


@pytest.mark.parametrize("overrides", [{"training.epochs": 1}, {"training": {"epochs": 1}}])
def test_a_cell_that_is_meant_to_be_shorter_is_not_stopped_early(make_record, overrides):
    record = make_record(APS, spec={"training": {"epochs": 2}})
    cells = (replace(record.cells[0], overrides=overrides), record.cells[1])
    record = _stopped(replace(record, cells=cells), "a-0", "a-1")
    assert compare(record).cells[0].n == 2


def test_where_the_plan_is_not_known_nothing_counts_as_stopped(make_record):
    assert compare(_stopped(make_record(APS), "a-0")).cells[0].n == 2


def test_a_running_trial_is_not_stopped(make_record):
    record = _stopped(make_record(APS, spec={"training": {"epochs": 2}}), "a-0")
    running = replace(record.trials[0], state="RUNNING")
    assert replace(record, trials=(running,)).stopped_before(running) is None


@pytest.mark.parametrize(
    ("sweep", "reasons"),
    [
        ({}, 0),
        ({"search": {"kind": "grid"}, "early_stopping": {"kind": "none"}}, 0),
        ({"search": {"kind": "optuna"}}, 1),
        ({"early_stopping": {"kind": "asha"}}, 1),
        ({"search": {"kind": "random"}, "early_stopping": {"kind": "asha"}}, 2),
    ],
)
def test_searching_and_stopping_make_an_experiment_exploratory(make_record, sweep, reasons):
    record = make_record(APS, spec={"sweep": sweep})
    assert len(record.exploratory) == reasons
    assert ("Exploratory" in as_text(record)) == bool(reasons)
