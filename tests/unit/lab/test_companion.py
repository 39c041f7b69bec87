"""A companion lives and dies with the process that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import is_alive

from focus_lab.lab import companion as companions
from focus_lab.lab.companion import Companion

_WRITE_PID = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(600)"


def wait_for(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def pids(log: Path) -> list[int]:
    return [int(word) for word in log.read_text().split()] if log.exists() else []


def test_it_is_started_again_when_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(companions, "_PAUSES_S", (0.01,))
    log, told = tmp_path / "log", list[str]()
    made = Companion("Server", [sys.executable, "-c", _WRITE_PID], os.environ, log, told.append)
    made.start()
    wait_for(lambda: len(pids(log)) == 1)
    os.kill(pids(log)[0], signal.SIGKILL)
    wait_for(lambda: len(pids(log)) == 2)
    made.stop()
    assert not any(is_alive(pid) for pid in pids(log))
    assert len(told) == 1
    assert "Server: has ended, got exit code -9; it is started again" in told[0]


def test_it_ends_when_its_process_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = f"""
import os, sys, time
from pathlib import Path
from focus_lab.lab.companion import Companion
command = [sys.executable, "-c", {_WRITE_PID!r}]
Companion("Server", command, os.environ, Path({str(log)!r}), print).start()
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", program])
    wait_for(lambda: len(pids(log)) == 1)
    parent.kill()
    parent.wait()
    wait_for(lambda: not is_alive(pids(log)[0]))
