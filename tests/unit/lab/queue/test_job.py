"""What a job runs: one attempt, from its beginning to its last word, under the lease."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog
from rich.console import Console

from focus_lab.errors import (
    ClusterUnreachableError,
    DataError,
    FocusLabError,
    StoreError,
    StoreUnreachableError,
)
from focus_lab.lab.executor import InProcessExecutor, Listener, TrialJob
from focus_lab.lab.failure import Failure
from focus_lab.lab.lab import Lab
from focus_lab.lab.lab import store_url as embedded_store
from focus_lab.lab.patience import Patience
from focus_lab.lab.queue import job
from focus_lab.lab.queue.attempts import Attempt, Attempts
from focus_lab.lab.queue.entry import Entry
from focus_lab.lab.queue.events import Cursor, EventLog
from focus_lab.lab.queue.queue import Queue
from focus_lab.lab.queue.states import Action, QueueState
from focus_lab.lab.states import TrialState
from focus_lab.lab.store import Store
from focus_lab.lab.tracking import MemoryTracker
from focus_lab.specs.experiment import ExperimentSpec

pytestmark = pytest.mark.usefixtures("check_audit")
Admit = Callable[..., Attempt]
Submit = Callable[..., tuple[Entry, bool]]
S = QueueState


class Acting:
    """Plays trials: each succeeds, or fails with the sentence that is given for its name."""

    concurrent_trials = 1

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    def __init__(self, failing: dict[str, str] | None = None) -> None:
        self.failing = failing or {}
        self.names: list[str] = []
        self.meanwhile: Callable[[], None] = lambda: None

    def run(self, jobs: Sequence[TrialJob], listener: Listener) -> None:
        for one in jobs:
            self.names.append(one.name)
            listener.started(one.trial_id)
            self.meanwhile()
            if one.name in self.failing:
                listener.failed(one.trial_id, Failure("DataError", self.failing[one.name]))
                continue
            metrics = {"loss/total": 1.5, "coco/AP": 0.25}
            listener.epoch(one.trial_id, 1, metrics)
            listener.succeeded(one.trial_id, [(1, metrics)])


class Driver:
    """Runs jobs in this process, with a lab that draws no reports."""

    def __init__(self, store_url: str, home: Path) -> None:
        self.store_url, self.home = store_url, home
        self.executor: Any = Acting()
        self.made_for: list[Attempt] = []
        self.output = io.StringIO()

    def __call__(self, attempt: Attempt) -> int:
        def make(spec: ExperimentSpec, given: Attempt) -> Any:
            self.made_for.append(given)
            return self.executor

        console = Console(file=self.output, width=1000, markup=False)
        return job.run(
            attempt.entry.id, attempt.entry.attempt, self.home, self.store_url, None, make, console
        )


@pytest.fixture
def driver(store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    tracker = MemoryTracker()

    @contextlib.contextmanager
    def launched(
        spec: Any, planned: Any, home: Path, store: str, tracking: None, *, executor: Any
    ) -> Iterator[Lab]:
        opened = Store(store)
        try:
            yield Lab(opened, tracker, home)
        finally:
            opened.close()

    monkeypatch.setattr(job, "launch", launched)
    monkeypatch.setattr(Lab, "_measure_latency", lambda self, experiment: None)
    monkeypatch.setattr(Lab, "report", lambda self, name: Path())
    monkeypatch.setattr(job, "Patience", partial(Patience, sleep=lambda seconds: None))
    return Driver(store_url, tmp_path)


@pytest.fixture
def attempt(submit: Submit, admit: Admit) -> Attempt:
    """Admitted, and not begun."""
    return admit(submit()[0], begin=False)


def failing(times: int, call: Callable[..., Any], *, after: bool = False) -> Callable[..., Any]:
    """A call that the store does not answer at first: it was not heard, or its answer was not."""
    left = [times]

    def attempted(*arguments: Any) -> Any:
        answer = call(*arguments) if after else None
        if left[0]:
            left[0] -= 1
            raise StoreUnreachableError("the store is away")
        return answer if after else call(*arguments)

    return attempted


def trial_states(store: Store, attempt: Attempt) -> list[TrialState]:
    return [trial.state for trial in store.trials(attempt.entry.id)]


def test_an_attempt_that_succeeds_says_so(
    driver: Driver, attempt: Attempt, queue: Queue, store: Store, settle: Any, log: EventLog
) -> None:
    assert driver(attempt) == 0
    assert driver.made_for[0].trials == attempt.trials
    assert driver.executor.names == ["keep_ratio=0.2-seed0", "keep_ratio=0.5-seed0"]
    assert trial_states(store, attempt) == [TrialState.SUCCEEDED] * 2
    assert store.lease_owner(attempt.entry.id) is None
    events = log.after(Cursor(), experiment_id=attempt.entry.id)
    assert [event.kind for event in events] == (
        ["submitted", "admitted", "started"] + ["trial"] * 6 + ["reported"]
    )
    assert events[4].data == {
        "trial": "keep_ratio=0.2-seed0", "state": "RUNNING", "epoch": 1, "epochs": 2,
        "loss": 1.5, "ap": 0.25, "message": None,
    }  # fmt: skip
    assert settle(attempt.entry).state is S.SUCCEEDED


def test_an_attempt_with_failed_trials_says_which(
    driver: Driver, attempt: Attempt, settle: Any
) -> None:
    driver.executor = Acting({"keep_ratio=0.5-seed0": "the data are gone"})
    assert driver(attempt) == 1
    ended = settle(attempt.entry)
    assert (ended.state, ended.message) == (
        S.FAILED,
        "1 of 2 trials have no result; the first is keep_ratio=0.5-seed0: the data are gone",
    )


def test_a_retried_experiment_goes_on_with_what_is_left(
    driver: Driver, attempt: Attempt, queue: Queue, settle: Any, admit: Admit
) -> None:
    driver.executor = Acting({"keep_ratio=0.5-seed0": "the data are gone"})
    driver(attempt)
    settle(attempt.entry)
    driver.executor = Acting()
    again = admit(queue.act("one", Action.RETRY, "alice"), begin=False)
    assert driver(again) == 0
    assert driver.executor.names == ["keep_ratio=0.5-seed0"]
    assert settle(again.entry).state is S.SUCCEEDED


def test_what_is_the_users_to_mend_is_a_failure_with_its_sentence(
    driver: Driver, attempt: Attempt, settle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **more: Any) -> Any:
        raise DataError("data.root: does not exist, got [/data]; mount it")

    monkeypatch.setattr(job, "launch", refuse)
    assert driver(attempt) == 1
    ended = settle(attempt.entry)
    assert (ended.state, ended.message) == (
        S.FAILED,
        "data.root: does not exist, got [/data]; mount it",
    )
    assert "data.root" in driver.output.getvalue()


def test_what_is_beyond_its_budget_is_refused_once(
    driver: Driver, submit: Submit, admit: Admit, settle: Any, queue: Queue
) -> None:
    attempt = admit(submit(compute={"budget_hours": 1e-6})[0], begin=False)
    assert driver(attempt) == 1
    ended = settle(attempt.entry)
    assert ended.state is S.FAILED
    assert "got a budget of 1e-06; take fewer cells" in ended.message
    assert "retry it as it is" in ended.message
    assert driver.executor.names == []
    again = admit(queue.act("one", Action.RETRY, "alice"), begin=False)
    assert driver(again) == 0
    assert settle(again.entry).state is S.SUCCEEDED


@pytest.mark.parametrize("action", [Action.CANCEL, Action.PAUSE])
def test_an_attempt_that_nobody_wants_any_more_does_nothing(
    driver: Driver, attempt: Attempt, queue: Queue, store: Store, action: Action
) -> None:
    queue.act("one", action, "alice")
    before = queue.entry("one")
    assert driver(attempt) == job.SUPERSEDED
    assert "attempt 1 is not wanted" in driver.output.getvalue()
    assert driver.made_for == []
    assert queue.entry("one") == before
    assert store.lease_owner(before.id) is None


def test_while_another_process_carries_it_out_nothing_has_begun(
    driver: Driver, attempt: Attempt, queue: Queue, store: Store
) -> None:
    store.take_lease(attempt.entry.id, "elsewhere:1:0:0", 60, set())
    assert driver(attempt) == job.HELD
    assert driver.made_for == []
    assert queue.entry("one") == attempt.entry
    assert store.lease_owner(attempt.entry.id) == "elsewhere:1:0:0"


def test_it_holds_the_lease_from_before_its_beginning_to_after_its_last_word(
    driver: Driver, attempt: Attempt, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[tuple[str, bool]] = []
    entry_id = attempt.entry.id

    def watched(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watch(*arguments: Any) -> Any:
            held.append((name, store.has_lease(entry_id)))
            answer = call(*arguments)
            held.append((name, store.has_lease(entry_id)))
            return answer

        return watch

    monkeypatch.setattr(Attempts, "begin", watched("begin", Attempts.begin))
    monkeypatch.setattr(Attempts, "report", watched("report", Attempts.report))
    driver.executor.meanwhile = lambda: held.append(("trial", store.has_lease(entry_id)))
    assert driver(attempt) == 0
    names = ["begin"] * 2 + ["trial"] * 2 + ["report"] * 2
    assert held == [(name, True) for name in names]
    assert not store.has_lease(entry_id)


@pytest.mark.parametrize(
    ("action", "end"), [(None, S.QUEUED), (Action.PAUSE, S.PAUSED), (Action.CANCEL, S.CANCELLED)]
)
def test_an_interrupted_attempt_leaves_everything_for_the_next(
    driver: Driver,
    attempt: Attempt,
    queue: Queue,
    store: Store,
    settle: Any,
    action: Action | None,
    end: QueueState,
) -> None:
    def interrupt() -> None:
        if len(driver.executor.names) == 2:
            if action:
                queue.act("one", action, "alice")
            raise KeyboardInterrupt

    driver.executor.meanwhile = interrupt
    with pytest.raises(KeyboardInterrupt):
        driver(attempt)
    assert trial_states(store, attempt) == [TrialState.SUCCEEDED, TrialState.PENDING]
    assert store.lease_owner(attempt.entry.id) is None
    ended = settle(attempt.entry)
    # It was told to end: that is no loss.
    assert (ended.state, ended.losses) == (end, 0)


@pytest.mark.parametrize("call", ["begin", "report"])
@pytest.mark.parametrize("after", [False, True])
def test_a_store_that_is_away_for_a_while_is_waited_for(
    driver: Driver,
    attempt: Attempt,
    settle: Any,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    after: bool,
) -> None:
    monkeypatch.setattr(Attempts, call, failing(3, getattr(Attempts, call), after=after))
    assert driver(attempt) == 0
    assert "the store is away; trying again" in driver.output.getvalue()
    assert settle(attempt.entry).state is S.SUCCEEDED


def test_events_that_cannot_be_written_stop_nothing(
    driver: Driver, attempt: Attempt, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Attempts, "tell", failing(5, Attempts.tell))
    assert driver(attempt) == 0
    kinds = [event.kind for event in log.after(Cursor(), experiment_id=attempt.entry.id)]
    assert kinds.count("trial") == 1


@pytest.mark.parametrize("error", [StoreUnreachableError, ClusterUnreachableError])
def test_a_store_or_cluster_that_stays_away_says_nothing_of_the_experiment(
    driver: Driver, attempt: Attempt, settle: Any, error: type[FocusLabError]
) -> None:
    def away() -> None:
        raise error("it is away")

    driver.executor.meanwhile = away
    with pytest.raises(error):
        driver(attempt)
    again = settle(attempt.entry)
    assert (again.state, again.losses, again.message) == (S.QUEUED, 1, None)


def test_a_store_that_is_not_the_queues_is_said(
    driver: Driver, attempt: Attempt, tmp_path: Path
) -> None:
    driver.store_url = f"sqlite:///{tmp_path / 'missing.db'}"
    with pytest.raises(StoreError, match="there is none yet"):
        driver(attempt)
    driver.store_url = f"sqlite:///{tmp_path / 'other.db'}"
    Store(driver.store_url).close()
    with pytest.raises(StoreError, match="no such name or id, got"):
        driver(attempt)


def test_on_ray_as_many_trials_run_side_by_side_as_were_granted(
    attempt: Attempt, make_spec: Callable[..., ExperimentSpec]
) -> None:
    executor = job._on_ray(make_spec(), attempt)
    assert vars(executor)["_side_by_side"] == attempt.trials
    assert vars(executor)["_address"] == "auto"


# The process


@pytest.fixture
def call_main(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Calls the entry point with another `run`; returns its exit code."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    logs = structlog.get_config()

    def call(run: Callable[..., int]) -> Any:
        monkeypatch.setattr(job, "run", run)
        monkeypatch.setattr("sys.argv", ["job", "1" * 32, "7"])
        with pytest.raises(SystemExit) as ended:
            job.main()
        return ended.value.code

    yield call
    for number, handler in before.items():
        signal.signal(number, handler)
    structlog.configure(**logs)


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The log of a process, whose every line says of which attempt it is."""
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert {(line["experiment"], line["attempt"]) for line in lines} == {("1" * 32, 7)}
    return lines


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_the_process_reads_its_surroundings_and_ends_with_the_code(
    call_main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def run(*arguments: Any) -> int:
        given.append(arguments[:5])
        return 4

    for name in ("FOCUS_LAB_HOME", "FOCUS_LAB_STORE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    assert call_main(run) == 4
    monkeypatch.setenv("FOCUS_LAB_HOME", "/lab")
    monkeypatch.setenv("FOCUS_LAB_STORE", "postgresql://host/lab")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert call_main(run) == 4
    assert given == [
        ("1" * 32, 7, Path("runs"), None, None),
        ("1" * 32, 7, Path("/lab"), "postgresql://host/lab", "http://host:5000"),
    ]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_process_that_is_told_to_end_ends_in_order(
    call_main: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: Any) -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError
        finally:
            # A second one does not cut short what the first has begun.
            os.kill(os.getpid(), signal.SIGTERM)

    assert call_main(run) == 130
    assert [line["text"] for line in lines_of(capsys)] == ["stopped; what is done is kept"]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_what_keeps_a_process_from_its_work_is_a_sentence(
    call_main: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: Any) -> int:
        raise FocusLabError("store [x]: does not answer")

    assert call_main(run) == 1
    [line] = lines_of(capsys)
    assert line["text"] == "store [x]: does not answer; it is tried again"


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_what_a_driver_says_is_a_line_of_its_attempt_whatever_happens(
    call_main: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: Any) -> int:
        console = arguments[-1]
        job.ToldProgress(console).note("the tracker does not answer; trying again")
        console.print("a-seed0  epoch 1\n\nb-seed0  epoch 2", soft_wrap=True)
        raise ZeroDivisionError("nobody expected it")

    assert call_main(run) == 1
    *said, last = lines_of(capsys)
    assert [line["text"] for line in said] == [
        "the tracker does not answer; trying again", "a-seed0  epoch 1", "b-seed0  epoch 2",
    ]  # fmt: skip
    assert "ZeroDivisionError: nobody expected it" in last["exception"]


# With everything real but Ray


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_an_attempt_trains_and_reports(
    submit: Submit, admit: Admit, settle: Any, store: Store, tmp_path: Path, clock: Any
) -> None:
    attempt = admit(submit("one", 0.5, compute={"device": "cpu"})[0], begin=False)
    code = job.run(
        attempt.entry.id, 1, tmp_path, store.url, None, lambda spec, given: InProcessExecutor(),
        Console(quiet=True),
    )  # fmt: skip
    assert code == 0
    assert store.url == embedded_store(tmp_path)
    assert trial_states(store, attempt) == [TrialState.SUCCEEDED]
    assert (tmp_path / "one" / "report" / "report.html").is_file()
    assert settle(attempt.entry).state is S.SUCCEEDED
