import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from focus_lab.analysis.bootstrap import DRAWS, SEED, bootstrap_interval, expanded

VALUES = [0.31, 0.34, 0.29, 0.33, 0.36, 0.30, 0.41]


def test_the_interval_is_scipys_bca_at_the_raised_level():
    found = bootstrap_interval(VALUES)
    expected = stats.bootstrap(
        (VALUES,),
        np.mean,
        n_resamples=DRAWS,
        confidence_level=expanded(len(VALUES), 0.95),
        method="BCa",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    assert found == pytest.approx((expected.low, expected.high), rel=1e-3)


def test_the_raised_level_is_that_of_students_t_around_the_smaller_deviation():
    n = 8
    z = stats.norm.ppf((1 + expanded(n, 0.95)) / 2)
    assert z * np.sqrt((n - 1) / n) == pytest.approx(stats.t.ppf(0.975, n - 1))


def test_fewer_than_six_values_have_no_interval():
    assert bootstrap_interval(VALUES[:5]) is None
    assert bootstrap_interval(VALUES[:6]) is not None


def test_equal_values_leave_an_interval_without_width():
    assert bootstrap_interval([0.3] * 6) == (pytest.approx(0.3), pytest.approx(0.3))


@given(st.lists(st.floats(-1, 1), min_size=6, max_size=12))
def test_the_interval_lies_within_the_values_and_is_always_the_same(values):
    low, high = bootstrap_interval(values)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    assert bootstrap_interval(values) == (low, high)
