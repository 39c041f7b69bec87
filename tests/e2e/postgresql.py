"""A PostgreSQL server for tests: of the distribution's binaries, without a port, gone with the
tests; or one that is given.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

_START_SECONDS = 30
_USER = "focus_lab"


def binaries() -> Path | None:
    """The folder of the newest server on this computer; distributions keep it off the PATH."""
    found = sorted(
        (path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")),
        key=lambda folder: float(folder.parent.name),
    )
    if found:
        return found[-1]
    config = shutil.which("pg_config")
    if config:
        told = subprocess.run([config, "--bindir"], capture_output=True, text=True, check=False)
        folder = Path(told.stdout.strip())
        if (folder / "initdb").exists():
            return folder
    return None


def why_not() -> str | None:
    """Why there can be no server; None where there can."""
    if binaries() is None:
        return "no PostgreSQL server is installed"
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        return "PostgreSQL refuses to run as root, and there is no setpriv to become another user"
    return None


def account() -> pwd.struct_passwd | None:
    """Whom the server runs as; None: whoever runs the tests."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise AssertionError("this computer has no user but root")


def as_account(*command: str | Path) -> list[str | Path]:
    """The command as the server's user, ended in haste when this process dies."""
    user = account()
    if user is None:
        return ["setpriv", "--pdeathsig", "QUIT", "--", *command]
    identity = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    return ["setpriv", *identity, "--pdeathsig", "QUIT", "--", *command]


class PostgreSQL:
    """A server that listens on a socket in its folder only, and trusts everybody there.

    Args:
        folder: its data, socket and log; open to the server's user.
        durable: whether what it has confirmed survives kill -9 of its processes; slower.
    """

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        place = binaries()
        assert place is not None
        self._place, self._folder, self._durable = place, folder, durable
        self._process: subprocess.Popen[bytes] | None = None
        if user := account():
            os.chown(folder, user.pw_uid, user.pw_gid)
        subprocess.run(
            as_account(
                place / "initdb", "--no-sync", "--auth=trust", f"--username={_USER}",
                "--encoding=UTF8", "--no-locale", "--pgdata", folder / "data",
            ),
            cwd=folder, check=True, capture_output=True,
        )  # fmt: skip

    def start(self) -> None:
        """Start it, or start it again, and wait until it answers."""
        # Safe against the death of the computer it need not be.
        settings = ["-c", "listen_addresses=", "-c", "fsync=off", "-c", "full_page_writes=off"]
        if not self._durable:
            settings += ["-c", "synchronous_commit=off"]
        data = self._folder / "data"
        log = self._folder / "log.txt"
        with log.open("a") as output:
            self._process = subprocess.Popen(
                as_account(self._place / "postgres", "-D", data, "-k", self._folder, *settings),
                cwd=self._folder, stdout=output, stderr=output,
            )  # fmt: skip
        deadline = time.monotonic() + _START_SECONDS
        ready = [self._place / "pg_isready", "--quiet", "--host", self._folder]
        while subprocess.run(ready, check=False).returncode:
            alive = self._process.poll() is None and time.monotonic() < deadline
            assert alive, log.read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        """End it in order."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)

    def kill(self) -> None:
        """Kill -9 its first process; the others end when they notice."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def kill_and_restart(self) -> None:
        """Kill it, and start it again as soon as what is left of it has gone."""
        self.kill()
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                return self.start()
            except AssertionError:
                if time.monotonic() > deadline:
                    raise

    def new_database(self) -> str:
        """SQLAlchemy URL of a fresh database."""
        import psycopg

        name = f"t{uuid.uuid4().hex}"
        with psycopg.connect(
            host=str(self._folder), user=_USER, dbname="postgres", autocommit=True
        ) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        return f"postgresql+psycopg://{_USER}@/{name}?host={self._folder}"


class Schemas:
    """Schemas of a database that somebody may use: made in a moment, unlike databases.

    Args:
        url: SQLAlchemy URL of the database; its account may make schemas there.
    """

    def __init__(self, url: str) -> None:
        self._url = sa.make_url(url)
        self._names: list[str] = []

    def new(self) -> str:
        """SQLAlchemy URL of an empty schema, which its connections take for the whole database."""
        name = f"t{uuid.uuid4().hex}"
        self._execute(f'CREATE SCHEMA "{name}"')
        self._names.append(name)
        path = self._url.update_query_dict({"options": f"-csearch_path={name}"})
        return path.render_as_string(hide_password=False)

    def drop(self) -> None:
        """Leave none behind."""
        for name in self._names:
            self._execute(f'DROP SCHEMA "{name}" CASCADE')

    def _execute(self, statement: str) -> None:
        engine = sa.create_engine(self._url)
        with engine.begin() as connection:
            connection.execute(sa.text(statement))
        engine.dispose()


@contextlib.contextmanager
def server(*, durable: bool = False) -> Iterator[PostgreSQL]:
    """A server within the context; what it stored is lost afterwards."""
    # Not a folder of pytest's: those are closed to other users.
    folder = Path(tempfile.mkdtemp(prefix="focus-lab-pg-"))
    try:
        started = PostgreSQL(folder, durable=durable)
        try:
            started.start()
            yield started
        finally:
            started.stop()
    finally:
        shutil.rmtree(folder)
