"""Logs of drivers: read from the cluster once a second, however many follow them.

A cluster gives a job's whole log each time, and to make it readable takes as long again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from focus_lab.lab.log_lines import readable
from focus_lab.lab.queue.jobs import Jobs

FRESH_S = 0.9
"""How old may be what a follower is told; it asks once a second."""


@dataclass
class _Log:
    text: str = ""
    at: float = float("-inf")
    reading: threading.Lock = field(default_factory=threading.Lock)


class DriverLogs:
    """What drivers have said, shared by all who follow them.

    Args:
        jobs: where drivers run.
        clock: seconds.
    """

    def __init__(self, jobs: Jobs, clock: Callable[[], float] = time.monotonic) -> None:
        self._jobs, self._clock = jobs, clock
        self._logs: dict[str, _Log] = {}
        self._changing = threading.Lock()

    def text(self, job_id: str, fresh_s: float = 0.0) -> str:
        """All that a job has said so far, as sentences.

        Args:
            job_id: of an attempt.
            fresh_s: how old it may be.

        Raises:
            JobsUnreachableError: the cluster does not answer.
        """
        asked = self._clock()
        if not fresh_s:
            return readable(self._jobs.logs(job_id))
        with self._changing:
            # What nobody follows any more is not kept.
            old = [name for name, log in self._logs.items() if log.at < asked - 10 * FRESH_S]
            for name in old:
                if not self._logs[name].reading.locked():
                    del self._logs[name]
            log = self._logs.setdefault(job_id, _Log())
        with log.reading:
            if self._clock() - log.at > fresh_s:
                log.text = readable(self._jobs.logs(job_id))
                log.at = self._clock()
            return log.text
