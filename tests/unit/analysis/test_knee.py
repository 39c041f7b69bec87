import numpy as np

from focus_lab.analysis.knee import knee

AP_AND_COST = ("max", "min")


def _knee(*points, directions=AP_AND_COST):
    return int(knee(np.array(points, dtype=float), directions))


def test_the_knee_is_the_highest_above_the_line_between_the_ends():
    # Heights above the line of the scaled front: 0, 0.8 - 0.1, 0.85 - 0.2, 0.
    assert _knee((0.1, 10), (0.42, 20), (0.44, 30), (0.5, 110)) == 1
    assert _knee((0.1, 10), (0.2, 20), (0.48, 30), (0.5, 110)) == 2


def test_cells_beside_the_front_have_no_part_in_it():
    # The second cell would lie highest if the front's ends were other ones.
    assert _knee((0.1, 10), (0.3, 25), (0.42, 20), (0.5, 110), (0.2, 500)) == 2


def test_a_front_that_is_a_line_or_hangs_below_it_has_no_knee():
    assert _knee((0.1, 10), (0.3, 60), (0.5, 110)) == -1
    assert _knee((0.1, 10), (0.2, 60), (0.5, 110)) == -1


def test_fewer_than_three_points_have_no_knee():
    assert _knee((0.1, 10), (0.5, 110)) == -1
    assert _knee((0.1, 10)) == -1
    assert _knee((0.1, 10), (0.1, 10), (0.5, 110)) == -1


def test_directions_turn_the_picture_but_not_the_knee():
    points = np.array([(0.1, 10.0), (0.42, 20.0), (0.44, 30.0), (0.5, 110.0)])
    assert _knee(*(points * [-1, 1]), directions=("min", "min")) == 1
    assert _knee(*(points * [1, -1]), directions=("max", "max")) == 1


def test_many_sets_at_once_are_one_by_one():
    points = np.random.default_rng(1).normal(size=(40, 6, 2))
    together = knee(points, AP_AND_COST)
    assert together.tolist() == [_knee(*one) for one in points]
    assert len(set(together.tolist())) > 3
