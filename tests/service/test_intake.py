"""The intake: who comes while others are written is written with the next ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from focus_lab.errors import SpecError
from focus_lab.lab.queue.entry import Entry
from focus_lab.lab.queue.queue import Queue
from focus_lab.lab.queue.submission import Submission, Submitter
from focus_lab.lab.store import Store
from focus_lab.specs.plan import plan
from service import intake
from service.intake import Intake

Make = Callable[[str], Submission]


@pytest.fixture
def make(tiny_experiment: Callable[..., Any], tmp_path: Path) -> Make:
    base = tiny_experiment()

    def call(name: str) -> Submission:
        spec = base.model_copy(update={"name": name})
        return Submission(spec, plan(spec), tmp_path / name, Submitter("alice"))

    return call


@pytest.fixture
def queue(tmp_path: Path) -> Any:
    store = Store(f"sqlite:///{tmp_path / 'lab.db'}")
    yield Queue(store)
    store.close()


def name_of(entry: Entry, created: bool) -> str:
    return f"{entry.name} {created}"


def test_many_at_once_get_their_own_answers_in_few_transactions(
    queue: Queue, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    original = intake.put_all

    def counted(to: Queue, submissions: Any) -> Any:
        sizes.append(len(submissions))
        return original(to, submissions)

    monkeypatch.setattr(intake, "put_all", counted)

    async def run() -> list[str]:
        taking = Intake(queue)
        return await asyncio.gather(
            *(taking.put(lambda n=n: make(f"e{n}"), name_of) for n in range(60))  # type: ignore[misc]
        )

    assert asyncio.run(run()) == [f"e{number} True" for number in range(60)]
    assert sum(sizes) == 60
    assert len(sizes) < 60


def test_one_that_fails_fails_alone_and_the_intake_goes_on(queue: Queue, make: Make) -> None:
    def unreadable() -> Submission:
        raise SpecError("spec: is none")

    def broken(entry: Entry, created: bool) -> str:
        raise RuntimeError("no answer for this one")

    async def run() -> tuple[list[Any], str]:
        taking = Intake(queue)
        found = await asyncio.gather(
            taking.put(lambda: make("one"), name_of),
            taking.put(unreadable, name_of),
            taking.put(lambda: make("two"), broken),
            taking.put(lambda: make("three"), name_of),
            return_exceptions=True,
        )
        return list(found), await taking.put(lambda: make("two"), name_of)

    found, again = asyncio.run(run())
    assert [found[0], found[3]] == ["one True", "three True"]
    assert isinstance(found[1], SpecError)
    assert isinstance(found[2], RuntimeError)
    assert again == "two False"


def test_whoever_goes_away_takes_nobody_along(queue: Queue, make: Make) -> None:
    async def run() -> str:
        taking = Intake(queue)
        gone = asyncio.create_task(taking.put(lambda: make("gone"), name_of))
        stays = asyncio.create_task(taking.put(lambda: make("stays"), name_of))
        while not taking._waiting:
            await asyncio.sleep(0)
        gone.cancel()
        return await stays

    assert asyncio.run(run()) == "stays True"
