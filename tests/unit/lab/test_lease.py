"""The lease of a driver."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest

from focus_lab.errors import StoreError
from focus_lab.lab import lease as leases
from focus_lab.lab.lease import Lease, is_dead
from focus_lab.lab.store import Experiment, LeaseHeldError, Store

Record = Callable[..., Experiment]
HOST = socket.gethostname()


@pytest.fixture
def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_it_is_held_within_the_context_only(store: Store, record: Record) -> None:
    made = record(0.5)
    with Lease(store, made.id):
        assert store.lease_owner(made.id) == f"{HOST}:{os.getpid()}"
    assert store.lease_owner(made.id) is None


def test_it_is_given_back_when_the_work_fails(store: Store, record: Record) -> None:
    made = record(0.5)
    with pytest.raises(KeyboardInterrupt), Lease(store, made.id):
        raise KeyboardInterrupt
    assert store.lease_owner(made.id) is None


def test_the_lease_of_a_killed_process_is_taken_at_once(
    store: Store, record: Record, ended_process: int
) -> None:
    made = record(0.5)
    store.take_lease(made.id, f"{HOST}:{ended_process}", 3600, set())
    with Lease(store, made.id):
        assert store.lease_owner(made.id) == f"{HOST}:{os.getpid()}"


@pytest.mark.parametrize("owner", [f"{HOST}:{os.getppid()}", "another-host:1"])
def test_the_lease_of_a_living_or_distant_process_is_respected(
    store: Store, record: Record, owner: str
) -> None:
    made = record(0.5)
    store.take_lease(made.id, owner, 3600, set())
    with pytest.raises(LeaseHeldError, match=owner), Lease(store, made.id):
        pass
    assert store.lease_owner(made.id) == owner


def test_who_counts_as_dead(ended_process: int) -> None:
    assert is_dead(f"{HOST}:{ended_process}")
    assert is_dead(f"{HOST}:{os.getpid()}")
    assert not is_dead(f"{HOST}:{os.getppid()}")
    assert not is_dead(f"another-host:{ended_process}")
    assert not is_dead("nonsense")


def test_it_is_renewed_and_survives_a_locked_store(
    store: Store, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = record(0.5)
    lease = Lease(store, made.id)
    renewals: list[str] = []
    waits = iter([False, False, True])
    monkeypatch.setattr(lease._stop, "wait", lambda seconds: next(waits))

    def take(*_: object) -> None:
        renewals.append("tried")
        if len(renewals) == 1:
            raise StoreError("locked")

    monkeypatch.setattr(store, "take_lease", take)
    lease._renew()
    assert len(renewals) == 2
    assert leases.SECONDS > 0
