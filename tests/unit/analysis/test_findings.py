from dataclasses import replace

from focus_lab.analysis.findings import find
from focus_lab.analysis.summary import compare


def _find(record):
    found = find(compare(record))
    return " ".join(found.answer), " ".join(found.certainty)


def test_one_seed_is_said_to_decide_nothing_and_the_differences_are_named(make_record):
    _, certainty = _find(make_record({"a": {0: 0.2}, "b": {0: 0.25}, "base": {0: 0.3}}))
    assert "One seed decides nothing" in certainty
    assert "a \N{MINUS SIGN}0.100" in certainty
    assert "b \N{MINUS SIGN}0.050" in certainty
    assert "Rule of thumb" in certainty


def test_one_seed_without_a_baseline_is_said_too(make_record):
    _, certainty = _find(make_record({"a": {0: 0.2}, "b": {0: 0.25}}, baseline=False))
    assert "One seed decides nothing" in certainty


def test_only_differences_whose_interval_excludes_zero_are_called_shown(make_record):
    aps = {
        "far": {0: 0.100, 1: 0.111, 2: 0.121},
        "near": {0: 0.31, 1: 0.29, 2: 0.33},
        "base": {0: 0.30, 1: 0.31, 2: 0.32},
    }
    _, certainty = _find(make_record(aps))
    shown, _, rest = certainty.partition("Not shown")
    assert "far \N{MINUS SIGN}0.199" in shown
    assert "near" not in shown
    assert "near" in rest
    assert "Holm" in certainty
    assert "seeds at the spread seen here" in certainty


def test_saved_flops_are_set_beside_time(make_record):
    aps = {"a": {0: 0.2}, "base": {0: 0.3}}
    answer, _ = _find(make_record(aps))
    times = "\N{MULTIPLICATION SIGN}"
    assert f"0.50{times} the baseline's FLOPs and takes 0.97{times} its time" in answer
    answer, _ = _find(make_record(aps, latency=False))
    assert "time was not measured" in answer


def test_the_foreground_share_is_named(make_record):
    assert "14 % of the tokens lie in boxes" in _find(make_record({"a": {0: 0.2}}))[0]


def test_unfinished_trials_are_counted_and_part_of_nothing(make_record):
    record = make_record({"a": {0: 0.2, 1: 0.777}, "base": {0: 0.3, 1: 0.3}})
    trials = [replace(t, state="FAILED") if t.id == "a-1" else t for t in record.trials]
    answer, _ = _find(replace(record, trials=tuple(trials)))
    assert "Of 4 trials 1 failed" in answer
    assert "0.777" not in answer
    assert "0.200 (one seed)" in answer


def test_nothing_is_claimed_of_nothing(empty_record):
    answer, certainty = _find(empty_record)
    assert "No trial has succeeded yet" in answer
    assert certainty == ""


def test_one_cell_is_not_compared(make_record):
    assert "nothing is compared" in _find(make_record({"a": {0: 0.2, 1: 0.3}}))[1]


def test_an_objective_to_be_lowered_ranks_from_below(make_record):
    aps = {"a": {0: 0.2}, "base": {0: 0.3}}
    answer, _ = _find(make_record(aps, objectives={"cost/gflops": "min"}))
    assert answer.startswith("a has the lowest GFLOPs, 10.0")


def test_a_cell_without_a_value_of_an_objective_is_not_called_beaten(make_record):
    record = make_record({"a": {0: 0.4}, "b": {0: 0.2}, "base": {0: 0.3}})
    trials = [
        replace(t, curves={k: v for k, v in t.curves.items() if k != "cost/gflops"})
        if t.cell == "b"
        else t
        for t in record.trials
    ]
    answer, _ = _find(replace(record, trials=tuple(trials)))
    assert "no worse in the other: base; it cannot be told of b (GFLOPs not measured)." in answer
