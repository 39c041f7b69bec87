"""The right to carry out an experiment: one driver at a time, on whatever machine."""

from __future__ import annotations

import _thread
import os
import socket
import threading

from focus_lab.errors import StoreError
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
        self._owner = f"{socket.gethostname()}:{os.getpid()}"
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
        self._store.drop_lease(self._experiment_id, self._owner)


def is_dead(owner: str) -> bool:
    """Whether a lease's owner ("host:process id") is a process of this machine that has ended.

    This process's own id counts as ended: in a container it is that of the process before.
    """
    host, _, pid = owner.rpartition(":")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return int(pid) == os.getpid()
