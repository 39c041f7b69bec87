"""The policy's file: read anew when it has changed, so that limits change without a restart."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from focus_lab.errors import SpecError
from focus_lab.lab.queue.policy import Policy, load_policy

_SETTLED_S = 2.0
"""Half of a file that is being written may be a policy, too: it is read when it is so old."""

_Stamp = tuple[int, int, int] | None


class PolicyFile:
    """Gives the policy as it is now. A wrong file is told once, and what was before stays.

    Args:
        path: the file.
        note: told what is worth a line of the log.
        clock: seconds since 1970.

    Raises:
        SpecError: it does not validate, or cannot be read, at the start.
    """

    def __init__(
        self,
        path: Path,
        note: Callable[[str], None] = lambda text: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path, self._note, self._clock = path, note, clock
        self._read = _stamp(path)
        self._policy = load_policy(path)
        self._looking = threading.Lock()

    def __call__(self) -> Policy:
        """The policy; to ask whether the file has changed takes microseconds."""
        # One looks; others have what was before for a moment longer.
        if self._looking.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._looking.release()
        return self._policy

    def _look(self) -> None:
        stamp = _stamp(self._path)
        # A date far in the future is that of a machine whose clock is ahead.
        if stamp == self._read or (stamp and abs(self._clock() - stamp[0] / 1e9) < _SETTLED_S):
            return
        self._read = stamp
        try:
            self._policy = load_policy(self._path)
        except SpecError as error:
            self._note(f"{'; '.join(error.problems)}; the policy stays as it was")
        else:
            self._note(f"{self._path}: has changed; it is the policy from now on")


def _stamp(path: Path) -> _Stamp:
    """What a file that has changed has otherwise; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
