"""The lease of a driver."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from focus_lab.errors import StoreError
from focus_lab.lab import lease as leases
from focus_lab.lab.lease import Lease, _machine, _started, is_dead
from focus_lab.lab.store import Experiment, LeaseHeldError, Store

Record = Callable[..., Experiment]
HOST = _machine()
OURS = f"{HOST}:{os.getpid()}:{_started(os.getpid())}:"
PARENTS = f"{HOST}:{os.getppid()}:{_started(os.getppid())}:0a1b2c3d"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def database(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_it_is_held_within_the_context_only(store: Store, record: Record) -> None:
    made = record(0.5)
    with Lease(store, made.id):
        assert store.lease_owner(made.id).startswith(OURS)  # type: ignore[union-attr]
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
    store.take_lease(made.id, f"{HOST}:{ended_process}:5:0a1b2c3d", 3600, set())
    with Lease(store, made.id):
        assert store.lease_owner(made.id).startswith(OURS)  # type: ignore[union-attr]


@pytest.mark.parametrize("owner", [PARENTS, "another-host:1:5:0a1b2c3d"])
def test_the_lease_of_a_living_or_distant_process_is_respected(
    store: Store, record: Record, owner: str
) -> None:
    made = record(0.5)
    store.take_lease(made.id, owner, 3600, set())
    with pytest.raises(LeaseHeldError, match=owner), Lease(store, made.id):
        pass
    assert store.lease_owner(made.id) == owner


def test_who_counts_as_dead(ended_process: int) -> None:
    assert is_dead(f"{HOST}:{ended_process}:5:0a1b2c3d")
    # Another process has got its number since.
    assert is_dead(f"{HOST}:{os.getpid()}:5:0a1b2c3d")
    assert not is_dead(f"{OURS}0a1b2c3d")
    assert not is_dead(PARENTS)
    assert not is_dead(f"another-host:{ended_process}:5:0a1b2c3d")
    assert not is_dead("nonsense")


def test_two_labs_in_one_process_exclude_each_other(store: Store, record: Record) -> None:
    made = record(0.5)
    with Lease(store, made.id):
        with pytest.raises(LeaseHeldError), Lease(store, made.id):
            pass
        assert store.lease_owner(made.id) is not None
    assert store.lease_owner(made.id) is None


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
