"""The report of an experiment that still runs, for whoever looks at it meanwhile."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from types import TracebackType

from focus_lab.errors import FocusLabError

_SHARE = 0.05
"""Of the time that may go into it: it takes from the trials what it takes of a processor."""
_GUESS_S = 10.0
"""How long it takes to write one, before that is known."""


class InterimReport:
    """Has the report written when trials have ended, in a thread of its own, if there is time.

    A context: when it is left nothing is written any more.

    Args:
        write: writes it as it stands.
        first_s: seconds before the first; a short experiment has its report at its end alone.
    """

    def __init__(self, write: Callable[[], object], first_s: float = _GUESS_S / _SHARE) -> None:
        self._write = write
        self._next = time.monotonic() + first_s
        self._waits: threading.Timer | None = None
        self._writing = threading.Lock()
        self._over = False

    def trial_ended(self) -> None:
        """There is something new to write."""
        if self._waits is None and not self._over:
            self._waits = threading.Timer(self._next - time.monotonic(), self._write_now)
            self._waits.daemon = True
            self._waits.start()

    def _write_now(self) -> None:
        with self._writing:
            # What ends from now on may be missed by this one.
            self._waits = None
            if self._over:
                return
            begun = time.monotonic()
            if begun < self._next:
                # Asked for while the one before was written.
                self.trial_ended()
                return
            # Whatever is in its way is said when the last one is written.
            with contextlib.suppress(FocusLabError, OSError):
                self._write()
            ended = time.monotonic()
            self._next = ended + (ended - begun) / _SHARE

    def __enter__(self) -> InterimReport:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        waits, self._over = self._waits, True
        if waits is not None:
            waits.cancel()
        # One that is being written is written to its end: what it reads is closed next.
        with self._writing:
            pass
