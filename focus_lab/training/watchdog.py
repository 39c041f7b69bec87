"""The watchdog ends a worker that has stopped making steps, after saying where it stands."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

EXIT_CODE = 74
"""Of a worker that its watchdog has ended."""
WAITING = "waiting for the other workers"
"""What a worker does that is not itself to blame for standing still."""

_GRACE_S = 15.0
"""Seconds more for a worker that only waits for others: whoever they wait for has been looked at by
then, and has said where it stands; the death of one ends them all."""
_TELL_S = 10.0
"""Seconds for saying where a worker stands before it is ended all the same."""


def clear_stalls(folder: Path) -> None:
    """Forget the hung workers of an attempt whose driver died before it was written down."""
    for path in folder.glob("stalled-*.txt"):
        path.unlink(missing_ok=True)


def stall_file(folder: Path, rank: int) -> Path:
    """Where a hung worker says what it did: a line of JSON, then the stacks of its threads."""
    return folder / f"stalled-{rank}.txt"


def _leave() -> None:
    # Not an exception: the main thread is stuck in a call that no exception would reach.
    os._exit(EXIT_CODE)


class Watchdog:
    """Watches that a worker says often enough that it goes on.

    Args:
        folder: the attempt's folder.
        rank: this worker.
        timeout_s: seconds of silence that are too many.
        leave: called at last; must not return in earnest.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        folder: Path,
        rank: int,
        timeout_s: float,
        leave: Callable[[], None] = _leave,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._timeout_s = stall_file(folder, rank), timeout_s
        self._leave, self._clock = leave, clock
        self._doing, self._since = "starting", clock()
        self._resting = False
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        """Begin to watch."""
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Watch no more."""
        self._closed.set()

    def goes_on(self, doing: str) -> None:
        """The worker is alive, and begins with something: `waiting for a batch`, for example."""
        self._doing, self._since = doing, self._clock()

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """Within the context nothing is expected: the worker waits for its driver."""
        self._resting = True
        try:
            yield
        finally:
            self._since = self._clock()
            self._resting = False

    def bark_if_late(self) -> bool:
        """Say where the worker stands and end it, when it has been silent for too long."""
        silent = self._clock() - self._since
        grace = _GRACE_S if self._doing == WAITING else 0.0
        if self._resting or silent < self._timeout_s + grace:
            return False
        # In a thread of its own: a file system that hangs is what a worker may be stuck in.
        telling = threading.Thread(target=self._tell, args=(silent,), daemon=True)
        telling.start()
        telling.join(_TELL_S)
        self._leave()
        return True

    def _tell(self, silent: float) -> None:
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("w") as file:
                file.write(json.dumps({"doing": self._doing, "seconds": round(silent, 1)}) + "\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)

    def _watch(self) -> None:
        pause = min(5.0, self._timeout_s / 4)
        while not self._closed.wait(pause):
            if self.bark_if_late():
                return


def read_stalls(folder: Path) -> dict[int, dict[str, Any]]:
    """Rank -> {doing, seconds} of the workers of an attempt that were found hung."""
    found: dict[int, dict[str, Any]] = {}
    for path in folder.glob("stalled-*.txt"):
        try:
            line = path.read_text().splitlines()[0]
            found[int(path.stem.removeprefix("stalled-"))] = json.loads(line)
        except (OSError, ValueError, IndexError):
            continue
    return dict(sorted(found.items()))
