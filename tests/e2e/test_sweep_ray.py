"""Sweeps on real Ray and MLflow: side by side as one by one, whatever is killed in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import family_of, is_alive
from rich.console import Console

from focus_lab.data.export import write_shapes
from focus_lab.errors import DataError, FocusLabError
from focus_lab.lab.executor import InProcessExecutor
from focus_lab.lab.lab import Lab, open_lab
from focus_lab.lab.progress import PlainProgress, TrialProgress
from focus_lab.lab.store import Store
from focus_lab.lab.tracking import MemoryTracker
from focus_lab.lab.tune_executor import TuneExecutor
from focus_lab.specs.compose import merge
from focus_lab.specs.experiment import ExperimentSpec
from focus_lab.specs.plan import plan
from focus_lab.specs.training import ComputeSpec

pytestmark = [pytest.mark.slow, pytest.mark.alone]

RATIO = "model.token_selection.keep_ratio"
DEADLINE_S = 240
# No two runs share these.
TIMED = (
    "train/images_per_second", "train/data_share", "train/seconds", "cost/peak_memory_mib",
    "cost/latency_ms", "cost/latency_p95_ms", "system/",
)  # fmt: skip


@pytest.fixture(scope="module")
def ray_executor() -> Iterator[TuneExecutor]:
    """One Ray of our own for all tests of this file that need no process of their own."""
    executor = TuneExecutor(ComputeSpec(device="cpu"))
    executor.start()
    yield executor
    executor.stop()


@pytest.fixture
def content(tiny_content: dict[str, Any]) -> dict[str, Any]:
    """Long enough to be killed in the middle."""
    changes = {"data": {"image_size": [64, 64], "num_train": 24}, "training": {"epochs": 6}}
    return merge(tiny_content, {"name": "tiny", **changes})


def curves(result: dict[str, Any], record: Any) -> dict[str, Any]:
    """Trial -> metric -> every epoch's value, without times."""
    names = {trial["id"]: f"{trial['cell']}-seed{trial['seed']}" for trial in result["trials"]}
    return {
        names[trial.id]: {
            name: points
            for name, points in trial.curves.items()
            if not name.startswith(TIMED) and name != "tokens/keep_ratio"
        }
        for trial in record.trials
    }


def carry_out(lab: Lab, spec: ExperimentSpec, executor: Any, progress: Any = None) -> Any:
    """Sweep; returns (result, curves)."""
    progress = progress or PlainProgress(Console(quiet=True))
    lab.sweep(spec, plan(spec), executor, progress)
    record = lab.record(spec.name)
    result = lab.result(record)
    return result, curves(result, record)


@pytest.fixture
def undisturbed(tmp_path: Path) -> Callable[[ExperimentSpec], Any]:
    """Curves of the same experiment, trained in this process without interruption."""

    def train(spec: ExperimentSpec) -> Any:
        store = Store(f"sqlite:///{tmp_path / 'undisturbed.db'}")
        lab = Lab(store, MemoryTracker(), tmp_path / "undisturbed")
        found = carry_out(lab, spec, InProcessExecutor())[1]
        store.close()
        return found

    return train


def test_trials_side_by_side_equal_trials_one_by_one(
    content: dict[str, Any],
    tmp_path: Path,
    ray_executor: TuneExecutor,
    undisturbed: Callable[[ExperimentSpec], Any],
) -> None:
    content["sweep"] = {"axes": {RATIO: [0.3, 1.0]}}
    spec = ExperimentSpec.model_validate(content)
    with open_lab(tmp_path / "runs") as lab:
        result, found = carry_out(lab, spec, ray_executor)
    assert [trial["status"] for trial in result["trials"]] == ["SUCCEEDED"] * 2
    assert [trial["attempts"] for trial in result["trials"]] == [1, 1]
    assert len({trial["mlflow_run_id"] for trial in result["trials"]}) == 2
    assert all(len(metrics["coco/AP"]) == 6 for metrics in found.values())
    assert found == undisturbed(spec)


def test_a_function_is_called_in_a_process_of_its_own(ray_executor: TuneExecutor) -> None:
    def where(more: int) -> tuple[int, int]:
        return os.getpid(), more

    process, more = ray_executor.call(where, 7)
    assert process != os.getpid()
    assert more == 7

    def fail(error: Exception) -> None:
        raise error

    with pytest.raises(DataError, match="no such folder"):
        ray_executor.call(fail, DataError("data.root: no such folder"))
    with pytest.raises(FocusLabError, match=r"failed on a worker, got .*by zero; see the log"):
        ray_executor.call(fail, ZeroDivisionError("division by zero"))


def test_data_named_by_a_relative_path_is_found_by_the_workers(
    content: dict[str, Any],
    tmp_path: Path,
    ray_executor: TuneExecutor,
) -> None:
    written = write_shapes(ExperimentSpec.model_validate(content).data, tmp_path / "scenes")
    root = os.path.relpath(tmp_path / "scenes")
    content["data"] = written.model_dump(mode="json") | {"root": root}
    content["training"]["epochs"] = 1
    spec = ExperimentSpec.model_validate(content)
    with open_lab(tmp_path / "runs") as lab:
        result, _ = carry_out(lab, spec, ray_executor)
    assert [(t["status"], t["message"]) for t in result["trials"]] == [("SUCCEEDED", None)]


def test_a_trial_whose_process_is_killed_goes_on_and_ends_the_same(
    content: dict[str, Any],
    tmp_path: Path,
    ray_executor: TuneExecutor,
    undisturbed: Callable[[ExperimentSpec], Any],
) -> None:
    content["sweep"] = {"axes": {RATIO: [0.4]}}
    spec = ExperimentSpec.model_validate(content)
    killed: list[int] = []

    class Killing(PlainProgress):
        def changed(self, trial: TrialProgress, event: str) -> None:
            if event.startswith("epoch 3") and not killed:
                killed.extend(kill_trials())

    with open_lab(tmp_path / "runs") as lab:
        result, found = carry_out(lab, spec, ray_executor, Killing(Console(quiet=True)))
    [trial] = result["trials"]
    assert killed
    assert (trial["status"], trial["attempts"]) == ("SUCCEEDED", 2)
    assert found == undisturbed(spec)


def kill_trials() -> list[int]:
    """Kill -9 the processes below this one in which trials train."""
    found = [
        pid for pid, args in family_of(os.getpid()).items() if args.startswith("ray::ImplicitFunc")
    ]
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    return found


# The command, as a process of its own


class Sweep:
    """`focus-lab sweep` in its own session, as a terminal starts it."""

    def __init__(self, spec: Path, home: Path, log: Path) -> None:
        self.log = log
        command = Path(sys.executable).parent / "focus-lab"
        with log.open("w") as file:
            self._process = subprocess.Popen(
                [command, "sweep", spec, "--out", home, "--json"],
                stdout=subprocess.DEVNULL,
                stderr=file,
                start_new_session=True,
            )
        self._family: dict[int, str] = {}

    def text(self) -> str:
        return self.log.read_text()

    def wait_until(self, done: Callable[[str], bool]) -> None:
        """Wait for what it says."""
        deadline = time.monotonic() + DEADLINE_S
        while not done(self.text()):
            assert self._process.poll() is None, f"it has ended:\n{self.text()}"
            assert time.monotonic() < deadline, f"nothing happened:\n{self.text()}"
            time.sleep(0.05)

    def interrupt(self) -> int:
        """Ctrl-C, which a terminal sends to the whole group."""
        self._remember()
        os.killpg(self._process.pid, signal.SIGINT)
        return self.wait()

    def kill(self) -> None:
        """The driver dies on the spot."""
        self._remember()
        self._process.kill()
        self._process.wait()

    def wait(self) -> int:
        return self._process.wait(timeout=DEADLINE_S)

    def _remember(self) -> None:
        self._family = family_of(self._process.pid)
        assert any("raylet" in args for args in self._family.values())

    def survivors(self, seconds: float, *, agents: bool = True) -> dict[int, str]:
        """What is left of its processes after a while, with or without Ray's agents."""
        deadline = time.monotonic() + seconds
        while True:
            alive = {
                pid: args
                for pid, args in self._family.items()
                if is_alive(pid) and (agents or "Agent" not in args)
            }
            if not alive or time.monotonic() > deadline:
                return alive
            time.sleep(0.1)


def in_the_middle(text: str) -> bool:
    """Whether a trial is being trained: at least two epochs done, and more than three to go."""
    lines = text.splitlines()
    running = {line.split()[0] for line in lines if "  epoch 2/" in line}
    late = {line.split()[0] for line in lines if "  epoch 9/" in line}
    return bool(running - late)


def one_is_done_and_another_in_the_middle(text: str) -> bool:
    done = {line.split()[0] for line in text.splitlines() if line.endswith("  done")}
    return bool(done) and in_the_middle(text)


@pytest.mark.timeout(900)
def test_a_sweep_survives_ctrl_c_and_the_death_of_its_driver(
    content: dict[str, Any], tmp_path: Path, undisturbed: Callable[[ExperimentSpec], Any]
) -> None:
    content["training"]["epochs"] = 12
    content["sweep"] = {"axes": {RATIO: [0.2, 0.5, 1.0]}}
    file, home = tmp_path / "spec.yaml", tmp_path / "runs"
    file.write_text(yaml.safe_dump(content))
    spec = ExperimentSpec.model_validate(content)

    first = Sweep(file, home, tmp_path / "first.txt")
    first.wait_until(in_the_middle)
    assert first.interrupt() == 130
    assert "interrupted; run the same command to continue" in first.text()
    assert "Traceback" not in first.text()
    assert first.survivors(60) == {}
    states = trials_of(home)
    assert {state for state, _ in states.values()} <= {"PENDING", "SUCCEEDED"}
    assert any(state == "PENDING" and attempts == 1 for state, attempts in states.values())

    second = Sweep(file, home, tmp_path / "second.txt")
    second.wait_until(one_is_done_and_another_in_the_middle)
    second.kill()
    # Ray's agents first try to tell a head that is gone; nothing that trains is left.
    assert second.survivors(60, agents=False) == {}
    before = trials_of(home)
    finished = [name for name, (state, _) in before.items() if state == "SUCCEEDED"]
    assert finished
    assert "RUNNING" in {state for state, _ in before.values()}

    third = Sweep(file, home, tmp_path / "third.txt")
    assert third.wait() == 0, third.text()
    after = trials_of(home)
    for name, (state, attempts) in after.items():
        assert state == "SUCCEEDED"
        assert attempts == before[name][1] + (name not in finished)
        assert (f"{name}  started" in third.text()) == (name not in finished)

    with open_lab(home) as lab:
        record = lab.record("tiny")
        result = lab.result(record)
    assert len({trial["mlflow_run_id"] for trial in result["trials"]}) == 3
    found = curves(result, record)
    assert all(
        [epoch for epoch, _ in metrics["coco/AP"]] == list(range(1, 13))
        for metrics in found.values()
    )
    assert found == undisturbed(spec)
    assert second.survivors(180) == {}


def trials_of(home: Path) -> dict[str, tuple[str, int]]:
    """Trial -> (state, attempts)."""
    store = Store(f"sqlite:///{home / 'lab.db'}")
    trials = store.trials(store.experiment("tiny").id)
    store.close()
    return {trial.name: (trial.state.value, trial.attempts) for trial in trials}
