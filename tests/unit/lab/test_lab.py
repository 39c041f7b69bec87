"""The lab: from a spec to its report, and on again."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from focus_lab.lab.executor import InProcessExecutor, Listener, TrialJob
from focus_lab.lab.interim_report import InterimReport
from focus_lab.lab.lab import Lab, artifact_root, embedded_tracking_uri
from focus_lab.lab.progress import PlainProgress
from focus_lab.lab.queue.queue import Queue
from focus_lab.lab.queue.states import Action
from focus_lab.lab.queue.submission import Submitter
from focus_lab.lab.store import LeaseHeldError, Store
from focus_lab.lab.tracking import MemoryTracker
from focus_lab.specs.experiment import ExperimentSpec
from focus_lab.specs.plan import plan

pytestmark = pytest.mark.slow  # trains, and draws reports

MakeExperiment = Callable[..., ExperimentSpec]
RATIO = "model.token_selection.keep_ratio"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    store = Store(f"sqlite:///{tmp_path / 'lab.db'}")
    yield Lab(store, MemoryTracker(), tmp_path)
    store.close()


def sweep(lab: Lab, spec: ExperimentSpec, executor: Any = None, **settings: Any) -> None:
    progress = PlainProgress(Console(quiet=True))
    lab.sweep(spec, plan(spec), executor or InProcessExecutor(), progress, **settings)


@pytest.fixture
def spec(tiny_experiment: MakeExperiment) -> ExperimentSpec:
    return tiny_experiment(training={"epochs": 1}, sweep={"axes": {RATIO: [0.2, 0.5]}})


class Counting(InProcessExecutor):
    """Counts the trials that it is given."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def run(self, jobs: Any, listener: Listener) -> None:
        self.names += [job.name for job in jobs]
        super().run(jobs, listener)


def test_a_sweep_ends_in_a_report_and_its_repetition_trains_nothing(
    lab: Lab, spec: ExperimentSpec
) -> None:
    sweep(lab, spec)
    page = lab.page("tiny")
    assert page.is_file()
    result = lab.result(lab.record("tiny"))
    assert json.loads(json.dumps(result)) == result
    assert result["exploratory"] == []
    assert [trial["status"] for trial in result["trials"]] == ["SUCCEEDED"] * 2
    assert [trial["cell"] for trial in result["trials"]] == ["keep_ratio=0.2", "keep_ratio=0.5"]
    for trial in result["trials"]:
        assert {"coco/AP", "cost/gflops", "cost/latency_ms"} <= set(trial["metrics"])
    assert result["experiment"]["folder"] == str(page.parent.parent)
    latency = (lab.home / "tiny" / "latency.json").read_text()

    executor = Counting()
    sweep(lab, spec, executor)
    again = lab.result(lab.record("tiny"))
    assert executor.names == []
    assert again["trials"] == result["trials"]
    assert (lab.home / "tiny" / "latency.json").read_text() == latency


class Looking(InProcessExecutor):
    """Looks at the report between two trials."""

    def __init__(self, page: Path, written: threading.Event) -> None:
        self.found: list[dict[str, Any]] = []
        self._machine, self._written = page.with_name("report.json"), written

    def run(self, jobs: Any, listener: Listener) -> None:
        for job in jobs:
            super().run([job], listener)
            assert self._written.wait(60)
            self.found.append(json.loads(self._machine.read_text()))


def test_a_sweep_that_runs_has_a_report_of_what_has_ended(
    lab: Lab, spec: ExperimentSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = threading.Event()

    def report(name: str) -> Path:
        page = Lab.report(lab, name)
        written.set()
        return page

    monkeypatch.setattr(lab, "report", report)
    monkeypatch.setattr("focus_lab.lab.lab.InterimReport", partial(InterimReport, first_s=0.0))
    looking = Looking(lab.home / "tiny" / "report" / "report.html", written)
    sweep(lab, spec, looking)
    first = {cell["name"]: cell["n"] for cell in looking.found[0]["cells"]}
    assert first == {"keep_ratio=0.2": 1, "keep_ratio=0.5": 0}
    assert lab.result(lab.record("tiny"))["cells"][1]["n"] == 1


def test_an_elastic_training_is_reported_at_every_ratio_of_its_axis(
    lab: Lab, tiny_experiment: MakeExperiment
) -> None:
    spec = tiny_experiment(
        training={"epochs": 1, "elastic": {"enabled": True}},
        data={"image_size": [64, 64]},
        sweep={"axes": {RATIO: [0.1, 0.2, 0.5]}, "seeds": [0, 1]},
    )
    executor = Counting()
    sweep(lab, spec, executor)
    assert executor.names == ["elastic-seed0", "elastic-seed1"]
    record = lab.record("tiny")
    assert [(cell.name, cell.keep_ratio, cell.is_baseline) for cell in record.cells] == [
        ("elastic@0.1", 0.1, False),
        ("elastic@0.2", 0.2, False),
        ("elastic@0.5", 0.5, True),
    ]
    assert {cell.read_from for cell in record.cells} == {"elastic"}
    costs = []
    for cell in record.cells:
        trials = record.trials_of(cell.name)
        assert [trial.seed for trial in trials] == [0, 1]
        assert all(trial.final("coco/AP") is not None for trial in trials)
        assert not any(name.startswith("at_") for trial in trials for name in trial.curves)
        costs.append((trials[0].final("cost/gflops"), trials[0].final("tokens/kept")))
    assert costs == sorted(costs)
    assert costs[0] < costs[-1]
    # Each reading has pictures of its own, and what lies behind its AP.
    shown = []
    for trial in (record.trials_of(cell.name)[0] for cell in record.cells):
        assert trial.samples is not None
        assert (trial.samples / "breakdown.json").is_file()
        images = json.loads((trial.samples / "samples.json").read_text())["images"]
        shown.append(sum(depth > 0 for image in images for depth in image["kept_depth"]))
    assert shown == sorted(shown)
    assert shown[0] < shown[-1]
    page = lab.page("tiny").read_text()
    assert "are the weights of one training a seed (elastic)" in page
    # Each training is one trial, with what was read from it under the tracker's names.
    result = lab.result(record)
    assert [trial["cell"] for trial in result["trials"]] == ["elastic"] * 2
    stored = {trial.id: trial for trial in lab.store.trials(result["experiment"]["id"])}
    for trial in result["trials"]:
        curves = lab.tracker.curves(stored[trial["id"]].tracking_run_id or "")
        assert trial["metrics"] == {name: points[-1][1] for name, points in curves.items()}
        assert {"coco/AP", "at_0.1/coco/AP", "train/seconds"} <= trial["metrics"].keys()


def test_a_reading_knows_the_cell_that_was_trained_at_its_ratio_alone(
    lab: Lab, tiny_experiment: MakeExperiment
) -> None:
    off = {"training.elastic.enabled": False}
    spec = tiny_experiment(
        training={"elastic": {"enabled": True, "distillation_weight": 0.5}},
        sweep={
            "axes": {RATIO: [0.2, 0.3, 0.5]},
            "cells": {
                "alone": off | {RATIO: 0.2},
                "longer": off | {RATIO: 0.3, "training.epochs": 3},
                "elastic too": {RATIO: 0.3},
                "largest": off | {RATIO: 0.5},
            },
        },
    )
    lab.store.record(spec, plan(spec), lab.home / "tiny")
    assert {cell.name: cell.alone for cell in lab.record("tiny").cells} == {
        "elastic@0.2": "alone",
        "elastic@0.3": None,
        "elastic@0.5": "largest",
        "alone": None,
        "longer": None,
        "elastic too": None,
        "largest": None,
    }


def test_cells_may_be_run_one_by_one(lab: Lab, spec: ExperimentSpec) -> None:
    first, second = Counting(), Counting()
    sweep(lab, spec, first, cells=("keep_ratio=0.5",))
    statuses = [trial["status"] for trial in lab.result(lab.record("tiny"))["trials"]]
    assert statuses == ["PENDING", "SUCCEEDED"]
    sweep(lab, spec, second)
    assert first.names == ["keep_ratio=0.5-seed0"]
    assert second.names == ["keep_ratio=0.2-seed0"]
    measured = [
        trial["metrics"]["cost/latency_ms"] for trial in lab.result(lab.record("tiny"))["trials"]
    ]
    assert len(measured) == 2


def test_what_waits_in_a_queue_is_not_taken_out_of_its_hands(
    lab: Lab, spec: ExperimentSpec
) -> None:
    queue = Queue(lab.store)
    entry, _ = queue.submit(spec, plan(spec), lab.home / "tiny", Submitter("ann"))
    with pytest.raises(LeaseHeldError, match="belongs to a service's queue, got queued; cancel it"):
        sweep(lab, spec)
    queue.act(entry.id, Action.CANCEL, "ann")
    sweep(lab, spec)
    assert lab.page("tiny").is_file()


def test_while_another_process_runs_it_nothing_is_changed(
    lab: Lab, spec: ExperimentSpec, tiny_experiment: MakeExperiment
) -> None:
    made = lab.store.record(spec, plan(spec), lab.home / "tiny")
    lab.store.take_lease(made.id, "another-host:1", 60, set())
    before = lab.store.trials(made.id)
    other = tiny_experiment(training={"epochs": 1}, sweep={"axes": {RATIO: [0.9]}})
    with pytest.raises(LeaseHeldError):
        sweep(lab, other)
    assert lab.store.trials(made.id) == before
    assert lab.store.experiment("tiny").spec == made.spec


def test_failed_trials_are_in_the_result_with_their_reason(
    lab: Lab, tiny_experiment: MakeExperiment
) -> None:
    spec = tiny_experiment(training={"epochs": 1}, data={"num_train": 3})
    sweep(lab, spec)
    [trial] = lab.result(lab.record("tiny"))["trials"]
    assert trial["status"] == "FAILED"
    assert trial["failure"] == "DataError"
    assert trial["failure_is_users"] is True
    assert "training.batch_size" in trial["message"]
    assert lab.page("tiny").is_file()


def test_a_killed_latency_measurement_is_done_again(
    lab: Lab, spec: ExperimentSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lab.tracker, "log_final", killed)
        with pytest.raises(KeyboardInterrupt):
            sweep(lab, spec)
    sweep(lab, spec, Counting())
    for trial in lab.result(lab.record("tiny"))["trials"]:
        assert trial["metrics"]["cost/latency_ms"] > 0


def test_two_labs_live_in_one_process(
    lab: Lab, tmp_path: Path, tiny_experiment: MakeExperiment
) -> None:
    spec = tiny_experiment(training={"epochs": 1})
    second = Lab(Store(f"sqlite:///{tmp_path / 'other.db'}"), MemoryTracker(), tmp_path / "other")
    sweep(lab, spec)
    sweep(second, spec)
    histories = [
        {
            name: value
            for name, value in one.result(one.record("tiny"))["trials"][0]["metrics"].items()
            if name.startswith(("coco/", "loss/", "tokens/"))
        }
        for one in (lab, second)
    ]
    assert histories[0] == histories[1]
    second.store.close()


def test_runs_that_the_tracker_does_not_have_are_said_and_the_rest_is_reported(
    lab: Lab, spec: ExperimentSpec
) -> None:
    sweep(lab, spec)
    tracker = lab.tracker
    assert isinstance(tracker, MemoryTracker)
    purged, kept = lab.result(lab.record("tiny"))["trials"]
    del tracker.runs[purged["mlflow_run_id"]]
    (lab.home / "tiny" / "latency.json").unlink()
    sweep(lab, spec, Counting())
    gone, there = lab.result(lab.record("tiny"))["trials"]
    assert gone["status"] == "SUCCEEDED"
    assert gone["metrics"] == {}
    assert gone["message"].startswith("run: there is none, got")
    assert there["metrics"]["coco/AP"] == kept["metrics"]["coco/AP"]
    assert "there is none, got" in lab.page("tiny").read_text()


def test_what_an_experiment_cannot_confirm_is_said_in_its_result_and_to_the_tracker(
    lab: Lab, tiny_experiment: MakeExperiment
) -> None:
    search = {"kind": "random", "samples": 1}
    spec = tiny_experiment(training={"epochs": 1}, sweep={"axes": {RATIO: [0.2]}, "search": search})
    sweep(lab, spec)
    result = lab.result(lab.record("tiny"))
    assert result["exploratory"] == ["its cells were chosen by a search (random), not by a plan"]
    assert isinstance(lab.tracker, MemoryTracker)
    assert lab.tracker.exploratory == {result["experiment"]["id"]: tuple(result["exploratory"])}


def test_another_tracker_gets_no_report_of_trials_that_it_does_not_have(
    lab: Lab, spec: ExperimentSpec
) -> None:
    sweep(lab, spec)
    other = Lab(lab.store, MemoryTracker(), lab.home)
    assert other.report("tiny").is_file()
    assert other.tracker.reports == {}  # type: ignore[attr-defined]


def test_files_of_experiments_go_beside_the_database_of_mlflow(tmp_path: Path) -> None:
    home = tmp_path / "runs"
    beside = (tmp_path / "db" / "mlartifacts").as_uri()
    assert artifact_root(f"sqlite:///{tmp_path / 'db' / 'm.db'}", home) == beside
    assert artifact_root(embedded_tracking_uri(home), home) == (home / "mlartifacts").as_uri()
    assert artifact_root("postgresql://host/db", home) == (home / "mlartifacts").as_uri()
    assert artifact_root("http://host:5000", home) is None


def test_jobs_carry_the_folder_of_their_trial(lab: Lab, spec: ExperimentSpec) -> None:
    seen: list[TrialJob] = []

    class Looking(InProcessExecutor):
        def run(self, jobs: Any, listener: Listener) -> None:
            seen.extend(jobs)

    sweep(lab, spec, Looking())
    assert [job.folder.parent for job in seen] == [lab.home / "tiny" / "trials"] * 2
    assert all(job.folder.is_absolute() for job in seen)
