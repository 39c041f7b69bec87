import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from focus_lab.analysis.statistics import (
    estimate,
    half_width_in_deviations,
    hedges_g,
    holm,
    paired_difference,
)

VALUES = [0.31, 0.34, 0.29, 0.33]


def test_the_interval_is_scipys_t_interval():
    found = estimate(VALUES)
    low, high = stats.t.interval(
        0.95, len(VALUES) - 1, loc=np.mean(VALUES), scale=stats.sem(VALUES)
    )
    assert (found.n, found.mean) == (4, pytest.approx(0.3175))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_one_value_has_no_interval():
    found = estimate([0.3])
    assert (found.mean, found.low, found.high) == (0.3, None, None)


def test_the_paired_difference_is_scipys_paired_t_test_over_common_seeds():
    ours = {0: 0.31, 1: 0.34, 2: 0.29, 9: 0.99}
    theirs = {0: 0.28, 1: 0.30, 2: 0.28, 5: 0.01}
    found = paired_difference(ours, theirs)
    test = stats.ttest_rel([0.31, 0.34, 0.29], [0.28, 0.30, 0.28])
    interval = test.confidence_interval(0.95)
    assert found is not None
    assert found.n == 3
    assert found.p_value == pytest.approx(test.pvalue)
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_a_difference_is_shown_only_when_its_interval_excludes_zero():
    base = {0: 0.30, 1: 0.31, 2: 0.32}
    clear = paired_difference({0: 0.40, 1: 0.41, 2: 0.421}, base)
    noisy = paired_difference({0: 0.40, 1: 0.21, 2: 0.42}, base)
    single = paired_difference({0: 0.40}, base)
    assert clear is not None
    assert noisy is not None
    assert single is not None
    assert (clear.shown, noisy.shown, single.shown) == (True, False, None)


def test_equal_differences_leave_an_interval_without_width():
    found = paired_difference({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0})
    assert found is not None
    assert (found.low, found.high, found.p_value) == (1.0, 1.0, 0.0)


def test_no_common_seed_gives_no_difference():
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_holm_adjusts_as_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx(
        {"a": 0.03, "c": 0.06, "b": 0.06}
    )


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), min_size=1, max_size=6))
def test_holm_never_lowers_a_p_value_nor_passes_one(p_values):
    adjusted = holm(p_values)
    assert all(p_values[name] <= adjusted[name] <= 1 for name in p_values)


def test_two_seeds_leave_an_interval_nine_deviations_wide_to_each_side():
    assert half_width_in_deviations(2) == pytest.approx(8.98, abs=0.01)


def test_hedges_g_is_cohens_d_times_the_correction_by_hand():
    # Gamma(2) / (sqrt(2) Gamma(1.5)) with five values.
    by_hand = 1 / (np.sqrt(2) * np.sqrt(np.pi) / 2)
    assert hedges_g(0.02, 0.01, 5) == pytest.approx(2 * by_hand)
    assert by_hand == pytest.approx(1 - 3 / (4 * 4 - 1), abs=0.003)  # Hedges' approximation


def test_an_effect_has_no_size_with_two_seeds_or_without_spread():
    assert hedges_g(0.02, 0.01, 2) is None
    assert hedges_g(0.02, 0.0, 5) is None


def test_hedges_g_is_right_on_average_where_cohens_d_is_too_large():
    n, truth = 5, 0.8
    values = np.random.default_rng(3).normal(truth, 1, (20_000, n))
    means, deviations = values.mean(axis=1), values.std(axis=1, ddof=1)
    unbiased = np.array([hedges_g(*pair, n) for pair in zip(means, deviations, strict=True)])
    error = 3 * unbiased.std() / np.sqrt(len(unbiased))
    assert abs(unbiased.mean() - truth) < error
    assert (means / deviations).mean() - truth > 5 * error
