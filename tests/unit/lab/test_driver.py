"""The driver: what it starts, records and leaves behind, whatever happens to trials or itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from focus_lab.errors import (
    StoreError,
    StoreUnreachableError,
    TrackerUnreachableError,
    UserError,
)
from focus_lab.lab import driver
from focus_lab.lab.driver import Driver, trial_folder
from focus_lab.lab.executor import Listener, TrialJob
from focus_lab.lab.failure import Failure
from focus_lab.lab.patience import Patience
from focus_lab.lab.progress import PlainProgress
from focus_lab.lab.states import TrialState
from focus_lab.lab.store import Experiment, StaleTrialError, Store
from focus_lab.lab.tracking import MemoryTracker
from focus_lab.specs.experiment import ExperimentSpec
from focus_lab.specs.plan import plan
from focus_lab.training.folder import MANIFEST, STOPPED

P, R, S, F, C = TrialState
Record = Callable[..., Experiment]
EPOCHS = 3


def metrics(epoch: int) -> dict[str, float]:
    return {"loss/total": 10.0 / epoch, "coco/AP": epoch / 10}


HISTORY = [(epoch, metrics(epoch)) for epoch in range(1, EPOCHS + 1)]


class FakeExecutor:
    """Carries out trials as a script says: one entry a trial, or success."""

    concurrent_trials = 1

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def __init__(self, *scripts: Callable[[str, Listener], None]) -> None:
        self._scripts = list(scripts)
        self.jobs: list[TrialJob] = []

    def run(self, jobs: Sequence[TrialJob], listener: Listener) -> None:
        for job in jobs:
            self.jobs.append(job)
            script = self._scripts.pop(0) if self._scripts else succeed
            script(job.trial_id, listener)


def succeed(trial_id: str, listener: Listener) -> None:
    listener.started(trial_id)
    for epoch, values in HISTORY:
        listener.epoch(trial_id, epoch, values)
    listener.succeeded(trial_id, HISTORY)


def fail(trial_id: str, listener: Listener) -> None:
    listener.started(trial_id)
    listener.epoch(trial_id, 1, metrics(1))
    listener.failed(trial_id, Failure("OutOfMemory", "memory is exhausted"))


def stop_with(error: type[BaseException]) -> Callable[[str, Listener], None]:
    def script(trial_id: str, listener: Listener) -> None:
        listener.started(trial_id)
        listener.epoch(trial_id, 1, metrics(1))
        raise error

    return script


class Bench:
    """A store, a tracker in memory, and drivers over them."""

    def __init__(self, store: Store) -> None:
        self.store, self.tracker = store, MemoryTracker()
        self.progress = PlainProgress(Console(quiet=True))

    def drive(
        self,
        experiment: Experiment,
        executor: FakeExecutor,
        on_note: Callable[[str], None] = lambda text: None,
        **settings: Any,
    ) -> None:
        self.progress = PlainProgress(Console(quiet=True))
        self.progress.note = on_note  # type: ignore[method-assign]
        Driver(self.store, self.tracker, executor, self.progress).carry_out(experiment, **settings)

    def states(self, experiment: Experiment) -> list[TrialState]:
        return [trial.state for trial in self.store.trials(experiment.id)]


@pytest.fixture
def bench(store: Store) -> Bench:
    return Bench(store)


def test_trials_run_in_order_to_success(bench: Bench, record: Record) -> None:
    made = record(0.1, 0.5)
    executor = FakeExecutor()
    bench.drive(made, executor)
    trials = bench.store.trials(made.id)
    assert [job.trial_id for job in executor.jobs] == [trial.id for trial in trials]
    assert [job.folder for job in executor.jobs] == [trial_folder(made, t) for t in trials]
    assert bench.states(made) == [S, S]
    for trial in trials:
        run = bench.tracker.runs[trial.tracking_run_id or ""]
        assert run.state is S
        assert run.curves["coco/AP"] == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert bench.store.experiment("tiny").tracking_id == made.id
    shown = list(bench.progress.trials.values())
    assert [(row.state, row.epoch, row.ap) for row in shown] == [("SUCCEEDED", 3, 0.3)] * 2


def test_succeeded_trials_are_left_alone(bench: Bench, record: Record) -> None:
    made = record(0.1, 0.5)
    bench.drive(made, FakeExecutor())
    before = bench.store.trials(made.id)
    executor = FakeExecutor()
    bench.drive(record(0.1, 0.5), executor)
    assert executor.jobs == []
    assert bench.store.trials(made.id) == before
    assert [row.epoch for row in bench.progress.trials.values()] == [3, 3]


def test_a_worker_without_compiled_operators_is_told_of_once(bench: Bench, record: Record) -> None:
    made = record(0.1, 0.5)
    for trial in bench.store.trials(made.id):
        folder = trial_folder(made, trial)
        folder.mkdir(parents=True)
        (folder / MANIFEST).write_text(
            '{"ops_implementation": "reference", "environment": {}, "data": {}}'
        )
    told: list[str] = []
    bench.drive(made, FakeExecutor(), on_note=told.append)
    assert len(told) == 1
    assert "operators are not compiled" in told[0]


def test_a_failure_is_recorded_and_the_others_go_on(bench: Bench, record: Record) -> None:
    made = record(0.1, 0.5)
    bench.drive(made, FakeExecutor(fail))
    failed, other = bench.store.trials(made.id)
    assert (failed.state, other.state) == (F, S)
    assert (failed.failure, failed.message) == ("OutOfMemory", "memory is exhausted")
    assert bench.tracker.runs[failed.id].state is F
    assert bench.progress.trials[failed.id].message == "memory is exhausted"


def test_a_failed_trial_is_tried_again_by_the_next_sweep(bench: Bench, record: Record) -> None:
    made = record(0.1, 0.5)
    bench.drive(made, FakeExecutor(fail))
    executor = FakeExecutor()
    bench.drive(record(0.1, 0.5), executor)
    trials = bench.store.trials(made.id)
    assert [job.trial_id for job in executor.jobs] == [trials[0].id]
    assert [(trial.state, trial.attempts) for trial in trials] == [(S, 2), (S, 1)]
    assert trials[0].message is None


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_puts_running_trials_back(
    bench: Bench, record: Record, error: type[BaseException]
) -> None:
    made = record(0.1, 0.5, 1.0)
    with pytest.raises(error):
        bench.drive(made, FakeExecutor(succeed, stop_with(error)))
    assert bench.states(made) == [S, P, P]
    executor = FakeExecutor()
    bench.drive(record(0.1, 0.5, 1.0), executor)
    assert bench.states(made) == [S, S, S]
    assert [trial.attempts for trial in bench.store.trials(made.id)] == [1, 2, 1]
    assert len(executor.jobs) == 2
    # One run a trial, each epoch once.
    assert len(bench.tracker.runs) == 3
    for run in bench.tracker.runs.values():
        assert [step for step, _ in run.curves["epoch"]] == [1, 2, 3]


def test_a_killed_driver_leaves_running_trials_that_the_next_one_takes_up(
    bench: Bench, record: Record
) -> None:
    made = record(0.1, 0.5)
    first = bench.store.trials(made.id)[0]
    bench.store.move(first, R)  # and then it was killed
    executor = FakeExecutor()
    bench.drive(record(0.1, 0.5), executor)
    assert executor.jobs[0].trial_id == first.id
    assert [trial.attempts for trial in bench.store.trials(made.id)] == [2, 1]
    assert bench.states(made) == [S, S]


def test_an_epoch_that_a_killed_driver_did_not_hear_of_is_logged_in_the_end(
    bench: Bench, record: Record
) -> None:
    made = record(0.5)

    def resumed(trial_id: str, listener: Listener) -> None:
        # Epoch 2 was trained and saved while nobody listened.
        listener.started(trial_id)
        listener.epoch(trial_id, 3, metrics(3))
        listener.succeeded(trial_id, HISTORY)

    with pytest.raises(KeyboardInterrupt):
        bench.drive(made, FakeExecutor(stop_with(KeyboardInterrupt)))
    bench.drive(made, FakeExecutor(resumed))
    [run] = bench.tracker.runs.values()
    assert run.curves["coco/AP"] == [(1, 0.1), (2, 0.2), (3, 0.3)]


def test_a_lost_worker_is_another_attempt_and_no_other_run(bench: Bench, record: Record) -> None:
    made = record(0.5)

    def lost(trial_id: str, listener: Listener) -> None:
        listener.started(trial_id)
        for epoch in (1, 2):
            listener.epoch(trial_id, epoch, metrics(epoch))
        listener.started(trial_id)
        for epoch in (2, 3):  # the checkpoint was of epoch 1
            listener.epoch(trial_id, epoch, metrics(epoch))
        listener.succeeded(trial_id, HISTORY)

    bench.drive(made, FakeExecutor(lost))
    [trial] = bench.store.trials(made.id)
    assert (trial.state, trial.attempts) == (S, 2)
    assert [step for step, _ in bench.tracker.runs[trial.id].curves["epoch"]] == [1, 2, 3]
    assert bench.progress.trials[trial.id].first_epoch == 1


def test_only_the_chosen_cells_run(bench: Bench, record: Record) -> None:
    made = record(0.1, 0.5)
    bench.drive(made, FakeExecutor(), only=lambda trial: trial.cell == "keep_ratio=0.5")
    assert bench.states(made) == [P, S]


def test_cancelled_trials_wait_for_a_person(bench: Bench, record: Record) -> None:
    made = record(0.1, 0.5)
    bench.store.move(bench.store.trials(made.id)[0], C)
    bench.drive(record(0.1, 0.5), FakeExecutor())
    assert bench.states(made) == [C, S]


def test_a_trial_that_somebody_else_changed_is_not_written_over(
    bench: Bench, record: Record
) -> None:
    made = record(0.5)

    def taken_away(trial_id: str, listener: Listener) -> None:
        listener.started(trial_id)
        bench.store.move(bench.store.trials(made.id)[0], C)
        listener.succeeded(trial_id, HISTORY)

    with pytest.raises(StaleTrialError):
        bench.drive(made, FakeExecutor(taken_away))
    assert bench.states(made) == [C]


def test_what_ended_the_sweep_is_told_even_if_nothing_can_be_put_back(
    bench: Bench, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = record(0.5)

    def locked(*_: object, **__: object) -> None:
        raise StoreError("locked")

    def script(trial_id: str, listener: Listener) -> None:
        listener.started(trial_id)
        monkeypatch.setattr(bench.store, "move", locked)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.drive(made, FakeExecutor(script))


def test_manifest_and_samples_are_uploaded_before_a_trial_counts_as_done(
    bench: Bench, record: Record
) -> None:
    made = record(0.5)
    [trial] = bench.store.trials(made.id)
    folder = trial_folder(made, trial)
    seen: list[TrialState] = []

    class Watching(MemoryTracker):
        def log_files(self, run_id: str, folder: Path, name: str) -> None:
            seen.append(bench.store.trials(made.id)[0].state)
            super().log_files(run_id, folder, name)

    def script(trial_id: str, listener: Listener) -> None:
        (folder / "samples").mkdir(parents=True)
        (folder / "samples" / "1.jpg").touch()
        (folder / "manifest.json").write_text('{"seed": 0}')
        succeed(trial_id, listener)

    bench.tracker = Watching()
    bench.drive(made, FakeExecutor(script))
    run = bench.tracker.runs[trial.id]
    assert run.manifest == {"seed": 0}
    assert run.files == {"samples/1.jpg"}
    assert seen == [R]


def test_folders_are_readable_and_differ_by_fingerprint(store: Store, record: Record) -> None:
    made = record(0.5)
    [trial] = store.trials(made.id)
    folder = trial_folder(made, trial)
    assert folder.parent == made.folder / "trials"
    assert folder.name == f"keep_ratio=0.5-seed0-{trial.fingerprint[:8]}"


# Outages and installations


class Outage:
    """Makes a method of store or tracker fail some times, before or after it has worked."""

    def __init__(
        self, of: Any, method: str, error: Exception, times: int, *, after: bool = False
    ) -> None:
        self._original, self._error, self._after = getattr(of, method), error, after
        self.left = times
        setattr(of, method, self)

    def __call__(self, *args: Any, **more: Any) -> Any:
        if self.left and self._after:
            self._original(*args, **more)
        if self.left:
            self.left -= 1
            raise self._error
        return self._original(*args, **more)


@pytest.fixture
def no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "Patience", partial(Patience, sleep=lambda seconds: None))


@pytest.mark.usefixtures("no_sleep")
@pytest.mark.parametrize("after", [False, True])
def test_a_store_that_is_away_for_a_while_loses_no_change_of_state(
    bench: Bench, record: Record, after: bool
) -> None:
    made = record(0.1)
    notes: list[str] = []
    # The answer may be lost after the change was made.
    times = 1 if after else 3
    outage = Outage(bench.store, "move", StoreUnreachableError("store: gone"), times, after=after)
    bench.drive(made, FakeExecutor(), notes.append)
    assert outage.left == 0
    assert bench.states(made) == [S]
    assert [trial.attempts for trial in bench.store.trials(made.id)] == [1]
    assert len(notes) == 1


@pytest.mark.usefixtures("no_sleep")
def test_a_tracker_that_is_away_stops_nothing_and_has_every_number_in_the_end(
    bench: Bench, record: Record
) -> None:
    made = record(0.1)
    notes: list[str] = []
    Outage(bench.tracker, "log_epoch", TrackerUnreachableError("MLflow: gone"), 2)
    Outage(bench.tracker, "start_run", TrackerUnreachableError("MLflow: gone"), 1)
    bench.drive(made, FakeExecutor(), notes.append)
    [run] = bench.tracker.runs.values()
    assert run.curves["coco/AP"] == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert bench.states(made) == [S]
    assert notes == [
        "MLflow: gone; trials go on, their numbers are kept and told later",
        "MLflow: gone; trying again for 600 s, trials go on",
    ]


def test_a_broken_installation_ends_the_sweep_and_no_trial_is_called_failed(
    bench: Bench, record: Record
) -> None:
    def stale(trial_id: str, listener: Listener) -> None:
        listener.started(trial_id)
        listener.failed(trial_id, Failure("CompiledOpError", "compiled operators: stale"))

    made = record(0.1, 0.5)
    executor = FakeExecutor(stale)
    with pytest.raises(UserError, match="compiled operators: stale"):
        bench.drive(made, executor)
    assert len(executor.jobs) == 1
    assert bench.states(made) == [P, P]


def test_an_attempt_that_goes_on_by_itself_is_counted_and_told(
    bench: Bench, record: Record
) -> None:
    def twice(trial_id: str, listener: Listener) -> None:
        listener.started(trial_id)
        listener.again(trial_id, Failure("WorkerLost", "worker 1 was lost; going on"))
        listener.started(trial_id)
        listener.succeeded(trial_id, HISTORY)

    made = record(0.1)
    notes: list[str] = []
    bench.drive(made, FakeExecutor(twice), notes.append)
    [trial] = bench.store.trials(made.id)
    assert (trial.state, trial.attempts) == (S, 2)
    assert notes == [f"{trial.name}: worker 1 was lost; going on"]


def train_until_stopped(ap: float) -> Callable[[str, Listener, TrialJob], None]:
    """Three epochs of this AP, or fewer: a worker looks for the mark after each of them."""

    def script(trial_id: str, listener: Listener, job: TrialJob) -> None:
        listener.started(trial_id)
        job.folder.mkdir(parents=True, exist_ok=True)
        history = []
        for epoch in range(1, EPOCHS + 1):
            history.append((epoch, {"coco/AP": ap}))
            listener.epoch(trial_id, *history[-1])
            if (job.folder / STOPPED).exists():
                break
        listener.succeeded(trial_id, history)

    return script


class Training(FakeExecutor):
    """Scripts that know their job."""

    def __init__(self, *aps: float) -> None:
        super().__init__()
        self._aps = list(aps)

    def run(self, jobs: Sequence[TrialJob], listener: Listener) -> None:
        for job, ap in zip(jobs, self._aps, strict=False):
            train_until_stopped(ap)(job.trial_id, listener, job)
        if len(self._aps) < len(jobs):
            raise KeyboardInterrupt


def test_weak_trials_stop_early_also_after_a_restart(
    bench: Bench, store: Store, tmp_path: Path, tiny_experiment: Callable[..., ExperimentSpec]
) -> None:
    spec = tiny_experiment(
        "stopping",
        training={"epochs": EPOCHS},
        sweep={
            "axes": {"model.token_selection.keep_ratio": [0.1, 0.2, 0.3, 0.4]},
            "early_stopping": {"kind": "asha", "reduction": 2},
        },
    )
    made = store.record(spec, plan(spec), tmp_path / "stopping")
    with pytest.raises(KeyboardInterrupt):
        bench.drive(made, Training(0.5, 0.2))
    # The rungs are made anew, from what the tracker knows of the first two.
    bench.drive(made, Training(0.3, 0.6))
    trials = store.trials(made.id)
    assert [trial.state for trial in trials] == [S] * 4
    epochs = [
        bench.tracker.runs[trial.tracking_run_id or ""].curves["coco/AP"][-1][0] for trial in trials
    ]
    assert epochs == [3, 1, 1, 3]


def test_where_folders_are_not_shared_nothing_stops_and_the_sweep_goes_on(
    bench: Bench, store: Store, tmp_path: Path, tiny_experiment: Callable[..., ExperimentSpec]
) -> None:
    class Elsewhere(FakeExecutor):
        """Trains where the driver sees no file of it."""

        def run(self, jobs: Sequence[TrialJob], listener: Listener) -> None:
            for job, ap in zip(jobs, (0.5, 0.2), strict=True):
                history = [(epoch, {"coco/AP": ap}) for epoch in range(1, EPOCHS + 1)]
                listener.started(job.trial_id)
                for told in history:
                    listener.epoch(job.trial_id, *told)
                listener.succeeded(job.trial_id, history)

    spec = tiny_experiment(
        "elsewhere",
        training={"epochs": EPOCHS},
        sweep={
            "axes": {"model.token_selection.keep_ratio": [0.1, 0.2]},
            "early_stopping": {"kind": "asha", "reduction": 2},
        },
    )
    made = store.record(spec, plan(spec), tmp_path / "elsewhere")
    bench.drive(made, Elsewhere())
    assert [trial.state for trial in store.trials(made.id)] == [S, S]


def test_a_sweep_that_does_not_stop_early_forgets_that_another_did(
    bench: Bench, record: Record
) -> None:
    made = record(0.1)
    folder = trial_folder(made, bench.store.trials(made.id)[0])
    folder.mkdir(parents=True)
    (folder / STOPPED).touch()
    bench.drive(made, Training(0.5))
    assert bench.progress.trials[bench.store.trials(made.id)[0].id].epoch == EPOCHS
