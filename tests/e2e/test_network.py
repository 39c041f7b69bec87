"""The machines of tests: on their own, cut off, killed, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from network import Machine, machines, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

SERVE = """
import socket
server = socket.create_server(("", 7000))
print("listening", flush=True)
while True:
    server.accept()[0].sendall(socket.gethostname().encode())
"""
CALL = """
import socket, sys
with socket.create_connection((sys.argv[1], 7000), timeout=2) as caller:
    print(caller.recv(100).decode())
"""


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[list[Machine]]:
    with machines(tmp_path, "one", "two") as made:
        yield made


def serve(machine: Machine) -> None:
    process = machine.start(sys.executable, "-c", SERVE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "listening\n"


def call(caller: Machine, name: str) -> str | None:
    done = caller.run(sys.executable, "-c", CALL, name, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def comes_to_answer(caller: Machine, name: str) -> bool:
    """Who asked for an address in vain, or knows an old one, asks again only after seconds."""
    deadline = time.monotonic() + 30
    while call(caller, name) != name:
        if time.monotonic() > deadline:
            return False
    return True


def test_machines_reach_each_other_by_name_and_are_told_apart(pair: list[Machine]) -> None:
    one, two = pair
    serve(two)
    assert call(one, "two") == call(one, two.address) == "two"
    assert call(two, "one") is None
    assert one.address != two.address
    spaces = {m.run("readlink", "/proc/self/ns/pid").stdout for m in pair}
    assert len(spaces | {f"{Path('/proc/self/ns/pid').readlink()}\n"}) == 3
    # Nothing but the switch is there to be reached.
    assert one.run("ip", "-o", "link").stdout.count("\n") == 2


def test_a_pulled_cable_is_silence_until_it_is_put_back(pair: list[Machine]) -> None:
    one, two = pair
    serve(two)
    two.cut()
    assert call(one, "two") is None
    assert call(two, "two") == "two"
    two.mend()
    assert comes_to_answer(one, "two")


def test_a_killed_machine_loses_every_process_and_can_be_started_again(
    pair: list[Machine],
) -> None:
    one, two = pair
    serve(two)
    (two.folder / "kept").write_text("on disk")
    two.run("sh", "-c", "setsid sleep 1000 & touch /tmp/ray/mine")
    two.kill()
    assert call(one, "two") is None
    two.boot()
    assert "sleep" not in two.run("ps", "-A", "-o", "args=").stdout
    assert two.run("ls", "/tmp/ray").stdout == ""
    assert (two.folder / "kept").read_text() == "on disk"
    serve(two)
    assert comes_to_answer(one, "two")


def test_a_command_that_takes_too_long_is_killed(pair: list[Machine]) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        pair[0].run("sleep", "1000", timeout=0.2)
    assert "sleep" not in pair[0].run("ps", "-A", "-o", "args=").stdout


def test_nothing_is_left_when_the_tests_are_killed(tmp_path: Path) -> None:
    mark = f"focus-lab-{os.getpid()}"
    program = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from network import machines
with machines(Path({str(tmp_path)!r}), "one", "two") as made:
    for machine in made:
        machine.start("sh", "-c", "setsid sleep 1000; : {mark}")
    print("up", flush=True)
    time.sleep(1000)
"""
    tests = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert tests.stdout is not None
    with tests.stdout:
        assert tests.stdout.readline() == "up\n"
    assert running(mark)
    tests.send_signal(signal.SIGKILL)
    tests.wait()
    deadline = time.monotonic() + 20
    while running(mark) or running(str(tmp_path)):
        assert time.monotonic() < deadline, running(mark) + running(str(tmp_path))
        time.sleep(0.05)


def running(words: str) -> list[str]:
    listing = subprocess.run(
        ["ps", "-A", "-ww", "-o", "args="], capture_output=True, text=True, check=True
    ).stdout
    return [line for line in listing.splitlines() if words in line]
