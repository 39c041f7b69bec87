"""A companion: a server that lives and dies with this process, and is started again if it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_PAUSES_S = (1.0, 5.0, 30.0)
_END_S = 30.0

# The kernel ends it when the thread that started it ends, so also when this process is killed.
_TIED = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit("its parent has gone")
os.execvp(sys.argv[2], sys.argv[2:])
"""


class Companion:
    """One server.

    Args:
        name: for the log.
        command: what is started.
        environment: of the server.
        log: file that takes what it prints.
        note: told when it ends unexpectedly.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        note: Callable[[str], None],
    ) -> None:
        self._name, self._command, self._environment = name, list(command), dict(environment)
        self._log, self._note = log, note
        self._stop = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        # A thread of its own that lasts: the kernel looks at the thread, not at the process.
        self._thread = threading.Thread(target=self._keep, name=name, daemon=True)

    def start(self) -> None:
        """Start it, and keep it running."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._stop.set()
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
        self._thread.join(_END_S + 5)

    def _keep(self) -> None:
        ends = 0
        while not self._stop.is_set():
            with self._log.open("ab") as log:
                command = [sys.executable, "-c", _TIED, str(os.getpid()), *self._command]
                self._process = subprocess.Popen(
                    command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
                self._wait(self._process)
            if self._stop.is_set():
                return
            pause = _PAUSES_S[min(ends, len(_PAUSES_S) - 1)]
            ends += 1
            self._note(
                f"{self._name}: has ended, got exit code {self._process.returncode}; it is started "
                f"again in {pause:g} s. What it said is in {self._log}"
            )
            self._stop.wait(pause)

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        while process.poll() is None:
            if self._stop.wait(0.5):
                try:
                    process.terminate()
                    process.wait(_END_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                return
