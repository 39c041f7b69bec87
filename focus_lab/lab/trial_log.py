"""A trial's log: one file a worker, with what it prints and what becomes of it."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

LOGS = "logs"
"""Folder in a trial's folder; the files are rank-0.log, rank-1.log, …"""


class TrialLog(io.TextIOBase):
    """Writes lines with the time before each, and passes what is printed on.

    Talk, not results: a full disk, or one that does not answer, costs lines and no trial.
    """

    def __init__(self, file: Path, passed_on: Any) -> None:
        self._passed_on, self._open_line = passed_on, ""
        self._file: TextIO | None = None
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            # Line by line, so that a killed worker has said all that it said.
            self._file = file.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)

    def line(self, text: str) -> None:
        """Write lines to the file alone."""
        if self._file is None:
            return
        with contextlib.suppress(OSError):
            for part in text.splitlines():
                self._file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {part}\n")

    def write(self, text: str) -> int:
        """Take what is printed."""
        self._passed_on.write(text)
        whole, newline, rest = (self._open_line + text).rpartition("\n")
        if newline:
            self.line(whole)
        self._open_line = rest
        return len(text)

    def flush(self) -> None:
        """Pass it on."""
        self._passed_on.flush()

    def close(self) -> None:
        """Write what was not ended by a line break, and close the file."""
        if self._open_line:
            self.line(self._open_line)
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()


@contextlib.contextmanager
def trial_log(folder: Path, rank: int, name: str) -> Iterator[TrialLog]:
    """Log a worker within the context; what it prints, warns and raises is written too.

    Args:
        folder: of the trial.
        rank: of the worker.
        name: of the trial.
    """
    log = TrialLog(folder / LOGS / f"rank-{rank}.log", sys.stderr)
    log.line(f"{name}: rank {rank}, process {os.getpid()} on {socket.gethostname()}")
    shown = warnings.showwarning

    def show(message: Any, category: Any, filename: str, number: int, *rest: Any) -> None:
        log.line(f"{category.__name__}: {message} ({filename}:{number})")
        shown(message, category, filename, number, *rest)

    try:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            warnings.showwarning = show  # type: ignore[assignment]
            yield log
        log.line("done")
    except BaseException as error:
        log.line("".join(traceback.format_exception(error)))
        raise
    finally:
        warnings.showwarning = shown
        log.close()
