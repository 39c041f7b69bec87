"""Start the service: embedded on one machine, or before a team's database and cluster."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

import structlog
import uvicorn

from focus_lab.errors import UserError
from focus_lab.lab.companion import Companion
from focus_lab.lab.database import Database
from focus_lab.lab.embedded_ray import EmbeddedRay
from focus_lab.lab.lab import artifact_root, embedded_tracking_uri, store_url
from focus_lab.lab.lease import new_owner
from focus_lab.lab.log_lines import configure_logs
from focus_lab.lab.queue.attempts import Attempts
from focus_lab.lab.queue.dispatcher import Dispatcher
from focus_lab.lab.queue.jobs import Jobs, JobStatus, JobsUnreachableError
from focus_lab.lab.queue.leadership import Leadership
from focus_lab.lab.queue.policy_file import PolicyFile
from focus_lab.lab.queue.queue import Queue
from focus_lab.lab.queue.ray_jobs import RayJobs
from focus_lab.lab.store import Store
from focus_lab.lab.tracking import Tracker
from focus_lab.training.folder import make_folder
from service.app import create_app
from service.lookout import Lookout
from service.settings import Settings
from service.state import State

_CONNECTIONS = 20
_LET_GO_S = 25.0
"""Seconds that drivers have to save when an embedded service ends."""
_M_ARENA_MAX = -8
"""As in glibc's malloc.h."""
KEEP_ALIVE_S = 75
"""Longer than clients keep an idle connection, mostly 5 s: a request that comes just when the
service closes its connection is lost."""

# MLflow's server would make its tables without waiting for a driver that does so.
_PREPARED = """
import os, sys
from focus_lab.lab.mlflow_tracker import MlflowTracker
MlflowTracker(os.environ["MLFLOW_BACKEND_STORE_URI"])
os.execv(sys.argv[1], sys.argv[1:])
"""

log = structlog.get_logger("focus_lab.service")


def serve(settings: Settings, ready: Callable[[str], None], *, mlflow_port: int = 0) -> None:
    """Serve until interrupted.

    Args:
        settings: where everything is.
        ready: called with the service's address once it answers.
        mlflow_port: where MLflow's pages are served as well; 0 nowhere.

    Raises:
        UserError: the port is taken, or store or policy cannot be used.
    """
    configure_logs()
    share_memory()
    check_port(settings.host, settings.port)
    with contextlib.ExitStack() as stack:
        embedded = settings.ray_dashboard is None
        settings, jobs = stack.enter_context(cluster(settings))
        if mlflow_port:
            settings = stack.enter_context(mlflow_pages(settings, mlflow_port))
        queue = stack.enter_context(open_queue(settings))
        look = Lookout(store_of(settings), lambda: queue.policy)
        stack.enter_context(contextlib.closing(look))
        state = State(settings, queue, jobs, lambda: make_tracker(settings), look)
        dispatcher = None
        if settings.dispatch:
            dispatcher = make_dispatcher(queue, jobs)
        name_traces()
        app = create_app(state, dispatcher)
        config = uvicorn.Config(
            app, host=settings.host, port=settings.port, log_config=None, access_log=False,
            timeout_graceful_shutdown=10, timeout_keep_alive=KEEP_ALIVE_S, server_header=False,
            lifespan="on",
        )  # fmt: skip
        address = f"http://{_shown(settings.host)}:{settings.port}"
        # uvicorn raises the signal that ended it once more: there is still something to do then.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        _Server(config, state, lambda: ready(address)).run()
        if embedded:
            let_go(queue, jobs)


def share_memory() -> bool:
    """Let all threads take memory from the same two places; whether malloc has places to share.

    With one a thread, as glibc has it, each keeps what it once needed, and a server grows for hours
    (the lab log has the figures).
    """
    malloc = ctypes.CDLL(None)
    return hasattr(malloc, "mallopt") and bool(malloc.mallopt(_M_ARENA_MAX, 2))


def name_traces() -> None:
    """Give traces the service's name, where nobody has given another."""
    os.environ.setdefault("OTEL_SERVICE_NAME", "focus-lab")


def dispatch(settings: Settings, stop: threading.Event) -> None:
    """Dispatch without serving, until told to stop.

    Raises:
        UserError: no cluster is named.
    """
    configure_logs()
    if settings.ray_dashboard is None:
        raise UserError(
            "FOCUS_LAB_RAY_DASHBOARD: a dispatcher needs a cluster, got none; set it to "
            "http://HOST:8265"
        )
    with cluster(settings) as (known, jobs), open_queue(known) as queue:
        make_dispatcher(queue, jobs).run(stop)


def make_dispatcher(queue: Queue, jobs: Jobs) -> Dispatcher:
    """A dispatcher that the audit trail calls by its machine's name."""
    owner = new_owner()
    leadership = Leadership(queue.store.database, owner)
    return Dispatcher(
        queue,
        jobs,
        leadership,
        f"dispatcher on {socket.gethostname()}",
        lambda text: log.warning("dispatcher", text=text),
    )


@contextlib.contextmanager
def cluster(settings: Settings) -> Iterator[tuple[Settings, RayJobs]]:
    """The cluster of the settings, or one of this machine that ends with the context."""
    token = settings.ray_token.get_secret_value() if settings.ray_token else None
    if token is None and settings.ray_token_file is not None:
        token = settings.ray_token_file.read_text().strip()
    if settings.ray_dashboard is not None:
        jobs = RayJobs(settings.ray_dashboard, token, settings.job_python)
        with contextlib.closing(jobs):
            yield settings, jobs
        return
    home = make_folder(settings.home).resolve()
    environment = {"FOCUS_LAB_HOME": str(home)}
    if settings.store:
        environment["FOCUS_LAB_STORE"] = settings.store
    if settings.tracking_uri:
        environment["MLFLOW_TRACKING_URI"] = settings.tracking_uri
    ray = EmbeddedRay(
        environment, home / "service" / "ray.log", lambda text: log.warning("ray", text=text)
    )
    ray.start()
    try:
        with contextlib.closing(RayJobs(ray.dashboard, ray.token, sys.executable)) as jobs:
            yield settings.model_copy(update={"ray_dashboard": ray.dashboard}), jobs
    finally:
        ray.stop()


@contextlib.contextmanager
def mlflow_pages(settings: Settings, port: int) -> Iterator[Settings]:
    """MLflow's pages on loopback, beside the service."""
    check_port("127.0.0.1", port)
    home = make_folder(settings.home).resolve()
    backend = settings.tracking_uri or embedded_tracking_uri(home)
    if backend.startswith("http"):
        yield settings.model_copy(update={"mlflow_url": settings.mlflow_url or backend})
        return
    artifacts = artifact_root(backend, home) or (home / "mlartifacts").as_uri()
    command = [
        sys.executable, "-c", _PREPARED, sys.executable, "-m", "mlflow", "server",
        "--default-artifact-root", artifacts, "--serve-artifacts",
        "--artifacts-destination", artifacts, "--host", "127.0.0.1", "--port", str(port),
        "--workers", "1",
    ]  # fmt: skip
    environment = dict(os.environ) | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        # It may have a password, and everybody on the machine sees command lines.
        "MLFLOW_BACKEND_STORE_URI": backend,
    }
    companion = Companion(
        "MLflow", command, environment, home / "service" / "mlflow.log",
        lambda text: log.warning("mlflow", text=text),
    )  # fmt: skip
    companion.start()
    # From elsewhere this address would be the visitor's own machine.
    here = None if is_reached(settings) else f"http://127.0.0.1:{port}"
    if not (here or settings.mlflow_url):
        log.info(
            "mlflow",
            text=f"FOCUS_LAB_MLFLOW_URL: pages have no links to MLflow, got none; its pages are on "
            f"127.0.0.1:{port}, name the address by which browsers reach them",
        )
    try:
        yield settings.model_copy(update={"mlflow_url": settings.mlflow_url or here})
    finally:
        companion.stop()


@contextlib.contextmanager
def open_queue(settings: Settings) -> Iterator[Queue]:
    """The queue of the settings' store.

    A file of one's own is brought up to date; a server's database is only checked: others may use
    it.

    Raises:
        OldStoreError: the tables are not current.
    """
    url = store_of(settings)
    database = Database(url, connections=_CONNECTIONS)
    try:
        file = settings.policy
        policy = PolicyFile(file, lambda text: log.warning("policy", text=text)) if file else None
        yield Queue(Store(database), policy)
    finally:
        database.close()


def store_of(settings: Settings) -> str:
    """URL of the store: the one that is named, or SQLite in the folder of results."""
    return settings.store or store_url(make_folder(settings.home).resolve())


def make_tracker(settings: Settings) -> Tracker:
    """MLflow; takes seconds to load."""
    from focus_lab.lab.mlflow_tracker import MlflowTracker

    home = settings.home.resolve()
    tracking = settings.tracking_uri or embedded_tracking_uri(home)
    return MlflowTracker(tracking, artifact_root(tracking, home))


def let_go(queue: Queue, jobs: RayJobs) -> None:
    """Let the drivers of an embedded cluster save before it ends."""
    attempts = Attempts(queue.store.database, queue.policy)
    running = [one.entry.job_id for one in attempts.open()]
    deadline = time.monotonic() + _LET_GO_S
    while running and time.monotonic() < deadline:
        try:
            running = [job for job in running if jobs.status(job) is JobStatus.RUNNING]
            for job in running:
                jobs.stop(job)
        except JobsUnreachableError as error:
            log.warning("ray", text=str(error))
            return
        time.sleep(0.5)


def check_port(host: str, port: int) -> None:
    """See that a port is free.

    Raises:
        UserError: it is not.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise UserError(
            f"--port: cannot listen on {host}:{port}, got {error.strerror or error}; end what "
            "listens there, or choose another port"
        ) from None


class _Server(uvicorn.Server):
    """Says when it answers, and ends event streams before it waits for open requests."""

    def __init__(self, config: uvicorn.Config, state: State, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._state, self._ready = state, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        if self.started:
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End."""
        asyncio.run_coroutine_threadsafe(self._state.feed.close(), self._loop)
        super().handle_exit(sig, frame)


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def is_reached(settings: Settings) -> bool:
    """Whether others than this machine reach the service: a proxy here brings them to loopback."""
    return settings.host not in ("127.0.0.1", "::1", "localhost") or bool(settings.allowed_hosts)
