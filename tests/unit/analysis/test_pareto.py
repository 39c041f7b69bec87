import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from focus_lab.analysis.pareto import dominates, front, on_front

DIRECTIONS = ("max", "min")
POINTS = st.dictionaries(
    st.text(max_size=3), st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=9
)


@given(POINTS)
def test_the_front_is_what_nothing_dominates_and_the_rest_is_dominated_by_the_front(points):
    members = front(points, DIRECTIONS)
    for name, point in points.items():
        beaten = any(dominates(points[other], point, DIRECTIONS) for other in members)
        assert beaten == (name not in members)


@given(POINTS)
def test_a_front_of_something_is_not_empty(points):
    assert bool(front(points, DIRECTIONS)) == bool(points)


def test_more_ap_for_fewer_flops_wins():
    points = {"good": (0.4, 10), "cheap": (0.3, 5), "worse": (0.3, 10), "twin": (0.4, 10)}
    assert front(points, DIRECTIONS) == {"good", "cheap", "twin"}


@given(
    st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=7),
    st.lists(st.sampled_from(["max", "min"]), min_size=3, max_size=3),
)
def test_many_fronts_at_once_are_the_fronts_one_by_one(points, directions):
    one = front({str(row): point for row, point in enumerate(points)}, directions)
    several = on_front(np.array([points, points[::-1]], dtype=float), directions)
    assert {str(row) for row in np.flatnonzero(several[0])} == one
    assert several[1].tolist() == several[0, ::-1].tolist()
