import numpy as np
import pytest
from scipy import stats

from focus_lab.analysis.chances import DRAWS, chances, draw_means

OBJECTIVES = {"coco/AP": "max", "cost/gflops": "min"}


def _cell(aps, gflops, *, cost_seeds=None):
    seeds = range(len(aps)) if cost_seeds is None else cost_seeds
    return {"coco/AP": dict(enumerate(aps)), "cost/gflops": dict.fromkeys(seeds, gflops)}


def test_the_dearer_of_two_cells_is_on_the_front_as_often_as_the_paired_t_test_says():
    cheap, dear = [0.30, 0.34, 0.31], [0.31, 0.36, 0.33]
    found = chances({"cheap": _cell(cheap, 10.0), "dear": _cell(dear, 20.0)}, OBJECTIVES)
    expected = 1 - stats.ttest_rel(dear, cheap).pvalue / 2
    assert found is not None
    assert found.seeds == (0, 1, 2)
    assert found.front["cheap"] == 1.0
    # Three standard errors of a share of DRAWS draws.
    error = 3 * np.sqrt(expected * (1 - expected) / DRAWS)
    assert found.front["dear"] == pytest.approx(expected, abs=error)


def test_pairing_counts_although_each_cell_alone_scatters_widely():
    cells = {"a": _cell([0.1, 0.3, 0.5], 1.0), "b": _cell([0.110, 0.311, 0.510], 2.0)}
    found = chances(cells, OBJECTIVES)
    assert found is not None
    assert found.front["b"] > 0.99


def test_a_cell_that_costs_more_and_finds_less_in_every_seed_is_never_on_the_front():
    cells = {"good": _cell([0.4, 0.41, 0.42], 1.0), "bad": _cell([0.3, 0.31, 0.32], 2.0)}
    assert chances(cells, OBJECTIVES).front == {"good": 1.0, "bad": 0.0}


def test_the_knees_chance_follows_the_spread():
    clear = {
        "a": _cell([0.10, 0.11, 0.10], 10.0),
        "b": _cell([0.42, 0.43, 0.42], 20.0),
        "c": _cell([0.50, 0.51, 0.50], 110.0),
    }
    assert chances(clear, OBJECTIVES).knee["b"] > 0.98
    noisy = clear | {"b": _cell([0.10, 0.30, 0.80], 20.0)}
    assert chances(noisy, OBJECTIVES).knee["b"] < 0.95


def test_one_seed_gives_no_chances():
    cells = {"a": _cell([0.3], 1.0), "b": _cell([0.4], 2.0)}
    assert chances(cells, OBJECTIVES) is None
    assert chances({}, OBJECTIVES) is None


def test_seeds_that_only_some_cells_have_are_left_out_and_cells_with_one_seed_too():
    cells = {
        "a": _cell([0.3, 0.31, 0.32, 0.9], 1.0),
        "b": _cell([0.4, 0.41, 0.43], 2.0),
        "c": _cell([0.5], 3.0),
    }
    found = chances(cells, OBJECTIVES)
    assert found is not None
    assert found.seeds == (0, 1, 2)
    assert set(found.front) == {"a", "b"}


def test_a_cost_that_was_measured_once_a_cell_is_taken_as_certain_and_named():
    cells = {
        "a": _cell([0.3, 0.32], 1.0, cost_seeds=[0]),
        "b": _cell([0.3, 0.31], 2.0, cost_seeds=[0]),
    }
    found = chances(cells, OBJECTIVES)
    assert found is not None
    assert found.once == ("cost/gflops",)
    assert found.front["a"] == 1.0


def test_drawn_means_have_the_seeds_covariance_and_constants_stay_constant():
    values = np.random.default_rng(5).normal(size=(8, 2)) @ [[1, 0.5], [0, 1]]
    drawn = draw_means(np.column_stack([values, np.full(8, 0.1)]), 200_000)
    assert (drawn[:, 2] == 0.1).all()
    # A t distribution of 7 degrees of freedom has 7 / 5 of its scale as variance.
    expected = np.cov(values.T) / 8 * 7 / 5
    assert np.cov(drawn[:, :2].T) == pytest.approx(expected, rel=0.05)
    assert drawn[:, :2].mean(axis=0) == pytest.approx(values.mean(axis=0), abs=0.01)
