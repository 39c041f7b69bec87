"""A head that has gone is said once, while there is still somebody to say it."""

from __future__ import annotations

import socket

from focus_lab.lab.head_watch import HeadWatch, _listens


def test_a_head_that_stays_away_is_said_once_and_its_return_too() -> None:
    notes: list[str] = []
    answers = iter([True, False, False, True, False, False, False, False, True, True])
    watch = HeadWatch("10.0.0.1:6379", notes.append, lambda address: next(answers))
    for _ in range(10):
        watch.look()
    assert len(notes) == 2
    assert "does not answer any more, got silence from 10.0.0.1:6379" in notes[0]
    assert "run the same command to continue" in notes[0]
    assert notes[1] == "Ray: the head at 10.0.0.1:6379 answers again"


def test_who_listens_answers_and_who_has_gone_does_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert _listens(address)
    assert not _listens(address)
