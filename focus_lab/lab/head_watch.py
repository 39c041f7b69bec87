"""Watches the head of a Ray cluster: when it is gone, Ray ends this process without our words."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

_PAUSE_S, _ANSWER_S = 5.0, 5.0
_SILENCES = 3
"""Of these in a row, one may be a busy machine."""


class HeadWatch:
    """Says when a cluster's head has stopped to answer, and when it is back.

    Ray itself waits for a minute, and then ends the process from C++.

    Args:
        address: of the head, HOST:PORT.
        note: told a sentence.
        answers: whether somebody listens at an address.
    """

    def __init__(
        self,
        address: str,
        note: Callable[[str], None],
        answers: Callable[[str], bool] | None = None,
    ) -> None:
        self._address, self._note = address, note
        self._answers = answers or _listens
        self._silences = 0
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        """Begin to watch."""
        threading.Thread(target=self._watch, name="head watch", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Watch no more."""
        self._stop.set()

    def look(self) -> None:
        """Look once."""
        if self._answers(self._address):
            if self._silences >= _SILENCES:
                self._note(f"Ray: the head at {self._address} answers again")
            self._silences = 0
            return
        self._silences += 1
        if self._silences == _SILENCES:
            self._note(
                f"Ray: the cluster's head does not answer any more, got silence from "
                f"{self._address}; unless it comes back within a minute Ray ends this command. "
                "Nothing is lost: start the cluster and run the same command to continue"
            )

    def _watch(self) -> None:
        while not self._stop.wait(_PAUSE_S):
            self.look()


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S):
            return True
    except OSError:
        return False
