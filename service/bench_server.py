"""The server of `bench service`, in a process of its own: everything real but the drivers."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2

from focus_lab.errors import FocusLabError
from focus_lab.lab.queue.policy import Policy, Quota, Quotas
from focus_lab.lab.queue.queue import Queue

POLICY = Policy(quotas=Quotas(default_user=Quota()))

_SERVER = """
import sys
from service.bench_server import host
host(sys.argv[1], int(sys.argv[2]), sys.argv[3])
"""


def host(url: str, port: int, folder: str) -> None:
    """What the process does: serve until it is ended."""
    import uvicorn

    from focus_lab.lab.lease import new_owner
    from focus_lab.lab.log_lines import configure_logs
    from focus_lab.lab.queue.dispatcher import Dispatcher
    from focus_lab.lab.queue.jobs import MemoryJobs
    from focus_lab.lab.queue.leadership import Leadership
    from focus_lab.lab.tracking import MemoryTracker
    from service.app import create_app
    from service.lookout import Lookout
    from service.serve import KEEP_ALIVE_S, open_queue, share_memory
    from service.settings import Settings
    from service.state import State

    configure_logs()
    share_memory()
    settings = Settings(
        home=Path(folder),
        store=url,
        rate_per_s=1e6,
        burst=10**6,
        max_streams=10_000,
        max_streams_per_user=10_000,
    )
    with open_queue(settings) as opened:
        queue = Queue(opened.store, POLICY)
        jobs, owner = MemoryJobs(), new_owner()
        dispatcher = Dispatcher(queue, jobs, Leadership(opened.store.database, owner), owner)
        with contextlib.closing(Lookout(url, lambda: POLICY)) as look:
            app = create_app(State(settings, queue, jobs, MemoryTracker, look), dispatcher)
            uvicorn.run(
                app, host="127.0.0.1", port=port, log_config=None, access_log=False,
                timeout_keep_alive=KEEP_ALIVE_S,
            )  # fmt: skip


@contextlib.contextmanager
def serving(url: str, folder: str) -> Iterator[tuple[str, int]]:
    """A server in a process of its own; gives its address and process id."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    log = Path(folder) / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, url, str(port), folder], stdout=output, stderr=output
        )
        try:
            deadline = time.monotonic() + 60
            while True:
                with contextlib.suppress(httpx2.HTTPError):
                    if httpx2.get(f"http://127.0.0.1:{port}/health/live").status_code == 200:
                        break
                if process.poll() is not None or time.monotonic() > deadline:
                    raise FocusLabError(f"bench service: no server, got {log.read_text()[-500:]}")
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            process.terminate()
            process.wait(30)


def cpu_s(pid: int) -> float:
    """Seconds of processor time that the server has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    """Memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
