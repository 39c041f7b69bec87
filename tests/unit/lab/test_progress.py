"""Progress: pace, time to go, lines and the table."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest
from rich.console import Console

from focus_lab.lab.progress import (
    PROGRESS,
    LiveProgress,
    PlainProgress,
    TrialProgress,
    duration,
    make_progress,
    time_left,
)


def trial(folder: Path = Path("nowhere"), **settings: object) -> TrialProgress:
    return TrialProgress("a-seed0", 10, folder, **settings)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (89.4, "89 s"),
        (90, "2 min"),
        (3600, "60 min"),
        (5400, "1 h 30 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations_are_said_as_people_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_nothing_is_foretold_before_something_is_measured() -> None:
    assert time_left([trial(), trial(state="RUNNING", started_at=999.9)], 2) is None


def test_time_to_go_is_shared_by_concurrent_trials_and_no_shorter_than_the_longest() -> None:
    running = trial(state="RUNNING", epoch=5, started_at=900.0)  # 20 s an epoch, 100 s to go
    done = trial(state="SUCCEEDED", epoch=10, started_at=700.0, ended_at=900.0)
    waiting = trial()
    assert time_left([running, done, waiting], 1) == pytest.approx(300)
    assert time_left([running, done, waiting], 2) == pytest.approx(200)
    assert time_left([running, done, waiting], 8) == pytest.approx(200)
    assert time_left([done], 1) == 0


def test_a_resumed_trial_is_measured_from_where_it_came_in() -> None:
    resumed = trial(state="RUNNING", epoch=8, first_epoch=6, started_at=960.0)
    assert resumed.seconds_an_epoch() == pytest.approx(20)
    assert resumed.remaining() == pytest.approx(40)


def test_the_worker_s_steps_count_within_the_epoch(tmp_path: Path) -> None:
    shown = trial(tmp_path, state="RUNNING", epoch=2)
    assert shown.done() == 2.0
    (tmp_path / PROGRESS).write_text(
        json.dumps({"epoch": 3, "step": 5, "steps": 20, "loss": 1.5, "at": 0})
    )
    assert shown.done() == 2.25
    assert shown.loss == 1.5
    shown.epoch = 3  # the file is of an epoch that is over
    assert shown.done() == 3.0
    (tmp_path / PROGRESS).write_text("{")
    assert shown.done() == 3.0


def test_plain_lines_say_what_happened() -> None:
    text = io.StringIO()
    progress = PlainProgress(Console(file=text, width=40))
    shown = trial(state="RUNNING", epoch=5, started_at=900.0, loss=1.25, ap=0.125)
    progress.trials["x"] = shown
    with progress:
        progress.changed(shown, "epoch 5/10")
        progress.changed(shown, "failed: [red] is no markup")
    assert text.getvalue().splitlines() == [
        "a-seed0  epoch 5/10  loss 1.250  AP 0.125  about 2 min to go in all",
        "a-seed0  failed: [red] is no markup",
    ]


def test_a_terminal_gets_the_table_and_a_file_gets_lines() -> None:
    assert isinstance(make_progress(Console(file=io.StringIO()), 2), PlainProgress)
    terminal = Console(file=io.StringIO(), force_terminal=True)
    assert isinstance(make_progress(terminal, 2), LiveProgress)


def test_the_table_shows_every_trial_and_failures_stay_above_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()  # the table's own thread needs a clock that runs
    text = io.StringIO()
    progress = LiveProgress(Console(file=text, force_terminal=True, width=100))
    now = time.monotonic()
    progress.trials = {
        "1": trial(state="RUNNING", epoch=5, started_at=now - 100.0, loss=1.25, ap=0.125),
        "2": trial(state="FAILED", message="memory is exhausted"),
        "3": trial(),
    }
    with progress:
        progress.changed(progress.trials["2"], "failed")
    shown = text.getvalue()
    assert "a-seed0: memory is exhausted" in shown
    for part in ("running", "5.0/10", "1.25", "0.125", "failed", "waiting", "to go"):
        assert part in shown
