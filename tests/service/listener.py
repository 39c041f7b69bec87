"""An app on a port of this machine, in a thread of this process."""

from __future__ import annotations

import socket
import threading

import uvicorn
from fastapi import FastAPI


class Listener:
    """Answers on a port; after a stop again on the same one.

    Args:
        app: what answers.
    """

    def __init__(self, app: FastAPI) -> None:
        self._app, self._port = app, 0
        self._running: tuple[uvicorn.Server, threading.Thread, socket.socket] | None = None

    @property
    def address(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Answer."""
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", self._port))
        # From here on connections wait until the server takes them.
        listening.listen()
        self._port = listening.getsockname()[1]
        config = uvicorn.Config(
            self._app, log_config=None, access_log=False, timeout_graceful_shutdown=2
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        self._running = server, thread, listening

    def stop(self, *, at_once: bool = False) -> None:
        """Answer no more.

        Args:
            at_once: cut what is being answered, as a process that dies does.
        """
        if self._running is None:
            return
        server, thread, listening = self._running
        if at_once:
            server.config.timeout_graceful_shutdown = 0
        server.should_exit = True
        thread.join()
        listening.close()
        self._running = None
