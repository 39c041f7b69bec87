"""Files appear whole or not at all, whoever else writes them."""

from __future__ import annotations

import contextlib
from pathlib import Path

from focus_lab.training.whole_file import sweep_partials, whole_file


def test_two_who_write_the_same_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with whole_file(path) as mine:
        mine.write_text("mine, written for lo")
        # Another attempt, cut off but not dead, is faster.
        with whole_file(path) as theirs:
            theirs.write_text("theirs")
        assert path.read_text() == "theirs"
        mine.write_text("mine, written for long")
    assert path.read_text() == "mine, written for long"
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_leaves_the_file_as_it_was_and_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("before")
    with contextlib.suppress(KeyboardInterrupt), whole_file(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_what_killed_processes_left_is_swept_away(tmp_path: Path) -> None:
    (tmp_path / "a.json").touch()
    (tmp_path / "a.json.host-1-abc.partial").touch()
    sweep_partials(tmp_path)
    sweep_partials(tmp_path / "nowhere")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
