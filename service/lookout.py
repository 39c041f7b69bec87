"""The lookout: looks through the queue for the board, in a process of its own.

To order ten thousand experiments is most of a second of Python's work. In the service's own process
every request of that second would wait for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

from focus_lab.errors import StoreError, StoreUnreachableError
from focus_lab.lab.database import Database
from focus_lab.lab.queue.admission import Place, Reason
from focus_lab.lab.queue.attempts import Attempts
from focus_lab.lab.queue.policy import Policy
from focus_lab.lab.queue.queue import Queue
from focus_lab.lab.store import Store
from service.board import look_through

_COMMAND = [sys.executable, "-c", "from service.lookout import main; main()"]


class Lookout:
    """Asks the process, which it starts when it is first asked, and again should it have died.

    Args:
        store: URL of the store.
        policy: gives the queue's as it is now.
    """

    def __init__(self, store: str, policy: Callable[[], Policy]) -> None:
        self._store, self._policy = store, policy
        self._told: Policy | None = None
        self._process: subprocess.Popen[str] | None = None

    def __call__(self) -> Mapping[str, Place]:
        """Everybody's place now. One may ask at a time.

        Raises:
            StoreError: the store cannot be read.
        """
        answer = json.loads(self._asked() or self._asked() or '{"error": null}')
        if "error" in answer:
            raise StoreUnreachableError(answer["error"])
        return _Places(answer)

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            assert process.stdout is not None
            # Without anybody who asks it ends by itself; what it has not heard is lost with it.
            with contextlib.suppress(OSError):
                process.stdin.close()
            process.wait(10)
            process.stdout.close()

    def _asked(self) -> str:
        """A line of its answers; nothing if it has died."""
        if self._told is not self._policy():
            # The process goes by the policy that it was told when it began.
            self.close()
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write("look\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except OSError:
            answer = ""
        if not answer:
            process.kill()
            self.close()
        return answer

    def _start(self) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(_COMMAND, stdin=pipe, stdout=pipe, text=True)
        assert self._process.stdin is not None
        self._told = self._policy()
        # By its input: others on the machine can read the arguments of a command.
        first = {"store": self._store, "policy": self._told.model_dump(mode="json")}
        self._process.stdin.write(json.dumps(first) + "\n")
        return self._process


class _Places(Mapping[str, Place]):
    """In the queue's order. Makes a place when it is asked for: few of ten thousand are.

    Args:
        told: experiments in order, for each the number of its sentence, and the sentences.
    """

    def __init__(self, told: dict[str, Any]) -> None:
        self._sentences: list[tuple[str, str]] = told["sentences"]
        numbers = enumerate(zip(told["order"], told["said"], strict=True), 1)
        self._places = {name: (position, said) for position, (name, said) in numbers}

    def __getitem__(self, name: str) -> Place:
        position, said = self._places[name]
        reason, text = self._sentences[said]
        return Place(position, Reason(reason), text)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _told(places: Mapping[str, Place]) -> dict[str, Any]:
    """Places as they are sent: thousands wait for the same reason, which is said once."""
    numbers: dict[tuple[str, str], int] = {}
    said = [
        numbers.setdefault((place.reason.value, place.text), len(numbers))
        for place in places.values()
    ]
    return {"order": list(places), "said": said, "sentences": list(numbers)}


def answer_all(questions: IO[str], answers: IO[str]) -> None:
    """What the process does: a line for each line, until there are no more.

    Args:
        questions: the first line says where the store is, any other one asks.
        answers: takes a JSON object a line: everybody's place, or an error.
    """
    first = json.loads(questions.readline())
    database = Database(first["store"], migrate=False)
    queue = Queue(Store(database), Policy.model_validate(first["policy"]))
    attempts = Attempts(database, queue.policy)
    for _ in questions:
        try:
            content: object = _told(look_through(queue, attempts))
        except StoreError as error:
            content = {"error": str(error)}
        print(json.dumps(content), file=answers, flush=True)
    database.close()


def main() -> None:
    """Entry point of the process; it ends when nobody is left who could ask."""
    # Ctrl-C is meant for the service.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Nobody waits for it as for an answer.
    os.nice(10)
    answer_all(sys.stdin, sys.stdout)
