"""The right to carry out an experiment: one driver at a time, on whatever machine."""

from __future__ import annotations

import _thread
import contextlib
import os
import secrets
import socket
import threading
from pathlib import Path

from focus_lab.errors import StoreError, StoreUnreachableError
from focus_lab.lab.store import LeaseHeldError, Store

SECONDS = 60.0


class Lease:
    """Held within the context, and renewed meanwhile.

    A process that was killed cannot give its lease back. On the same machine its death is seen at
    once; elsewhere the lease runs out.

    Args:
        store: where leases are kept.
        experiment_id: the experiment.

    Raises:
        LeaseHeldError: on entering, when another process holds it.
    """

    def __init__(self, store: Store, experiment_id: str) -> None:
        self._store, self._experiment_id = store, experiment_id
        self._owner = new_owner()
        self._stop = threading.Event()

    def __enter__(self) -> None:
        holder = self._store.lease_owner(self._experiment_id)
        self._take({holder} if holder and is_dead(holder) else set())
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def _take(self, dead: set[str]) -> None:
        self._store.take_lease(self._experiment_id, self._owner, SECONDS, dead)

    def _renew(self) -> None:
        while not self._stop.wait(SECONDS / 4):
            try:
                self._take(set())
            except LeaseHeldError:
                # This process slept too long and another took over: stop before both train.
                _thread.interrupt_main()
                return
            except StoreError:
                # The next try may find the store again; others see an expired lease meanwhile.
                continue

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        # A store that is away keeps it until it runs out; what ended the sweep is worth hearing.
        with contextlib.suppress(StoreUnreachableError):
            self._store.drop_lease(self._experiment_id, self._owner)


def new_owner() -> str:
    """A name that tells this process, and two labs in it, from all others."""
    pid = os.getpid()
    return f"{_machine()}:{pid}:{_started(pid)}:{secrets.token_hex(4)}"


def process_of(owner: str) -> int | None:
    """The process id of an owner on this machine; None of one elsewhere."""
    machine, _, rest = owner.partition(":")
    pid = rest.partition(":")[0]
    return int(pid) if machine == _machine() and pid.isdigit() else None


def is_dead(owner: str) -> bool:
    """Whether a lease's owner is a process of this machine, or container, that has ended.

    Numbers of processes come again, in a container soon: the one that has the owner's now must
    have been started when the owner was.

    Args:
        owner: "machine:process id:start:token".
    """
    machine, _, rest = owner.partition(":")
    pid, _, rest = rest.partition(":")
    started = rest.partition(":")[0]
    if machine != _machine() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return started != _started(int(pid))


def _machine() -> str:
    """Host name, and where there is one the number of the space that process ids are unique in."""
    try:
        return f"{socket.gethostname()}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return socket.gethostname()


def _started(pid: int) -> str:
    """When a process was started, in ticks since the machine was; empty where that is unknown."""
    try:
        # proc(5): field 22; the second one, a name in brackets, may hold blanks.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
