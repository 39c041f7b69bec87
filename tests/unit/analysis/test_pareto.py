from hypothesis import given
from hypothesis import strategies as st

from focus_lab.analysis.pareto import dominates, front

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
