"""One contract for all trackers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from focus_lab.lab.states import TrialState
from focus_lab.lab.store import Experiment, Store, Trial
from focus_lab.lab.tracking import MemoryTracker, MissingRunError, Tracker

Record = Callable[..., Experiment]


@pytest.fixture(params=["memory", pytest.param("mlflow", marks=pytest.mark.slow)], scope="module")
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """The folder of one MLflow store for the whole module: making one takes seconds."""
    return None if request.param == "memory" else tmp_path_factory.mktemp("mlflow")


@pytest.fixture
def open_tracker(home: Path | None) -> Callable[[], Tracker]:
    memory = MemoryTracker()

    def open_one() -> Tracker:
        """As another process would: nothing is remembered but what is stored."""
        if home is None:
            return memory
        from focus_lab.lab.mlflow_tracker import MlflowTracker

        return MlflowTracker(f"sqlite:///{home / 'mlflow.db'}", (home / "artifacts").as_uri())

    return open_one


@pytest.fixture
def tracker(open_tracker: Callable[[], Tracker]) -> Tracker:
    return open_tracker()


@pytest.fixture
def experiment(record: Record, request: pytest.FixtureRequest) -> Experiment:
    return record(0.1, 0.5, name=f"t{abs(hash(request.node.name)) % 10**9}")


@pytest.fixture
def trial(store: Store, experiment: Experiment) -> Trial:
    return store.trials(experiment.id)[0]


def test_experiments_and_runs_are_made_once(
    open_tracker: Callable[[], Tracker], store: Store, experiment: Experiment
) -> None:
    first, second = open_tracker(), open_tracker()
    ids = [tracker.ensure_experiment(experiment) for tracker in (first, first, second)]
    assert len(set(ids)) == 1
    one, other = store.trials(experiment.id)
    runs = [tracker.ensure_run(ids[0], one) for tracker in (first, first, second)]
    assert len(set(runs)) == 1
    assert first.ensure_run(ids[0], other) not in runs


def test_epochs_are_kept_once_each_in_any_order(
    open_tracker: Callable[[], Tracker], experiment: Experiment, trial: Trial
) -> None:
    tracker = open_tracker()
    run = tracker.ensure_run(tracker.ensure_experiment(experiment), trial)
    tracker.start_run(run)
    tracker.log_epoch(run, 1, {"coco/AP": 0.1, "loss/total": 5.0})
    tracker.log_epoch(run, 3, {"coco/AP": 0.3})
    another = open_tracker()
    for epoch in (1, 2, 3):
        another.log_epoch(run, epoch, {"coco/AP": epoch / 5})
    curves = another.curves(run)
    assert curves["coco/AP"] == [(1, 0.1), (2, 0.4), (3, 0.3)]
    assert curves["loss/total"] == [(1, 5.0)]
    assert curves["epoch"] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert another.curves(run, ["epoch", "none"]) == {"epoch": curves["epoch"]}


def test_numbers_that_are_none_are_left_out(
    tracker: Tracker, experiment: Experiment, trial: Trial
) -> None:
    run = tracker.ensure_run(tracker.ensure_experiment(experiment), trial)
    tracker.log_epoch(run, 1, {"coco/AP": 0.5, "bad": float("nan"), "worse": float("inf")})
    assert {"bad", "worse"}.isdisjoint(tracker.curves(run))
    assert tracker.curves(run)["coco/AP"] == [(1, 0.5)]


def test_numbers_of_the_whole_trial_are_replaced(
    tracker: Tracker, experiment: Experiment, trial: Trial
) -> None:
    run = tracker.ensure_run(tracker.ensure_experiment(experiment), trial)
    tracker.log_final(run, {"cost/latency_ms": 7.0})
    tracker.log_final(run, {"cost/latency_ms": 8.0})
    assert tracker.curves(run)["cost/latency_ms"] == [(0, 8.0)]


def test_every_call_may_be_repeated(
    tracker: Tracker, experiment: Experiment, trial: Trial, tmp_path: Path, manifest: dict[str, Any]
) -> None:
    run = tracker.ensure_run(tracker.ensure_experiment(experiment), trial)
    folder = tmp_path / "samples"
    folder.mkdir()
    (folder / "1.txt").write_text("picture")
    for _ in range(2):
        tracker.start_run(run)
        tracker.log_manifest(run, manifest)
        tracker.log_files(run, folder, "samples")
        tracker.log_files(run, tmp_path / "nowhere", "nothing")
        for state in (TrialState.PENDING, TrialState.SUCCEEDED):
            tracker.end_run(run, state)


def test_a_run_that_is_not_there_is_said(tracker: Tracker) -> None:
    for call in (
        lambda: tracker.curves("0" * 32),
        lambda: tracker.log_final("0" * 32, {"cost/latency_ms": 7.0}),
        lambda: tracker.log_epoch("0" * 32, 1, {"coco/AP": 0.5}),
        lambda: tracker.end_run("0" * 32, TrialState.FAILED),
    ):
        with pytest.raises(MissingRunError, match=r"0{32}"):
            call()


def test_a_report_goes_to_one_summary_run(
    tracker: Tracker, experiment: Experiment, tmp_path: Path
) -> None:
    tracking_id = tracker.ensure_experiment(experiment)
    (tmp_path / "report.md").write_text("# Report")
    ids = {
        tracker.log_report(tracking_id, tmp_path, {"mean/coco/AP": 0.5}, reasons)
        for reasons in ((), ("weak trials were stopped early",))
    }
    assert len(ids) == 1
