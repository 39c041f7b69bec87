"""Why trials ended: what their users can mend, and what they cannot."""

from pathlib import Path

import pytest

from focus_lab.errors import PreemptedError
from focus_lab.lab.failure import (
    PREEMPTED,
    TAKEN_BACK,
    Failure,
    explain_failure,
    is_users,
    says_no_memory,
)


def test_whose_fault_a_failure_is() -> None:
    assert is_users("DataError")
    assert is_users("WeightsError")
    assert not is_users("NonFiniteLossError")
    assert not is_users("OutOfMemory")
    assert not is_users("inspect")
    assert not is_users(None)


@pytest.mark.parametrize(
    ("said", "exhausted"),
    [
        ("Task was killed due to the node running low on memory.", True),
        ("Memory on the node was 15GB / 16GB, which exceeds the memory usage threshold", True),
        ("(1) The process is killed by SIGKILL by OOM killer due to high memory usage.", False),
        ("The actor died unexpectedly before finishing this task.", False),
    ],
)
def test_what_ray_says_of_exhausted_memory_and_what_it_only_supposes(
    said: str, exhausted: bool
) -> None:
    assert says_no_memory(said) == exhausted


def test_a_machine_that_is_taken_back_is_a_class_of_its_own(tmp_path: Path) -> None:
    assert explain_failure(PreemptedError(), tmp_path) == Failure(PREEMPTED, TAKEN_BACK)
