"""What the routes work with: made once, handed in, replaceable in tests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from anyio import CapacityLimiter
from fastapi import Request
from prometheus_client import CollectorRegistry

from focus_lab.lab.queue.admission import Place
from focus_lab.lab.queue.attempts import Attempts
from focus_lab.lab.queue.events import EventLog
from focus_lab.lab.queue.jobs import Jobs
from focus_lab.lab.queue.queue import Queue
from focus_lab.lab.tokens import Tokens
from focus_lab.lab.tracking import Tracker
from service.board import Board, look_through
from service.curves import CurveReader
from service.door import Door
from service.driver_logs import DriverLogs
from service.feed import Feed
from service.intake import Intake
from service.readiness import Readiness
from service.settings import Settings
from service.streams import Streams
from service.submission import Costs

_LOG_THREADS = 4


@dataclass
class State:
    """Everything outside enters here.

    Args:
        settings: what is allowed.
        queue: submitted experiments.
        jobs: where drivers run.
        make_tracker: makes the tracker when it is first asked: it takes seconds to load.
        look: looks through the queue; None does it in this process.
    """

    settings: Settings
    queue: Queue
    jobs: Jobs
    make_tracker: Callable[[], Tracker]
    look: Callable[[], Mapping[str, Place]] | None = None
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        database = self.queue.store.database
        self.events = EventLog(database)
        self.events.adopt()
        self.tokens = Tokens(database)
        self.door = Door(self.tokens)
        self.readiness = Readiness(database, tracking_uri=self.settings.tracking_uri)
        self.board = Board(self.look or (lambda: look_through(self.queue, self.attempts)))
        self.feed = Feed(self.events)
        self.intake = Intake(self.queue)
        self.costs = Costs()
        self.curves = CurveReader(lambda: self.tracker)
        self.driver_logs = DriverLogs(self.jobs)
        self.log_threads = CapacityLimiter(_LOG_THREADS)
        most = self.settings.max_streams
        of_user = self.settings.max_streams_per_user if self.settings.auth else most
        self.event_streams = Streams("events", most, of_user)
        self.log_streams = Streams("log", most, of_user)
        self._tracker: Tracker | None = None
        self._making = threading.Lock()

    @property
    def attempts(self) -> Attempts:
        """The queue's attempts, by its policy of now."""
        return Attempts(self.queue.store.database, self.queue.policy)

    @property
    def tracker(self) -> Tracker:
        """The tracker, made at first use."""
        with self._making:
            if self._tracker is None:
                self._tracker = self.make_tracker()
            return self._tracker

    @property
    def home(self) -> Path:
        """Folder of results."""
        return self.settings.home.resolve()


async def state_of(request: Request) -> State:
    """The state of the app that a request came to."""
    # Asynchronous though it waits for nothing: otherwise a thread would be asked for it.
    state: State = request.app.state.focus_lab
    return state
