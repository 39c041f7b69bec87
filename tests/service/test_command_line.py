"""The command line with --server: the service answers on a port, tests play drivers."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import scenery as scenes
import structlog
import yaml
from chaos import free_port
from listener import Listener

from focus_lab import cli
from focus_lab.cli import remote
from focus_lab.client import Client
from focus_lab.client import client as client_module
from focus_lab.client.models import Event
from focus_lab.errors import TrackerError
from focus_lab.lab.driver import trial_folder
from focus_lab.lab.queue.dispatcher import Dispatcher
from focus_lab.lab.queue.events import Cursor
from focus_lab.lab.queue.jobs import MemoryJobs
from focus_lab.lab.queue.states import QueueState
from focus_lab.lab.states import TrialState
from focus_lab.lab.tokens import Scope
from focus_lab.lab.trial_log import LOGS
from service.state import State

SWEEP = {"axes": {scenes.RATIO: [0.5, 1.0]}, "seeds": [0]}
Play = Callable[[Event], None]


class Done(NamedTuple):
    code: Any
    out: str
    err: str


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The service's log would stand among what the command prints."""
    with structlog.testing.capture_logs():
        yield


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    for name in ("FOCUS_LAB_TOKEN", "FOCUS_LAB_TOKEN_FILE", "FOCUS_LAB_SERVER"):
        monkeypatch.delenv(name, raising=False)

    def call(*words: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["focus-lab", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Done(stop.value.code, captured.out, captured.err)

    return call


@pytest.fixture
def file(tmp_path: Path, spec: Callable[..., dict[str, Any]]) -> Path:
    """An experiment of two cells."""
    made = tmp_path / "spec.yaml"
    made.write_text(yaml.safe_dump(spec("tiny", sweep=SWEEP)))
    return made


class Stage:
    """Where a test plays what happens while a command follows.

    It plays when an event has reached the command, and where the command would wait.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.play: Play = lambda event: None
        self.wait: Callable[[], None] = lambda: None
        self.seen: list[str] = []

    def monotonic(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds
        self.wait()


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    made = Stage()

    class Watched(Client):
        def __init__(self, *given: Any, **options: Any) -> None:
            super().__init__(*given, pause=made.pause, **options)

        def events(
            self, name: str | None = None, after: str | None = None
        ) -> Iterator[tuple[str, Event]]:
            for event_id, event in super().events(name, after):
                made.seen.append(event_id)
                made.play(event)
                yield event_id, event

    monkeypatch.setattr(remote, "Client", Watched)
    monkeypatch.setattr(remote, "time", SimpleNamespace(sleep=made.pause))
    monkeypatch.setattr(client_module, "time", made)
    return made


@pytest.fixture
def driver(stage: Stage, scenery: scenes.Scenery, state: State) -> Callable[..., Play]:
    """Starts an experiment that is submitted, trains its trials, ends it."""

    def make(outcome: str = "succeeded", message: str | None = None) -> Play:
        good = outcome == "succeeded"

        def play(event: Event) -> None:
            if event.kind == "submitted":
                scenery.entries["tiny"] = state.queue.entry("tiny")
                scenery.start("tiny")
            elif event.kind == "started":
                first, second = scenery.trials("tiny")
                scenery.train("tiny", first, 2, TrialState.SUCCEEDED)
                end = TrialState.SUCCEEDED if good else TrialState.FAILED
                scenery.train("tiny", second, 2, end, message or "")
                write_report(state)
                scenery.end("tiny", outcome, message)

        return play

    return make


def write_report(state: State, name: str = "tiny") -> None:
    folder = state.queue.store.experiment(name).folder / "report"
    folder.mkdir(parents=True)
    (folder / "report.txt").write_text("a table of cells\n")
    (folder / "report.html").write_text("<!doctype html>a page")
    content = {"exploratory": ["a search"], "cells": [{"cell": "baseline"}]}
    (folder / "report.json").write_text(json.dumps(content))


def everything(state: State, name: str = "tiny") -> list[str]:
    """The ids of all events of an experiment."""
    entry = state.queue.entry(name)
    return [str(e.cursor) for e in state.events.after(Cursor(), experiment_id=entry.id, limit=999)]


def sentence(done: Done) -> str:
    """The one error that was told."""
    assert done.out == ""
    [error] = [line for line in done.err.splitlines() if line.startswith("error: ")]
    return error


# A sweep


def test_a_sweep_is_queued_followed_and_ends_with_its_result(
    run: Callable[..., Done],
    address: str,
    file: Path,
    stage: Stage,
    driver: Callable[..., Play],
    state: State,
) -> None:
    stage.play = driver()
    done = run("sweep", file, "--server", address)
    assert done.code == 0
    assert done.out.splitlines() == [
        "a table of cells",
        f"report: {address}/experiments/tiny/report",
    ]
    lines = done.err.splitlines()
    assert lines[0] == f"tiny: queued, 2 trials; {address}/ui/experiments/tiny"
    told = "\n".join(lines)
    for text in ("tiny: starting", "tiny: running", "epoch 2/12", "AP 0.", "tiny: succeeded"):
        assert text in told
    assert len(set(lines)) == len(lines)
    assert stage.seen == everything(state)
    again = run("sweep", file, "--server", address)
    assert (again.code, again.out) == (0, done.out)
    assert "is there already" in again.err


def test_a_sweep_prints_its_result_as_json(
    run: Callable[..., Done], address: str, file: Path, stage: Stage, driver: Callable[..., Play]
) -> None:
    stage.play = driver()
    done = run("sweep", file, "--server", address, "--json")
    assert done.code == 0
    content = json.loads(done.out)
    assert content["experiment"]["state"] == "SUCCEEDED"
    assert [trial["status"] for trial in content["trials"]] == ["SUCCEEDED"] * 2
    assert content["trials"][0]["metrics"]["coco/AP"] > 0
    assert content["exploratory"] == ["a search"]
    assert content["cells"] == [{"cell": "baseline"}]


def test_a_sweep_that_fails_says_why_and_has_the_code_of_a_failure(
    run: Callable[..., Done], address: str, file: Path, stage: Stage, driver: Callable[..., Play]
) -> None:
    stage.play = driver("failed", "1 of 2 trials failed: too hot")
    done = run("sweep", file, "--server", address)
    assert done.code == 1
    assert "a table of cells" in done.out
    assert "tiny: failed: 1 of 2 trials failed: too hot" in done.err
    assert "failed: keep_ratio=1.0-seed0: 1 of 2 trials failed: too hot" in done.err


@pytest.mark.parametrize(
    ("action", "word"), [("cancel", "tiny: cancelled"), ("pause", "tiny: paused")]
)
def test_a_sweep_that_a_person_ends_is_no_success(
    run: Callable[..., Done], address: str, file: Path, stage: Stage, action: str, word: str
) -> None:
    def play(event: Event) -> None:
        if event.kind == "submitted":
            with Client(address) as other:
                getattr(other, action)("tiny")

    stage.play = play
    done = run("sweep", file, "--server", address)
    assert (done.code, done.out) == (1, "")
    assert done.err.splitlines()[-1] == word
    assert "has no report" in done.err


def test_a_sweep_goes_on_where_its_stream_broke(
    run: Callable[..., Done],
    listener: Listener,
    address: str,
    file: Path,
    stage: Stage,
    driver: Callable[..., Play],
    state: State,
) -> None:
    usual, tries = driver(), 0

    def play(event: Event) -> None:
        # While the first epochs are on their way the service dies, and everything ends meanwhile.
        usual(event)
        if event.kind == "started":
            listener.stop(at_once=True)

    def wait() -> None:
        nonlocal tries
        tries += 1
        if tries == 3:
            listener.start()

    stage.play, stage.wait = play, wait
    done = run("sweep", file, "--server", address)
    assert done.code == 0
    assert tries >= 3
    assert stage.seen == everything(state)
    lines = done.err.splitlines()
    # Once for what the command had asked meanwhile, once for a stream that was cut.
    assert sum("does not answer" in line for line in lines) in (1, 2)
    epochs = [line for line in lines if "epoch" in line]
    assert len(epochs) == len(set(epochs)) == 4
    assert [line for line in lines if line.startswith("tiny: ")][-2:] == [
        "tiny: running", "tiny: succeeded",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_sweep_outlasts_several_deaths_of_the_service(
    run: Callable[..., Done],
    listener: Listener,
    address: str,
    file: Path,
    stage: Stage,
    driver: Callable[..., Play],
    state: State,
) -> None:
    usual, deaths = driver(), 0

    def play(event: Event) -> None:
        nonlocal deaths
        usual(event)
        if event.kind in ("submitted", "admitted", "trial", "reported") and deaths < 4:
            deaths += 1
            listener.stop(at_once=deaths % 2 == 0)
            # The command asks for the experiment, or for events, and gets no answer at first.
            stage.wait = once(listener.start)

    stage.play = play
    done = run("sweep", file, "--server", address)
    assert done.code == 0
    assert deaths == 4
    assert stage.seen == everything(state)


def once(action: Callable[[], None]) -> Callable[[], None]:
    left = [action]
    return lambda: left.pop()() if left else None


def test_options_of_this_machine_do_not_go_with_a_service(
    run: Callable[..., Done], file: Path
) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    for words in (
        ["--over-budget"],
        ["--executor", "in-process"],
        ["--executor", "ray"],
        ["--address", "auto"],
        ["--ship"],
        ["--only", "keep_ratio=0.5"],
    ):
        done = run("sweep", file, "--server", nowhere, *words)
        assert done.code == 2
        assert sentence(done).startswith(f"error: {words[0]}: a service ")
        assert "leave it out with --server" in done.err
    several = run("sweep", file, "--server", nowhere, "--ship", "--address", "auto")
    assert sentence(several).startswith("error: --address, --ship: a service decides")


def test_an_address_of_the_environment_is_meant_for_others(
    run: Callable[..., Done],
    address: str,
    file: Path,
    stage: Stage,
    driver: Callable[..., Play],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FOCUS_LAB_ADDRESS", "auto")
    monkeypatch.setenv("FOCUS_LAB_SERVER", address)
    stage.play = driver()
    assert run("sweep", file).code == 0


# Other commands


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting takes seconds of a process with torch."""
    known = {"cost/params": 1.5e6, "cost/gflops": 0.25}
    cells = ("keep_ratio=0.5", "keep_ratio=1.0")
    monkeypatch.setattr(
        "service.submission.Costs._count", lambda self, content: dict.fromkeys(cells, known)
    )


@pytest.mark.usefixtures("costs")
def test_a_plan_is_shown_whole_or_for_some_cells(
    run: Callable[..., Done], address: str, file: Path
) -> None:
    whole = run("plan", file, "--server", address)
    assert whole.code == 0
    assert "2 trials of 2 cells." in whole.out
    assert "1.50 M" in whole.out
    done = run("plan", file, "--server", address, "--json", "--only", "keep_ratio=1.0")
    content = json.loads(done.out)
    assert (content["trials"], [cell["cell"] for cell in content["cells"]]) == (
        1, ["keep_ratio=1.0"],
    )  # fmt: skip
    wrong = run("plan", file, "--server", address, "--only", "nonsense")
    assert wrong.code == 2
    assert "--only: no such cell, got 'nonsense'; cells are" in sentence(wrong)


def test_a_plan_as_json_has_the_keys_of_one_made_here(
    run: Callable[..., Done], address: str, file: Path
) -> None:
    of_service = json.loads(run("plan", file, "--server", address, "--json").out)
    here = json.loads(run("plan", file, "--no-time", "--json").out)
    for cell in here["cells"]:
        # How many steps a trial takes is known where its data lie.
        assert cell["steps"] > 0
        cell["steps"] = None
    assert of_service == here


def test_what_there_is_is_listed(
    run: Callable[..., Done], address: str, scenery: scenes.Scenery, state: State
) -> None:
    empty = run("list", "--server", address)
    assert (empty.code, empty.out.strip()) == (
        0, "no experiments yet; run `focus-lab sweep FILE --server URL`",
    )  # fmt: skip
    scenery.submit("tiny", description="how many?")
    done = run("list", "--server", address)
    assert done.code == 0
    for text in ("tiny", "ann", "queued", "how many?"):
        assert text in done.out
    [found] = json.loads(run("list", "--server", address, "--json").out)
    assert (found["name"], found["state"]) == ("tiny", "QUEUED")
    scenery.start("tiny")
    scenery.train("tiny", scenery.trials("tiny")[0], 2, TrialState.SUCCEEDED)
    [found] = json.loads(run("list", "--server", address, "--json").out)
    assert (found["state"], found["states"]) == ("RUNNING", {"SUCCEEDED": 1})
    url = state.queue.store.database.url
    [here] = json.loads(run("list", "--store", url, "--json").out)
    assert here.items() <= (found | {"created": here["created"]}).items()


def test_the_status_says_where_trials_are(
    run: Callable[..., Done], address: str, scenery: scenes.Scenery, dispatcher: Dispatcher
) -> None:
    scenery.submit("tiny", sweep=SWEEP)
    waits = run("status", "tiny", "--server", address)
    assert waits.code == 0
    assert "tiny: queued" in waits.out
    assert "waits, number " in waits.out
    scenery.start("tiny")
    scenery.train("tiny", scenery.trials("tiny")[0], 2, TrialState.FAILED, "too hot")
    done = run("status", "tiny", "--server", address)
    assert done.code == 0
    assert "tiny: running" in done.out
    first, second = (line for line in done.out.splitlines() if "seed" in line)
    assert re.search(r"failed +\d +2/\d +0\.\d{3} +too hot", first)
    assert re.search(r"pending +\d +0/\d *$", second)
    found = json.loads(run("status", "tiny", "--server", address, "--json").out)
    assert [trial["status"] for trial in found["trials"]] == ["FAILED", "PENDING"]


def test_the_status_needs_no_tracker(
    run: Callable[..., Done], address: str, scenery: scenes.Scenery, state: State,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def away(*_: object) -> None:
        raise TrackerError("MLflow does not answer")

    scenery.submit("tiny", sweep=SWEEP)
    scenery.start("tiny")
    scenery.train("tiny", scenery.trials("tiny")[0], 2, TrialState.SUCCEEDED)
    monkeypatch.setattr(state.tracker, "curves", away)
    # Longer than it has patience: it does not ask a second time.
    monkeypatch.setattr(client_module, "_PAUSES_S", (3600.0,))
    done = run("status", "tiny", "--server", address)
    assert done.code == 0
    assert re.search(r"succeeded +\d +0/\d *$", done.out, re.MULTILINE)


def test_the_service_may_stand_before_the_command_too(
    run: Callable[..., Done],
    address: str,
    scenery: scenes.Scenery,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scenery.submit("tiny")
    nowhere = f"http://127.0.0.1:{free_port()}"
    assert json.loads(run("--server", address, "list", "--json").out)[0]["name"] == "tiny"
    assert run("--server", address, "pause", "tiny").out == "tiny: paused\n"
    # The nearest counts, and any before the environment.
    assert run("--server", nowhere, "resume", "tiny", "--server", address).code == 0
    monkeypatch.setenv("FOCUS_LAB_SERVER", nowhere)
    assert run("--server", address, "cancel", "tiny").out == "tiny: cancelled\n"
    monkeypatch.setenv("FOCUS_LAB_SERVER", address)
    assert run("cancel", "tiny").code == 0


@pytest.mark.parametrize("command", [("doctor",), ("token", "list"), ("data", "shapes", "x")])
def test_a_command_of_this_machine_alone_refuses_a_service(
    run: Callable[..., Done], command: tuple[str, ...]
) -> None:
    done = run("--server", "http://lab:8000", *command)
    assert done.code == 2
    assert sentence(done).startswith(
        f"error: --server: {command[0]} works on this machine alone, got 'http://lab:8000'; leave "
        "it out, or take one of cancel, list, "
    )


def test_pausing_needs_a_service(run: Callable[..., Done]) -> None:
    done = run("pause", "tiny")
    assert done.code == 2
    assert "--server: pause is for experiments of a service, got none" in sentence(done)


def test_actions_say_the_state_that_they_lead_to(
    run: Callable[..., Done], address: str, scenery: scenes.Scenery
) -> None:
    scenery.submit("tiny")
    for action, said in [
        ("pause", "paused"), ("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled"),
        ("cancel", "cancelled"),
    ]:  # fmt: skip
        done = run(action, "tiny", "--server", address)
        assert (done.code, done.out, done.err) == (0, f"tiny: {said}\n", "")
    scenery.submit("other")
    run("pause", "other", "--server", address)
    wrong = run("retry", "other", "--server", address)
    assert wrong.code == 2
    assert "paused" in sentence(wrong)


@pytest.mark.parametrize(("begun", "said"), [(False, "queued again"), (True, "has begun already")])
def test_what_is_tried_again_is_followed_to_its_end(
    run: Callable[..., Done],
    address: str,
    stage: Stage,
    scenery: scenes.Scenery,
    state: State,
    begun: bool,
    said: str,
) -> None:
    def play(event: Event) -> None:
        if event.kind == "retry":
            scenery.start("tiny")
        elif event.kind == "started":
            [trial] = scenery.trials("tiny")
            scenery.train("tiny", trial, 2, TrialState.SUCCEEDED)
            write_report(state)
            scenery.end("tiny", "succeeded")

    scenery.submit("tiny")
    if begun:
        scenery.start("tiny")
    else:
        run("cancel", "tiny", "--server", address)
    stage.play = play
    done = run("retry", "tiny", "--server", address, "--json")
    assert done.code == 0
    assert done.err.splitlines()[0] == f"tiny: {said}, 1 trials; {address}/ui/experiments/tiny"
    content = json.loads(done.out)
    assert content["experiment"]["state"] == "SUCCEEDED"


@pytest.mark.parametrize(("failure", "code"), [("DataError", 2), ("WorkerLost", 1)])
def test_an_experiment_that_only_its_user_can_mend_ends_with_the_code_of_a_mistake(
    run: Callable[..., Done],
    address: str,
    file: Path,
    stage: Stage,
    scenery: scenes.Scenery,
    state: State,
    failure: str,
    code: int,
) -> None:
    def play(event: Event) -> None:
        if event.kind == "submitted":
            scenery.entries["tiny"] = state.queue.entry("tiny")
            scenery.start("tiny")
        elif event.kind == "started":
            for trial in scenery.trials("tiny"):
                state.queue.store.move(
                    state.queue.store.move(trial, TrialState.RUNNING), TrialState.FAILED,
                    failure=failure, message="no such folder",
                )  # fmt: skip
            scenery.end("tiny", "failed", "all trials failed")

    stage.play = play
    done = run("sweep", file, "--server", address, "--json")
    assert done.code == code
    trials = json.loads(done.out)["trials"]
    assert [trial["failure_is_users"] for trial in trials] == [code == 2] * 2


def test_a_report_is_printed_and_its_page_fetched(
    run: Callable[..., Done],
    address: str,
    scenery: scenes.Scenery,
    state: State,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    scenery.submit("tiny")
    none = run("report", "tiny", "--server", address)
    assert none.code == 2
    assert "has no report (txt) yet" in sentence(none)
    write_report(state)
    done = run("report", "tiny", "--server", address)
    assert (done.code, done.out) == (0, "a table of cells\nreport: tiny.html\n")
    assert Path("tiny.html").read_text() == "<!doctype html>a page"
    content = json.loads(run("report", "tiny", "--server", address, "--json").out)
    assert content["cells"] == [{"cell": "baseline"}]


# Logs


def test_a_log_is_printed_and_waited_for_while_the_cluster_is_away(
    run: Callable[..., Done], address: str, scenery: scenes.Scenery, jobs: MemoryJobs, stage: Stage
) -> None:
    scenery.submit("tiny")
    assert run("logs", "tiny", "--server", address) == (0, "", "")
    scenery.start("tiny")
    jobs.reachable = False

    def back() -> None:
        jobs.reachable = True

    stage.wait = back
    done = run("logs", "tiny", "--server", address)
    assert (done.code, done.out) == (0, "--- attempt 1\n")
    assert "cannot do it now" in done.err
    wrong = run("logs", "tiny", "--trial", "nope", "--server", address)
    assert wrong.code == 2
    assert "has no log of rank 0" in sentence(wrong)


def test_a_log_is_followed_without_repetition_however_long_it_is(
    run: Callable[..., Done],
    address: str,
    scenery: scenes.Scenery,
    state: State,
    stage: Stage,
) -> None:
    scenery.submit("tiny")
    scenery.start("tiny")
    [trial] = scenery.trials("tiny")
    log = trial_folder(state.queue.store.experiment("tiny"), trial) / LOGS / "rank-0.log"
    log.parent.mkdir(parents=True)
    lines = [f"step {number}: größer, 日本\n" for number in range(50_000)]
    content = "".join(lines).encode()
    # Cut anywhere, within characters as well.
    places = [900_001, 999_999, 1_000_003, 1_050_001, 1_050_002, 1_300_017, len(content)]
    log.write_bytes(content[: places[0]])
    stage_no = 0

    def more() -> None:
        nonlocal stage_no
        stage_no += 1
        if stage_no < len(places):
            with log.open("ab") as opened:
                opened.write(content[places[stage_no - 1] : places[stage_no]])
        else:
            scenery.end("tiny", "succeeded")

    stage.wait = more
    done = run("logs", "tiny", "--trial", trial.name, "--follow", "--server", address)
    assert done.code == 0
    assert done.out == content.decode()


def test_what_is_new_of_a_log_is_found_where_its_beginning_has_moved() -> None:
    log = "".join(f"line {number}\n" for number in range(500))
    for known, begin in [(1000, 0), (1000, 300), (3000, 2500), (4000, 3001)]:
        assert remote.unseen(log[:known], log[begin:]) == log[known:]
        half = "\ufffd" + log[begin + 1 :] if begin else log
        assert remote.unseen(log[:known], half) == log[known:]
    same = "the same line\n" * 100
    assert remote.unseen(same, same + "another\n") == "another\n"
    assert remote.unseen(same, same[700:] + "another\n") == "another\n"
    # Nothing in common: all of it is new.
    assert remote.unseen(log, same) == same
    assert remote.unseen("", log) == log
    assert remote.unseen(log, "") == ""


# What is wrong


@pytest.mark.parametrize(
    "words",
    [
        "sweep", "plan", "list", "status tiny", "logs tiny", "cancel tiny", "pause tiny",
        "resume tiny", "retry tiny", "report tiny",
    ],
)  # fmt: skip
class TestWhatIsWrong:
    """With every command."""

    @pytest.fixture
    def command(self, words: str, file: Path) -> list[str]:
        return [words, str(file)] if words in ("sweep", "plan") else words.split()

    def test_an_address_where_nobody_answers_is_a_sentence(
        self, run: Callable[..., Done], command: list[str], stage: Stage
    ) -> None:
        nowhere = f"http://127.0.0.1:{free_port()}"
        done = run(*command, "--server", nowhere)
        assert done.code == 1
        said = sentence(done)
        assert said.startswith(f"error: service {nowhere}: does not answer, got ")
        assert said.endswith("start it with `focus-lab serve`, or check --server")
        assert 3 < stage.now < 70

    def test_what_is_no_address_is_a_sentence(
        self, run: Callable[..., Done], command: list[str]
    ) -> None:
        done = run(*command, "--server", "localhost:8000")
        assert done.code == 2
        assert "--server: must be an address, got 'localhost:8000'" in sentence(done)

    @pytest.mark.parametrize("given_settings", [{"auth": True}])
    def test_a_wrong_token_is_a_sentence(
        self,
        run: Callable[..., Done],
        command: list[str],
        address: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        none = run(*command, "--server", address)
        assert none.code == 2
        assert "a valid token is needed, got none" in sentence(none)
        monkeypatch.setenv("FOCUS_LAB_TOKEN", "nonsense")
        wrong = run(*command, "--server", address)
        assert wrong.code == 2
        assert "got one that is unknown, expired or revoked" in sentence(wrong)
        monkeypatch.setenv("FOCUS_LAB_TOKEN_FILE", str(tmp_path / "nowhere"))
        missing = run(*command, "--server", address)
        assert missing.code == 2
        assert "FOCUS_LAB_TOKEN_FILE: cannot be read" in sentence(missing)


@pytest.mark.parametrize("given_settings", [{"auth": True}])
def test_the_token_may_lie_in_a_file(
    run: Callable[..., Done],
    address: str,
    state: State,
    scenery: scenes.Scenery,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scenery.submit("tiny")
    (tmp_path / "token").write_text(f"{state.tokens.create('ann', Scope.SUBMIT)}\n")
    monkeypatch.setenv("FOCUS_LAB_TOKEN_FILE", str(tmp_path / "token"))
    done = run("cancel", "tiny", "--server", address)
    assert (done.code, done.out) == (0, "tiny: cancelled\n")
    assert state.queue.entry("tiny").state is QueueState.CANCELLED
