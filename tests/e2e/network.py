"""Machines on a network of their own, on one computer: cables can be pulled, machines killed.

A machine is a set of Linux namespaces: own network with an address, own process numbers, host name,
shared memory and `/tmp/ray`; the files are the computer's, as on a shared file system. Needs root.

Nothing has a name on the computer: the switch and the machines live as long as one process each,
which the kernel kills with this one. Nothing can be left behind, whatever happens to the tests.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

_NAMESPACES = ("--net", "--uts", "--ipc", "--mount", "--pid")
# The first process of a machine: whoever loses its parent there becomes its child, and the kernel
# buries the dead children of a process that does not want to hear of them.
_INIT = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN); print('up', flush=True)\n"
_INIT += "while True: signal.pause()"
_BOOT = """
set -e
mount -t proc proc /proc
mount -t tmpfs -o size=2g tmpfs /dev/shm
mount --bind "$1" /etc/hosts
mount --bind "$2" /etc/resolv.conf
mkdir -p /tmp/ray
mount --bind "$3" /tmp/ray
hostname "$4"
ip link set lo up
shift 4
exec "$@"
"""


@functools.cache
def why_not() -> str | None:
    """Why this computer cannot have machines; None where it can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        for probe in (
            ["unshare", *_NAMESPACES, "--fork", "mount", "-t", "proc", "proc", "/proc"],
            ["unshare", "--net", "ip", "link", "add", "one", "type", "veth", "peer", "name", "two"],
            ["unshare", "--net", "ip", "link", "add", "one", "type", "bridge"],
        ):
            done = subprocess.run(probe, capture_output=True, text=True, check=False, timeout=30)
            if done.returncode:
                return f"`{' '.join(probe)}` says: {done.stderr.strip()}"
    except FileNotFoundError as error:
        return f"network namespaces need util-linux and iproute2: {error}"
    return None


class Machine:
    """A machine of a network; made by `Network.add`.

    Attributes:
        name: its host name, which all machines of the network can resolve.
        address: its address.
        folder: what tests keep of it, outside.
    """

    def __init__(self, network: Network, name: str, address: str, folder: Path) -> None:
        self.name, self.address = name, address
        self.folder, self._network = folder, network
        self._holder: subprocess.Popen[str] | None = None
        self._init = 0
        self._started: list[subprocess.Popen[str]] = []
        self._port = f"port{address.rpartition('.')[2]}"

    def boot(self) -> None:
        """Start it, or start it again: no process, an empty /tmp/ray, its cable in."""
        ray = self.folder / f"ray-{len(list(self.folder.glob('ray-*')))}"
        ray.mkdir(parents=True)
        command = ["sh", "-c", _BOOT, "boot", *self._network.names, ray, self.name]
        self._holder, self._init = _hold(_NAMESPACES, *command, sys.executable, "-c", _INIT)
        peer = ("peer", "name", "eth0", "netns", str(self._init))
        # A killed machine's end of the cable vanishes a moment later than its processes.
        self._network.switch("ip", "link", "delete", self._port, check=False)
        self._network.switch("ip", "link", "add", self._port, "type", "veth", *peer)
        self._network.switch("ip", "link", "set", self._port, "master", "switch", "up")
        self.run("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self.run("ip", "link", "set", "eth0", "up")
        self._wait_for_link()
        # A default route, as machines have: programs ask it which of their addresses is theirs.
        self.run("ip", "route", "add", "default", "dev", "eth0")

    def start(
        self,
        *command: str | Path,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        **options: Any,
    ) -> subprocess.Popen[str]:
        """Start a command on the machine.

        Args:
            command: the command.
            environment: variables beside this process's own.
            folder: the working folder; this process's by default.
            options: further ones of `subprocess.Popen`.
        """
        # Whoever enters a mount namespace finds himself at its root.
        there = ("sh", "-c", 'cd "$1" && shift && exec "$@"', "there", str(folder or Path.cwd()))
        process = subprocess.Popen(
            ["nsenter", "--target", str(self._init), *_NAMESPACES, "--", *there, *command],
            env={**os.environ, **(environment or {})},
            text=True,
            **options,
        )
        self._started.append(process)
        return process

    def run(
        self,
        *command: str | Path,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        timeout: float = 120,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the machine to its end; returns what it printed.

        Args:
            command: the command.
            environment: variables beside this process's own.
            folder: the working folder; this process's by default.
            timeout: seconds after which it is killed.
            check: whether a failure is an AssertionError that shows its output.
        """
        # Files and not pipes: a pipe ends only when everything that the command started has.
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
            process = self.start(
                *command, environment=environment, folder=folder, stdout=output, stderr=errors
            )
            try:
                process.wait(timeout)
            except BaseException as error:
                # nsenter waits for the command and hands no signal on; the command is its child.
                for child in _children(process.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child, signal.SIGKILL)
                process.wait()
                if isinstance(error, subprocess.TimeoutExpired):
                    error.add_note(f"{_text(output)[-2000:]}\n{_text(errors)[-8000:]}")
                raise
            done = subprocess.CompletedProcess(
                command, process.returncode, _text(output), _text(errors)
            )
        self._started.remove(process)
        assert not check or done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
        return done

    def cut(self) -> None:
        """Pull the cable: whatever is sent is lost, and nobody is told."""
        self._network.switch("ip", "link", "set", self._port, "down")

    def mend(self) -> None:
        """Put the cable back; returns when both ends have noticed."""
        self._network.switch("ip", "link", "set", self._port, "up")
        self._wait_for_link()

    def _wait_for_link(self) -> None:
        deadline = time.monotonic() + 20
        while "state UP" not in self.run("ip", "-o", "link", "show", "eth0").stdout or (
            "state forwarding" not in self._network.switch("bridge", "link", "show")
            .partition(self._port)[2].partition("\n")[0]
        ):  # fmt: skip
            assert time.monotonic() < deadline, f"{self.name}: the link stays down"
            time.sleep(0.02)

    def kill(self) -> None:
        """Kill -9 every process of the machine at once; its kernel still closes connections.

        After `cut()` not even that is heard: the machine has lost its power.
        """
        if self._holder is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._init, signal.SIGKILL)
        for process in (self._holder, *self._started):
            process.wait()
        self._holder = None
        self._started.clear()


class Network:
    """A switch and the machines on it, within the context.

    Args:
        folder: what the machines keep of their own.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._hosts = folder / "hosts"
        self.names = self._hosts, folder / "resolv.conf"
        self.machines: list[Machine] = []

    def __enter__(self) -> Network:
        self._folder.mkdir(parents=True, exist_ok=True)
        hosts, resolver = self.names
        hosts.write_text("127.0.0.1 localhost\n")
        # gRPC asks a name server even for names that it has found in the hosts file, for their
        # addresses of the other kind, and waits: nobody there answers sooner than nobody far away.
        resolver.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        self._holder, self._pid = _hold(("--net",), sys.executable, "-c", _INIT)
        try:
            # The sockets of computers that filter what crosses a bridge are not ours to change; in
            # a namespace of its own the switch is not concerned.
            self.switch("ip", "link", "add", "switch", "type", "bridge")
            self.switch("ip", "link", "set", "switch", "up")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        for machine in self.machines:
            machine.kill()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        self._holder.wait()

    def add(self, name: str) -> Machine:
        """A new machine on the network, started."""
        address = f"10.77.0.{len(self.machines) + 1}"
        with self._hosts.open("a") as hosts:
            hosts.write(f"{address} {name}\n")
        machine = Machine(self, name, address, self._folder / name)
        self.machines.append(machine)
        machine.boot()
        return machine

    def switch(self, *command: str, check: bool = True) -> str:
        """Run a command where the switch is; returns what it printed."""
        done = subprocess.run(
            ["nsenter", "--target", str(self._pid), "--net", "--", *command],
            capture_output=True,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout


def _hold(namespaces: tuple[str, ...], *command: str | Path) -> tuple[subprocess.Popen[str], int]:
    """Start new namespaces with their first process; returns who waits for it, and its number."""
    holder = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "--",
         "unshare", *namespaces, "--fork", "--kill-child", "--", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    assert holder.stdout is not None
    # Not read any further: when its child is killed, unshare has something to say about signals.
    with holder.stdout:
        said = holder.stdout.readline()
    assert said == "up\n", f"{command} did not start: {said}"
    [first] = _children(holder.pid)
    return holder, first


def _text(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def _children(pid: int) -> list[int]:
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []


@contextlib.contextmanager
def machines(folder: Path, *names: str) -> Iterator[list[Machine]]:
    """Machines of these names on one network, within the context."""
    with Network(folder) as network:
        yield [network.add(name) for name in names]
