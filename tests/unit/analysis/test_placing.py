"""Where cells stand when some of them lack seeds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from focus_lab.analysis.placing import means_over_all_seeds


def test_means_of_the_same_seeds_are_plain():
    values = {"a": {0: 0.1, 1: 0.3}, "b": {1: 0.4, 0: 0.2}}
    assert means_over_all_seeds(values) == pytest.approx({"a": 0.2, "b": 0.3})


def test_a_cell_that_lost_its_worst_seed_stands_no_better_for_it():
    base = {0: 0.10, 1: 0.30, 2: 0.32}
    worse = {1: 0.28, 2: 0.30}
    stands = means_over_all_seeds({"base": base, "worse": worse, "none": {}})
    assert stands == pytest.approx({"base": 0.24, "worse": 0.22})


def test_costs_that_no_seed_changes_stay_as_they_are():
    values = {"a": {0: 0.1, 1: 0.1, 2: 0.1}, "b": {0: 0.1}}
    stands = means_over_all_seeds(values)
    assert stands["b"] == 0.1
    assert stands["a"] == pytest.approx(0.1)


def test_cells_without_common_seeds_keep_their_own_means():
    values = {"a": {0: 0.1, 1: 0.3}, "b": {2: 0.4, 3: 0.2}}
    assert means_over_all_seeds(values) == pytest.approx({"a": 0.2, "b": 0.3})


@given(
    st.lists(st.floats(-1, 1), min_size=2, max_size=5),
    st.lists(st.floats(-1, 1), min_size=2, max_size=5),
    st.data(),
)
def test_cell_plus_seed_is_found_again_whatever_is_missing(cells, seeds, data):
    # One seed is everywhere, so that all cells can be told from all seeds.
    values = {
        str(place): {
            number: cell + seed
            for number, seed in enumerate(seeds)
            if number == 0 or place == 0 or data.draw(st.booleans())
        }
        for place, cell in enumerate(cells)
    }
    stands = means_over_all_seeds(values)
    if len({frozenset(found) for found in values.values()}) > 1:
        varies = any(len(set(found.values())) > 1 for found in values.values())
        easy = sum(seeds) / len(seeds)
        expected = {str(place): cell + easy for place, cell in enumerate(cells)}
        if varies:
            assert stands == pytest.approx(expected, abs=1e-9)
