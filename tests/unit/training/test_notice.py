"""Workers ask by time whether their machine is taken back, and all at the same steps."""

from __future__ import annotations

from itertools import pairwise

import pytest

from focus_lab.training.notice import NoticeTimes
from focus_lab.training.workers import Workers


@pytest.mark.parametrize(("seconds_a_step", "largest_gap"), [(0.1, 6.4), (1.0, 6.0), (30.0, 30.0)])
def test_nobody_hears_of_it_much_later_than_after_five_seconds(
    seconds_a_step: float, largest_gap: float
) -> None:
    now = 0.0
    times = NoticeTimes(Workers(), lambda: now)
    asked = [0.0]
    for step in range(1, 300):
        now = step * seconds_a_step
        if times.is_due(step):
            asked.append(now)
    gaps = [later - earlier for earlier, later in pairwise(asked)]
    assert max(gaps) <= largest_gap
    assert len(asked) <= 10 + now / min(5.0, max(4.0, seconds_a_step))


def test_the_first_workers_clock_decides_for_all() -> None:
    class Told(Workers):
        def broadcast(self, content: object) -> object:
            return 7

    times = NoticeTimes(Told(rank=1, size=2), lambda: 0.0)
    assert [step for step in range(1, 20) if times.is_due(step)] == [1, 8, 15]
