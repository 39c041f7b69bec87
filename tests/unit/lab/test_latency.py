"""Which trials have a latency: one a cell, all of them from one measurement."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from focus_lab.lab import lab as lab_module
from focus_lab.lab import latency
from focus_lab.lab.executor import Listener, TrialJob
from focus_lab.lab.failure import Failure
from focus_lab.lab.lab import Lab
from focus_lab.lab.progress import PlainProgress
from focus_lab.lab.store import Store
from focus_lab.lab.tracking import MemoryTracker
from focus_lab.specs.experiment import ExperimentSpec
from focus_lab.specs.plan import plan

RATIO = "model.token_selection.keep_ratio"


class Scripted:
    """Some trials fail, others end with their first epoch; nothing is computed."""

    concurrent_trials = 1

    def __init__(self, failing: Collection[str] = (), stopped: Collection[str] = ()) -> None:
        self._failing, self._stopped = failing, stopped

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def run(self, jobs: Sequence[TrialJob], listener: Listener) -> None:
        for job in jobs:
            job.folder.mkdir(parents=True, exist_ok=True)
            listener.started(job.trial_id)
            if job.name in self._failing:
                listener.failed(job.trial_id, Failure("DataError", "cannot be read"))
                continue
            epochs = 1 if job.name in self._stopped else job.spec["training"]["epochs"]
            history = [(epoch, {"coco/AP": 0.1}) for epoch in range(1, epochs + 1)]
            listener.succeeded(job.trial_id, history)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """Its n-th measurement finds n for every cell."""
    runs = iter(range(1, 10))

    def measure(folders: dict[str, Path]) -> dict[str, dict[str, float]]:
        return dict.fromkeys(folders, {"cost/latency_ms": float(next(runs))} if folders else {})

    monkeypatch.setattr(latency, "measure", measure)
    monkeypatch.setattr(lab_module.Lab, "report", lambda *_: None)
    monkeypatch.setattr(lab_module, "_load_ahead", lambda: None)
    store = Store(f"sqlite:///{tmp_path / 'lab.db'}")
    yield Lab(store, MemoryTracker(), tmp_path)
    store.close()


@pytest.fixture
def make_spec(tiny_experiment: Callable[..., ExperimentSpec]) -> Callable[..., ExperimentSpec]:
    def make(*ratios: float, seeds: tuple[int, ...] = (0, 1)) -> ExperimentSpec:
        return tiny_experiment(
            training={"epochs": 2}, sweep={"axes": {RATIO: list(ratios)}, "seeds": list(seeds)}
        )

    return make


def sweep(lab: Lab, spec: ExperimentSpec, executor: Scripted) -> dict[str, float]:
    """Carry out; returns trial -> latency in the record."""
    lab.sweep(spec, plan(spec), executor, PlainProgress(Console(quiet=True)))
    found = {
        f"{trial.cell}-seed{trial.seed}": trial.final("cost/latency_ms")
        for trial in lab.record("tiny").trials
    }
    return {name: value for name, value in found.items() if value is not None}


def test_a_trial_that_was_stopped_early_is_not_measured(
    lab: Lab, make_spec: Callable[..., ExperimentSpec]
) -> None:
    """Its cell would have no latency: the record leaves it out of every mean."""
    found = sweep(lab, make_spec(0.2, 0.5), Scripted(stopped=["keep_ratio=0.2-seed0"]))
    assert found == {"keep_ratio=0.2-seed1": 1.0, "keep_ratio=0.5-seed0": 1.0}


def test_a_cell_of_stopped_trials_is_not_measured(
    lab: Lab, make_spec: Callable[..., ExperimentSpec]
) -> None:
    stopped = Scripted(stopped=["keep_ratio=0.2-seed0", "keep_ratio=0.2-seed1"])
    assert sweep(lab, make_spec(0.2), stopped) == {}


def test_a_trial_keeps_its_cells_latency_when_an_earlier_seed_comes_later(
    lab: Lab, make_spec: Callable[..., ExperimentSpec]
) -> None:
    spec = make_spec(0.2, 0.5)
    first = sweep(lab, spec, Scripted(failing=["keep_ratio=0.2-seed0"]))
    assert first == {"keep_ratio=0.2-seed1": 1.0, "keep_ratio=0.5-seed0": 1.0}
    assert sweep(lab, spec, Scripted()) == first


def test_a_new_measurement_replaces_the_old_one_of_every_cell(
    lab: Lab, make_spec: Callable[..., ExperimentSpec]
) -> None:
    sweep(lab, make_spec(0.2, 0.5), Scripted(failing=["keep_ratio=0.2-seed0"]))
    assert sweep(lab, make_spec(0.2, 0.5, 0.9), Scripted()) == {
        "keep_ratio=0.2-seed1": 2.0,
        "keep_ratio=0.5-seed0": 2.0,
        "keep_ratio=0.9-seed0": 2.0,
    }


def test_what_an_earlier_measurement_found_of_another_seed_counts_no_more(
    lab: Lab, make_spec: Callable[..., ExperimentSpec]
) -> None:
    assert sweep(lab, make_spec(0.2, seeds=(0,)), Scripted()) == {"keep_ratio=0.2-seed0": 1.0}
    assert sweep(lab, make_spec(0.2, seeds=(1,)), Scripted()) == {"keep_ratio=0.2-seed1": 2.0}
    # The tracker has both.
    assert sweep(lab, make_spec(0.2), Scripted()) == {"keep_ratio=0.2-seed1": 2.0}
