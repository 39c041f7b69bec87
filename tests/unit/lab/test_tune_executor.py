"""What surrounds a trial under Ray Tune; no cluster is started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from focus_lab.errors import ClusterUnreachableError, DataError, FocusLabError
from focus_lab.lab import worker
from focus_lab.lab.executor import TrialJob
from focus_lab.lab.train_workers import EPOCH, METRICS
from focus_lab.lab.tune_executor import AGAIN, FAILURE, HISTORY, OUTCOME, TuneExecutor, train_trial
from focus_lab.lab.tune_executor import _make_relay as make_relay
from focus_lab.specs.training import ComputeSpec

pytestmark = pytest.mark.slow  # importing Ray takes seconds

NEEDS = {"cpu": 1.0, "gpu": 0.0}
HISTORY_OF_TWO = [(1, {"coco/AP": 0.1}), (2, {"coco/AP": 0.2})]


@pytest.fixture
def jobs(tmp_path: Path) -> dict[str, TrialJob]:
    spec = {"training": {"batch_size": 4}}
    return {name: TrialJob(name, name, spec, tmp_path / name) for name in ("a", "b")}


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    from ray import tune

    told: list[dict[str, Any]] = []
    monkeypatch.setattr(tune, "report", told.append)
    return told


@pytest.mark.parametrize(
    ("address", "kind", "said"),
    [
        (None, FocusLabError, r"Ray: does not start on this machine, got timed out; .* continues"),
        ("auto", ClusterUnreachableError, "no Ray cluster answers, got 'auto': timed out; start"),
    ],
)
def test_a_cluster_that_does_not_start_or_answer_is_a_sentence(
    address: str | None, kind: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def init(**settings: object) -> None:
        raise Exception("timed out\nwith more")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(kind, match=said):
        TuneExecutor(ComputeSpec(), address).start()


def test_a_local_cluster_that_does_not_start_in_time_is_started_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    asked: list[object] = []

    def init(**settings: object) -> None:
        asked.append(settings["address"])
        if len(asked) < 3:
            raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    TuneExecutor(ComputeSpec()).start()
    assert asked == ["local", "local", "local"]


def test_a_trial_reports_its_epochs_and_then_its_history(
    jobs: dict[str, TrialJob],
    reports: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def carry_out(job: TrialJob, on_epoch: Callable[..., None], *_: object) -> Any:
        assert job is jobs["b"]
        for epoch, metrics in HISTORY_OF_TWO:
            on_epoch(epoch, metrics)
        return HISTORY_OF_TWO

    monkeypatch.setattr(worker, "carry_out", carry_out)
    monkeypatch.chdir(tmp_path)
    train_trial({"trial_id": "b"}, jobs, ComputeSpec(), NEEDS, origin=Path("/"))
    assert Path.cwd() == Path("/")
    assert reports == [
        {EPOCH: 1, METRICS: {"coco/AP": 0.1}},
        {EPOCH: 2, METRICS: {"coco/AP": 0.2}},
        {OUTCOME: "success", HISTORY: HISTORY_OF_TWO},
    ]


def test_an_error_is_an_outcome_and_not_a_lost_worker(
    jobs: dict[str, TrialJob], reports: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def carry_out(*_: object) -> None:
        raise DataError("data: broken, got nothing; mend it")

    monkeypatch.setattr(worker, "carry_out", carry_out)
    elsewhere = Path("/a folder that another machine has")
    train_trial({"trial_id": "a"}, jobs, ComputeSpec(), NEEDS, origin=elsewhere)
    failure = {"kind": "DataError", "message": "data: broken, got nothing; mend it"}
    assert reports == [{OUTCOME: FAILURE, FAILURE: failure}]


def test_exhausted_memory_goes_on_with_half_the_images_when_asked_to(
    jobs: dict[str, TrialJob], reports: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def carry_out(job: TrialJob, on_epoch: object, workers: object, parts: int) -> Any:
        seen.append(parts)
        if parts < 4:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return HISTORY_OF_TWO

    monkeypatch.setattr(worker, "carry_out", carry_out)
    compute = ComputeSpec(halve_on_out_of_memory=True)
    train_trial({"trial_id": "a"}, jobs, compute, NEEDS, origin=Path("/"))
    assert seen == [1, 2, 4]
    assert [report[AGAIN]["kind"] for report in reports[:2]] == ["OutOfMemory"] * 2
    assert "going on with 1 instead of 2 images at a time" in reports[1][AGAIN]["message"]
    assert reports[2] == {OUTCOME: "success", HISTORY: HISTORY_OF_TWO}
    # A later sweep begins where this one found room.
    seen.clear()
    train_trial({"trial_id": "a"}, jobs, compute, NEEDS, origin=Path("/"))
    assert seen == [4]


class Told:
    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.events.append((name, *arguments))


def of(trial_id: str, failures: int = 0) -> Any:
    return SimpleNamespace(config={"trial_id": trial_id}, num_failures=failures)


def test_the_relay_tells_the_listener_each_thing_once(jobs: dict[str, TrialJob]) -> None:
    told = Told()
    relay = make_relay(told, jobs)  # type: ignore[arg-type]
    relay.on_trial_start(0, [], of("a"))
    relay.on_trial_result(0, [], of("a"), {EPOCH: 1, METRICS: {"x": 1.0}})
    relay.on_trial_result(0, [], of("a"), {"training_iteration": 1})
    relay.on_trial_result(0, [], of("a"), {OUTCOME: "success", HISTORY: HISTORY_OF_TWO})
    # Tune repeats the last result of a function that has returned.
    relay.on_trial_result(0, [], of("a"), {OUTCOME: "success", HISTORY: HISTORY_OF_TWO})
    # It starts a trial again whose process died after its last word.
    relay.on_trial_start(0, [], of("a"))
    assert told.events == [
        ("started", "a"),
        ("epoch", "a", 1, {"x": 1.0}),
        ("succeeded", "a", HISTORY_OF_TWO),
    ]
    assert relay.open == {"b"}


def test_a_worker_that_is_lost_too_often_fails_its_trial(jobs: dict[str, TrialJob]) -> None:
    told = Told()
    relay = make_relay(told, jobs)  # type: ignore[arg-type]
    relay.on_trial_error(0, [], of("b", failures=3))
    relay.on_trial_error(0, [], of("b", failures=3))
    [(name, trial_id, failure)] = told.events
    assert (name, trial_id, failure.kind) == ("failed", "b", "WorkerLost")
    assert "got 3 times" in failure.message
    assert "run the same command" in failure.message
