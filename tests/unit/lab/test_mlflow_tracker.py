"""What only MLflow has: names, statuses, artifacts, and stores that cannot be used."""

from __future__ import annotations

import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from focus_lab.errors import TrackerError
from focus_lab.lab import mlflow_tracker
from focus_lab.lab.mlflow_tracker import MlflowTracker
from focus_lab.lab.states import TrialState
from focus_lab.lab.store import Experiment, Store, Trial

pytestmark = pytest.mark.slow

Record = Callable[..., Experiment]


@pytest.fixture
def open_tracker(mlflow_home: Path) -> Callable[[], MlflowTracker]:
    def open_one() -> MlflowTracker:
        uri = f"sqlite:///{mlflow_home / 'mlflow.db'}"
        return MlflowTracker(uri, (mlflow_home / "artifacts").as_uri())

    return open_one


@pytest.fixture
def tracker(open_tracker: Callable[[], MlflowTracker]) -> MlflowTracker:
    return open_tracker()


@pytest.fixture
def client(mlflow_home: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{mlflow_home / 'mlflow.db'}")


@pytest.fixture
def experiment(record: Record, request: pytest.FixtureRequest) -> Experiment:
    return record(0.1, 0.5, name=f"m{abs(hash(request.node.name)) % 10**9}")


@pytest.fixture
def trial(store: Store, experiment: Experiment) -> Trial:
    return store.trials(experiment.id)[0]


def test_a_run_names_its_cell_and_its_whole_spec(
    client: MlflowClient,
    tracker: MlflowTracker,
    experiment: Experiment,
    trial: Trial,
    manifest: dict[str, Any],
) -> None:
    run_id = tracker.ensure_run(tracker.ensure_experiment(experiment), trial)
    tracker.log_manifest(run_id, manifest)
    run = client.get_run(run_id)
    assert run.info.run_name == "keep_ratio=0.1-seed0"
    assert run.data.tags["focus_lab.trial_id"] == trial.id
    assert run.data.tags["focus_lab.cell"] == "keep_ratio=0.1"
    assert run.data.tags["mlflow.source.git.commit"] == "c0ffee"
    assert run.data.tags["focus_lab.data.val.sha256"] == "2" * 64
    assert run.data.params["keep_ratio"] == "0.1"
    assert run.data.params["training.optimizer.lr"] == "0.001"
    assert run.data.params["model.token_selection.cascade"] == "[1.0]"
    assert run.data.metrics["tokens/keep_ratio"] == 0.1
    assert {entry.dataset.digest for entry in run.inputs.dataset_inputs} == {"1" * 32, "2" * 32}


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (TrialState.RUNNING, "RUNNING"),
        (TrialState.PENDING, "SCHEDULED"),
        (TrialState.FAILED, "FAILED"),
        (TrialState.CANCELLED, "KILLED"),
        (TrialState.SUCCEEDED, "FINISHED"),
    ],
)
def test_the_status_of_a_run_follows_its_trial(
    client: MlflowClient,
    tracker: MlflowTracker,
    experiment: Experiment,
    trial: Trial,
    state: TrialState,
    status: str,
) -> None:
    run = tracker.ensure_run(tracker.ensure_experiment(experiment), trial)
    tracker.end_run(run, state)
    assert client.get_run(run).info.status == status


def test_a_description_that_a_crash_cut_off_is_completed(
    client: MlflowClient,
    open_tracker: Callable[[], MlflowTracker],
    experiment: Experiment,
    trial: Trial,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tracker = open_tracker()
    tracking_id = tracker.ensure_experiment(experiment)
    original = tracker._client.log_batch

    def crash(run_id: str, **content: Any) -> None:
        original(run_id, **content)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tracker._client, "log_batch", crash)
        with pytest.raises(KeyboardInterrupt):
            tracker.ensure_run(tracking_id, trial)
    run = open_tracker().ensure_run(tracking_id, trial)
    params = client.get_run(run).data.params
    assert "training.epochs" in params
    assert "model.hidden_dim" in params
    assert client.get_run(run).data.metrics["tokens/keep_ratio"] == 0.1


def test_a_renamed_cell_keeps_its_run(
    client: MlflowClient,
    tracker: MlflowTracker,
    experiment: Experiment,
    trial: Trial,
) -> None:
    tracking_id = tracker.ensure_experiment(experiment)
    run = tracker.ensure_run(tracking_id, trial)
    assert tracker.ensure_run(tracking_id, replace(trial, cell="sparse")) == run
    assert client.get_run(run).info.run_name == "sparse-seed0"
    assert client.get_run(run).data.tags["focus_lab.cell"] == "sparse"


def test_the_report_is_an_artifact_of_the_summary_run(
    client: MlflowClient, tracker: MlflowTracker, experiment: Experiment, tmp_path: Path
) -> None:
    folder = tmp_path / "page"
    folder.mkdir()
    (folder / "report.md").write_text("# Report")
    tracking_id = tracker.ensure_experiment(experiment)
    run = tracker.log_report(tracking_id, folder, {"mean/coco/AP": 0.5})
    assert [file.path for file in client.list_artifacts(run, "report")] == ["report/report.md"]
    assert client.get_run(run).data.metrics == {"mean/coco/AP": 0.5}


def test_the_summary_run_says_whether_it_is_exploratory(
    client: MlflowClient, tracker: MlflowTracker, experiment: Experiment, tmp_path: Path
) -> None:
    tracking_id = tracker.ensure_experiment(experiment)
    for reasons, said in ((("a", "b"), "a, and b"), ((), "no")):
        run = tracker.log_report(tracking_id, tmp_path, {}, reasons)
        assert client.get_run(run).data.tags["focus_lab.exploratory"] == said


def test_an_experiment_that_was_deleted_in_the_ui_comes_back(
    client: MlflowClient, tracker: MlflowTracker, experiment: Experiment
) -> None:
    tracking_id = tracker.ensure_experiment(experiment)
    client.delete_experiment(tracking_id)
    assert tracker.ensure_experiment(experiment) == tracking_id
    assert client.get_experiment(tracking_id).lifecycle_stage == "active"


def test_a_user_without_a_name_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr(mlflow_tracker.getpass, "getuser", nobody)
    assert mlflow_tracker._user() == "unknown"


def test_an_mlflow_store_that_is_no_database_is_said(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.write_text("this is a text, and long enough to be taken for a page of a database " * 20)
    with pytest.raises(TrackerError, match=r"MLflow sqlite:.*mlflow\.db: cannot be used, got .*or"):
        MlflowTracker(f"sqlite:///{path}")


def test_an_mlflow_store_of_another_version_is_said(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        connection.execute("INSERT INTO alembic_version VALUES ('ffffffffffff')")
        connection.execute("CREATE TABLE experiments (experiment_id INTEGER)")
    connection.close()
    with pytest.raises(TrackerError, match="was made by another MLflow than"):
        MlflowTracker(f"sqlite:///{path}")


def test_a_server_that_does_not_answer_is_said_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(
        TrackerError, match=r"cannot be used, got .*refused.*; check that it can be"
    ):
        MlflowTracker(f"http://127.0.0.1:{port}")
    assert time.monotonic() - began < 10


def test_many_processes_may_open_a_new_store_at_once(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    code = f"from focus_lab.lab.mlflow_tracker import MlflowTracker; MlflowTracker({uri!r})"
    started = [
        subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(3)
    ]
    errors = [process.communicate(timeout=120)[1].decode() for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], errors
