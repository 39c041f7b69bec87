"""Limits change with their file; a wrong file changes nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from focus_lab.errors import SpecError
from focus_lab.lab.queue.policy import Policy
from focus_lab.lab.queue.policy_file import PolicyFile
from focus_lab.lab.queue.queue import Queue, QuotaError
from focus_lab.lab.store import Store


class File:
    """A policy's file, written at times of its own."""

    def __init__(self, path: Path) -> None:
        self.path, self.now = path, 1_000_000.0
        self.said: list[str] = []
        self.write("most_trials: 5")
        self.policy = PolicyFile(path, self.said.append, lambda: self.now)

    def write(self, text: str) -> None:
        self.path.write_text(text)
        os.utime(self.path, (self.now, self.now))


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "policy.yaml")


def test_a_file_that_has_changed_is_read_again_when_it_is_whole(file: File) -> None:
    first = file.policy()
    assert first.most_trials == 5
    file.now += 60
    file.write("")
    assert file.policy() is first
    file.now += 1
    file.write("most_trials: 7")
    assert file.policy() is first
    file.now += 3
    second = file.policy()
    assert second.most_trials == 7
    assert file.policy() is second
    [told] = file.said
    assert "it is the policy from now on" in told


def test_a_wrong_file_is_told_once_and_changes_nothing(file: File) -> None:
    for text, mistake in (
        ("most_trials: none\nlargest_share: 2", "most_trials: "),
        ("quotas: [", "cannot be read"),
        (None, "cannot be read"),
    ):
        file.now += 60
        if text is None:
            file.path.unlink()
        else:
            file.write(text)
        file.now += 3
        assert [file.policy().most_trials for _ in range(3)] == [5] * 3
        assert mistake in file.said[-1]
        assert file.said[-1].endswith("; the policy stays as it was")
    assert len(file.said) == 3
    assert "largest_share: " in file.said[0]
    file.write("most_trials: 9")
    file.now += 3
    assert file.policy().most_trials == 9


def test_a_clock_that_is_ahead_keeps_nothing_from_being_read(file: File) -> None:
    file.write("most_trials: 8")
    os.utime(file.path, (file.now + 3600, file.now + 3600))
    assert file.policy().most_trials == 8


def test_at_the_start_a_wrong_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("most: 5")
    with pytest.raises(SpecError, match="most"):
        PolicyFile(tmp_path / "policy.yaml")


def test_a_quota_holds_from_the_moment_it_is_written(
    file: File, store: Store, submit: Callable[..., Any]
) -> None:
    queue = Queue(store, file.policy)
    submit("one", to=queue)
    file.write("quotas: {users: {alice: {queued: 1}}}")
    file.now += 3
    with pytest.raises(QuotaError, match="alice has 1 experiments that wait or run; 1 are"):
        submit("two", to=queue)
    file.write("quotas: {users: {alice: {queued: 2}}}")
    file.now += 3
    submit("two", to=queue)
    assert Queue(store).policy == Policy()
