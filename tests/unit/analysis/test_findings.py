from dataclasses import replace

import pytest

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


def test_only_differences_that_hold_after_holms_correction_are_called_decided(make_record):
    aps = {
        "far": {0: 0.100, 1: 0.111, 2: 0.121},
        "near": {0: 0.31, 1: 0.29, 2: 0.33},
        "base": {0: 0.30, 1: 0.31, 2: 0.32},
    }
    _, certainty = _find(make_record(aps))
    decided, _, rest = certainty.partition("Not decided")
    assert "far \N{MINUS SIGN}0.199" in decided
    assert "Holm's correction for 2 comparisons" in decided
    assert "near" not in decided
    assert "near +0.000" in rest
    assert "would be found with a chance of 80 %" in rest


def test_an_interval_without_zero_is_not_enough_among_many_cells(make_record):
    # The p-value of b alone is 0.04; five others were looked at as well.
    base = {0: 0.30, 1: 0.31, 2: 0.32}
    aps = {f"same {i}": {0: 0.30 + i / 100, 1: 0.29, 2: 0.34} for i in range(5)}
    aps |= {"b": {0: 0.330, 1: 0.352, 2: 0.371}, "base": base}
    cell = compare(make_record(aps)).cells[5]
    assert cell.difference("coco/AP").shown
    assert not cell.decided("coco/AP")
    assert "Decided" not in _find(make_record(aps))[1]


def test_the_best_is_compared_with_the_next_although_neither_is_the_baseline(make_record):
    aps = {
        "good": {0: 0.40, 1: 0.41, 2: 0.42},
        "best": {0: 0.50, 1: 0.512, 2: 0.521},
        "base": {0: 0.30, 1: 0.31, 2: 0.32},
    }
    assert "best is better than the next, good (+0.101" in _find(make_record(aps))[1]
    aps["good"] = {0: 0.40, 1: 0.52, 2: 0.50}
    certainty = _find(make_record(aps))[1]
    assert "Whether best is better than the next, good, is not decided" in certainty


def test_the_front_names_chances_and_the_knee_its_own(make_record):
    aps = {
        "a": {0: 0.10, 1: 0.11, 2: 0.10},
        "b": {0: 0.42, 1: 0.43, 2: 0.42},
        "base": {0: 0.43, 1: 0.44, 2: 0.44},
    }
    answer, _ = _find(make_record(aps))
    assert "a (100 %), b (100 %) and base (" in answer
    assert "knee, after which more cost buys less, is b; of the draws" in answer


def test_a_cell_with_too_few_seeds_has_no_chance_and_is_named(make_record):
    aps = {"a": {0: 0.1}, "b": {0: 0.42, 1: 0.43}, "base": {0: 0.43, 1: 0.44}}
    answer, _ = _find(make_record(aps))
    assert ": a, b (100 %) and base (" in answer
    assert "in common; a, with too few seeds, cannot be part of that." in answer


def test_one_seed_never_wins(make_record):
    answer, _ = _find(make_record({"a": {0: 0.1}, "b": {0: 0.42}, "base": {0: 0.43}}))
    assert "which one seed does not decide" in answer
    assert "is b as far as single seeds tell, which decides nothing" in answer
    assert "chance" not in answer


def test_a_cell_that_lost_its_worst_seed_does_not_win_by_that(make_record):
    aps = {
        "a": {1: 0.28, 2: 0.301, 3: 0.29},
        "base": {0: 0.10, 1: 0.30, 2: 0.32, 3: 0.31},
    }
    answer, certainty = _find(make_record(aps))
    assert answer.startswith("base has the highest AP, 0.258")
    assert "Cells lack seeds that others have: order, front and knee go by means" in answer
    assert "a is better" not in certainty
    assert "base is better than the next, a (+0.020" in certainty
    even = {cell: {seed: ap for seed, ap in found.items() if seed} for cell, found in aps.items()}
    assert "Cells lack seeds" not in _find(make_record(even))[0]


def test_the_best_by_others_seeds_is_not_called_better_where_both_have_one(make_record):
    # By what each gains over the baseline b is ahead of a, by the two seeds of both .01 behind.
    aps = {
        "a": {0: 0.31, 1: 0.32, 2: 0.32, 3: 0.33},
        "b": {0: 0.30, 1: 0.31, 4: 0.39, 5: 0.40},
        "base": {0: 0.30, 1: 0.31, 2: 0.30, 3: 0.31, 4: 0.30, 5: 0.31},
    }
    certainty = _find(make_record(aps))[1]
    assert "not decided: where both have a seed, it is worse (\N{MINUS SIGN}0.010" in certainty


def test_a_front_of_single_seeds_beside_others_is_not_decided(make_record):
    answer, _ = _find(make_record({"a": {0: 0.5}, "base": {0: 0.43, 1: 0.44, 2: 0.42}}))
    assert (
        "That is not decided: no two cells have been measured with two seeds in common." in answer
    )


def test_a_damaged_cell_takes_nobody_elses_chances(make_record):
    whole = {seed: 0.3 + seed / 100 for seed in range(5)}
    aps = {name: {s: v + i / 50 for s, v in whole.items()} for i, name in enumerate("abc")}
    aps |= {"damaged": {0: 0.2, 5: 0.3}, "base": whole}
    comparison = compare(make_record(aps))
    assert comparison.chances.seeds == (0, 1, 2, 3, 4)
    assert set(comparison.chances.front) == {"a", "b", "c", "base"}
    assert "damaged, with too few seeds, cannot be part of that" in _find(make_record(aps))[0]


def test_neither_damaged_cells_nor_those_without_effect_say_what_would_be_found(make_record):
    base = {0: 0.30, 1: 0.31, 2: 0.32, 3: 0.30, 4: 0.29}
    aps = {
        "a": {0: 0.31, 1: 0.30, 2: 0.33, 3: 0.32, 4: 0.28},
        "b": {0: 0.29, 1: 0.33, 2: 0.33, 3: 0.31, 4: 0.31},
        "base": base,
    }

    def found(cells):
        [sentence] = [s for s in _sentences(cells) if "would be found with" in s]
        return sentence

    def _sentences(cells):
        return find(compare(make_record(cells))).certainty

    alone = found(aps)
    assert alone.startswith("With 5 seeds and the spread")
    damaged = found({"damaged": {0: 0.31, 1: 0.34}, **aps})
    assert damaged.startswith("With 5 seeds, as most cells have, and the spread")
    spread = alone.partition("differences: ")[2].partition(")")[0]
    same = found({"same": base, "same too": dict(base), **aps})
    assert same.partition("differences: ")[2].partition(")")[0] == spread


def test_equal_differences_in_two_seeds_are_no_proof(make_record):
    aps = {"a": {0: 0.31, 1: 0.41}, "base": {0: 0.30, 1: 0.40}}
    certainty = _find(make_record(aps))[1]
    assert "Decided" not in certainty
    said = "since equal differences in every seed leave the spread unknown: a +0.010 (2 seeds)."
    assert said in certainty


def test_saved_flops_are_set_beside_time(make_record):
    aps = {"a": {0: 0.2}, "base": {0: 0.3}}
    answer, _ = _find(make_record(aps))
    times = "\N{MULTIPLICATION SIGN}"
    assert f"0.50{times} the baseline's FLOPs and takes 0.97{times} its time" in answer
    answer, _ = _find(make_record(aps, latency=False))
    assert "time was not measured" in answer


def test_the_foreground_share_is_named(make_record):
    assert "14 % of the tokens lie in boxes" in _find(make_record({"a": {0: 0.2}}))[0]


def _foreground(record, recalls):
    """What is said of foreground and keep ratio, with cell -> recall."""
    trials = [
        replace(t, curves=t.curves | {"tokens/foreground_recall": [(2, recalls[t.cell])]})
        for t in record.trials
    ]
    (sentence,) = [
        text
        for text in find(compare(replace(record, trials=tuple(trials)))).answer
        if "of the tokens lie in boxes" in text
    ]
    return sentence


RECALLS = {"a": 0.96, "b": 0.97, "base": 0.99}


def _with_overrides(record, **changes):
    cells = [
        replace(cell, overrides=cell.overrides | changes.get(cell.name, {}))
        for cell in record.cells
    ]
    return replace(record, cells=tuple(cells))


def test_the_smallest_ratio_that_refines_the_foreground_is_named(make_record):
    record = make_record({"a": {0: 0.2}, "b": {0: 0.25}, "base": {0: 0.3}})
    assert _foreground(record, RECALLS | {"a": 0.5}).endswith(
        "lie in boxes; the smallest keep ratio at which at least 95 % of the foreground tokens are "
        "refined is 0.2 (b)."
    )
    assert "smallest" not in _foreground(record, dict.fromkeys(RECALLS, 0.5))


def test_cells_that_differ_in_more_than_the_ratio_do_not_count_for_the_smallest_one(make_record):
    record = make_record({"a": {0: 0.2}, "b": {0: 0.25}, "base": {0: 0.3}})
    oracle = {"model.token_selection.scoring": {"kind": "oracle"}}
    assert "(b)" in _foreground(_with_overrides(record, a=oracle), RECALLS)
    # One ratio is left to compare.
    assert "smallest" not in _foreground(_with_overrides(record, a=oracle, b=oracle), RECALLS)
    # What the baseline changes as well is no difference to it.
    heads = {"model.encoder_auxiliary": True}
    both = _with_overrides(record, b=heads, base=heads)
    assert "(b)" in _foreground(both, RECALLS)


def test_without_a_baseline_all_cells_must_differ_in_the_ratio_alone(make_record):
    aps = {"a": {0: 0.2}, "b": {0: 0.25}, "base": {0: 0.3}}
    record = make_record(aps, baseline=False)
    assert "(a)" in _foreground(record, RECALLS)
    other = _with_overrides(record, base={"model.encoder_auxiliary": True})
    assert "smallest" not in _foreground(other, RECALLS)


@pytest.mark.parametrize(
    "selection",
    [
        {"scoring": {"kind": "oracle"}},
        {"scoring": {"kind": "dense"}},
        {"scoring": {"kind": "focus"}, "level_keep_ratios": [0.4, 0.8]},
    ],
)
def test_a_ratio_that_no_score_fills_is_not_called_the_smallest(make_record, selection):
    aps = {"a": {0: 0.2}, "b": {0: 0.25}, "base": {0: 0.3}}
    of_base = make_record(aps, spec={"model": {"token_selection": selection}})
    assert "smallest" not in _foreground(of_base, RECALLS)
    changes = {f"model.token_selection.{name}": value for name, value in selection.items()}
    of_cells = _with_overrides(make_record(aps), a=changes, b=changes, base=changes)
    assert "smallest" not in _foreground(of_cells, RECALLS)


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


def test_a_cell_with_the_baselines_very_numbers_is_said_to_compare_nothing(make_record):
    base = {0: 0.30, 1: 0.31}
    answer, _ = _find(make_record({"twin": base, "near": {0: 0.30, 1: 0.3100001}, "base": base}))
    assert "twin has exactly the baseline's numbers, in every epoch" in answer
    answer, _ = _find(make_record({"one": {0: 0.30}, "two": {1: 0.31}, "base": base}))
    assert "one and two have exactly the baseline's numbers" in answer
    # Whoever has detected nothing at all has not shown that.
    nothing = {0: 0.0, 1: 0.0}
    assert "exactly" not in _find(make_record({"a": nothing, "base": nothing}))[0]
    assert "exactly" not in _find(make_record({"twin": base, "base": base}, baseline=False))[0]
