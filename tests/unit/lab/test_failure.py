"""Why trials ended: what their users can mend, and what they cannot."""

from focus_lab.lab.failure import is_users


def test_whose_fault_a_failure_is() -> None:
    assert is_users("DataError")
    assert is_users("WeightsError")
    assert not is_users("NonFiniteLossError")
    assert not is_users("OutOfMemory")
    assert not is_users("inspect")
    assert not is_users(None)
