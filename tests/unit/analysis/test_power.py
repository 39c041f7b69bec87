import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from focus_lab.analysis.power import detectable_effect, power, seeds_to_detect


@pytest.mark.parametrize("n", [2, 3, 5, 10, 30])
@pytest.mark.parametrize("effect", [0.1, 0.5, 1.0, 2.0])
def test_power_is_that_of_statsmodels_noncentral_t(n, effect):
    expected = TTestPower().power(effect, n, 0.05)
    if np.isfinite(expected):
        assert power(n, effect) == pytest.approx(expected, abs=1e-4)


def test_without_a_difference_the_power_is_the_level():
    assert power(4, 0.0, 0.01) == pytest.approx(0.01, abs=1e-4)


def test_two_seeds_need_a_difference_known_in_closed_form():
    # With one degree of freedom the test finds it when |Z1| < shift / 12.706, nearly.
    bound, reach = stats.t.ppf(0.975, 1), stats.norm.ppf(0.9)
    assert detectable_effect(2) == pytest.approx(bound * reach / np.sqrt(2), rel=0.01)


@pytest.mark.parametrize(("n", "alpha"), [(2, 0.05), (3, 0.0125), (8, 0.05)])
def test_the_detectable_effect_has_just_the_wanted_power(n, alpha):
    found = detectable_effect(n, alpha, 0.8)
    assert power(n, found, alpha) == pytest.approx(0.8, abs=1e-9)


def test_more_seeds_are_wanted_for_smaller_differences():
    few, many = seeds_to_detect(0.1, 0.05), seeds_to_detect(0.03, 0.05)
    assert (few, many) == (5, 24)
    assert power(24, 0.6) >= 0.8 > power(23, 0.6)
    assert seeds_to_detect(0.0, 0.05) is None
    assert seeds_to_detect(0.001, 0.05) is None
