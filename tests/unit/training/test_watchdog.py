"""A worker that stands still is ended, and says where it stood."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from focus_lab.training.watchdog import (
    EXIT_CODE,
    WAITING,
    Watchdog,
    clear_stalls,
    read_stalls,
    stall_file,
)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_who_goes_on_is_left_alone_and_who_stands_still_is_named(tmp_path: Path) -> None:
    clock, left = Clock(), [0]

    def leave() -> None:
        left[0] += 1

    watchdog = Watchdog(tmp_path, 3, 10.0, leave, clock)
    for now in (5.0, 12.0, 20.0):
        clock.now = now
        watchdog.goes_on("computing a step")
        assert not watchdog.bark_if_late()
    clock.now = 29.9
    assert not watchdog.bark_if_late()
    clock.now = 30.0
    assert watchdog.bark_if_late()
    assert left == [1]
    assert read_stalls(tmp_path) == {3: {"doing": "computing a step", "seconds": 10.0}}
    # The stack of this very test is in it.
    assert "test_who_goes_on_is_left_alone" in stall_file(tmp_path, 3).read_text()


def test_a_new_attempt_begins_without_the_last_ones_stall(tmp_path: Path) -> None:
    stall_file(tmp_path, 0).write_text('{"doing": "x", "seconds": 1}\n')
    stall_file(tmp_path, 3).write_text('{"doing": "x", "seconds": 1}\n')
    clear_stalls(tmp_path)
    assert read_stalls(tmp_path) == {}


def test_who_waits_for_the_others_speaks_after_those_who_keep_it_waiting(tmp_path: Path) -> None:
    clock, left = Clock(), list[int]()
    waiting, stuck = (
        Watchdog(tmp_path, rank, 10.0, lambda rank=rank: left.append(rank), clock)
        for rank in (0, 1)
    )
    waiting.goes_on(WAITING)
    clock.now = 4.0  # it stood still a little later, and is looked at every few seconds
    stuck.goes_on("waiting for a batch")
    clock.now = 14.0 + 5.0
    assert [each.bark_if_late() for each in (waiting, stuck)] == [False, True]
    assert left == [1]
    # Where all wait for each other, they are found all the same.
    clock.now = 25.0
    assert waiting.bark_if_late()


def test_who_waits_for_its_driver_is_left_alone(tmp_path: Path) -> None:
    clock, left = Clock(), list[int]()
    watchdog = Watchdog(tmp_path, 0, 10.0, lambda: left.append(1), clock)
    with watchdog.resting():
        clock.now = 1000.0
        assert not watchdog.bark_if_late()
    clock.now = 1009.0
    assert not watchdog.bark_if_late()
    clock.now = 1010.0
    assert watchdog.bark_if_late()


def test_a_worker_is_ended_also_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    clock, left = Clock(), list[int]()
    watchdog = Watchdog(tmp_path / "file" / "folder", 0, 10.0, lambda: left.append(1), clock)
    clock.now = 11.0
    assert watchdog.bark_if_late()
    assert left == [1]


def test_a_torn_file_is_passed_over(tmp_path: Path) -> None:
    stall_file(tmp_path, 0).write_text("")
    stall_file(tmp_path, 1).write_text('{"doing')
    assert read_stalls(tmp_path) == {}


def test_a_process_stuck_in_a_call_ends_by_itself(tmp_path: Path) -> None:
    code = (
        "import sys, threading; from pathlib import Path; "
        "from focus_lab.training.watchdog import Watchdog\n"
        "with Watchdog(Path(sys.argv[1]), 1, 0.2) as watchdog:\n"
        "    watchdog.goes_on('waiting for a batch')\n"
        "    threading.Lock().acquire() and threading.Event().wait()"
    )
    ended = subprocess.run([sys.executable, "-c", code, tmp_path], timeout=60)
    assert ended.returncode == EXIT_CODE
    assert read_stalls(tmp_path)[1]["doing"] == "waiting for a batch"
