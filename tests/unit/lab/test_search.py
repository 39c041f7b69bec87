"""Search: which points come next; the same ones after an interruption; never one twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from focus_lab.analysis.records import CellRecord, ExperimentRecord, TrialRecord
from focus_lab.errors import SpecError
from focus_lab.lab import lab as lab_module
from focus_lab.lab.executor import Listener, TrialJob
from focus_lab.lab.failure import Failure
from focus_lab.lab.lab import Lab
from focus_lab.lab.progress import PlainProgress
from focus_lab.lab.search import Told, next_points, points_of, told
from focus_lab.lab.store import Store
from focus_lab.lab.tracking import MemoryTracker
from focus_lab.specs.experiment import ExperimentSpec
from focus_lab.specs.explain import validate_as
from focus_lab.specs.plan import combination, num_trials, plan

RATIO, LAYERS = "model.token_selection.keep_ratio", "model.value_source"
AXES = {
    RATIO: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
    LAYERS: ["neck_features", "updated_tokens"],
}
MakeExperiment = Callable[..., ExperimentSpec]


def experiment(samples: int = 12, batch: int = 3, seed: int = 0, **more: Any) -> ExperimentSpec:
    search = {"kind": "optuna", "samples": samples, "batch": batch, "seed": seed}
    content = {
        "name": "search",
        "data": {"kind": "shapes"},
        "sweep": {"axes": AXES, "search": search, "seeds": [0, 1], **more},
    }
    return ExperimentSpec.model_validate(content)


def gives(point: int) -> tuple[float, float]:
    """AP rises with the ratio and is better with updated tokens; so does the cost."""
    ratio, source = combination(AXES, point)
    return (ratio * (1.0 if source == "updated_tokens" else 0.2), ratio)


def search(spec: ExperimentSpec) -> list[list[int]]:
    """Batches of a whole search."""
    first = [_point(cell.overrides) for cell in plan(spec).cells]
    batches = [first]
    while chosen := next_points(spec, [Told(p, gives(p)) for batch in batches for p in batch]):
        batches.append(chosen)
    return batches


def _point(overrides: dict[str, Any]) -> int:
    return AXES[RATIO].index(overrides[RATIO]) * 2 + AXES[LAYERS].index(overrides[LAYERS])


@settings(max_examples=5, deadline=None)
@given(st.integers(1, 20), st.integers(1, 7), st.integers(0, 2**31 - 1))
def test_every_sample_is_another_point_and_there_are_as_many_as_wanted(
    samples: int, batch: int, seed: int
) -> None:
    batches = search(experiment(samples, batch, seed))
    points = [point for chosen in batches for point in chosen]
    assert len(points) == len(set(points)) == samples
    assert all(0 <= point < 20 for point in points)
    assert [len(chosen) for chosen in batches[:-1]] == [batch] * (math.ceil(samples / batch) - 1)


def test_points_of_a_huge_space_are_found_again_without_counting_them_all() -> None:
    weights = list(range(1, 999))
    axes = {f"model.loss.{name}_weight": weights for name in ("class", "bbox", "giou")}
    spec = experiment(samples=4, batch=4, axes=axes)
    drawn = plan(spec, points=[998**3 - 1, 0, 998, 123_456_789])
    trials = [
        SimpleNamespace(position=place, overrides=one.overrides, seed=one.seed, cell=one.cell)
        for place, one in enumerate(drawn.trials)
    ]
    stranger = SimpleNamespace(position=99, overrides={"model.loss.class_weight": 1}, seed=0)
    found = points_of(spec, [*trials, stranger])  # type: ignore[list-item]
    assert list(found) == [998**3 - 1, 0, 998, 123_456_789]
    assert found[0] == "class_weight=1,bbox_weight=1,giou_weight=1"
    results = [Told(point, (float(place), 1.0)) for place, point in enumerate(found)]
    assert len(next_points(experiment(samples=6, batch=2, axes=axes), results)) == 2


def test_a_search_depends_on_its_seed_and_results_alone() -> None:
    assert search(experiment()) == search(experiment())
    assert search(experiment()) != search(experiment(seed=1))
    spec, first = experiment(), [0, 7, 12]
    good = next_points(spec, [Told(p, gives(p)) for p in first])
    bad = next_points(spec, [Told(p, (-gives(p)[0], gives(p)[1])) for p in first])
    assert good == next_points(spec, [Told(p, gives(p)) for p in first])
    assert good != bad


def test_a_search_finds_the_better_half_of_a_space_more_often_than_chance() -> None:
    """Points with updated tokens dominate: chance would take half of each batch from them."""
    shares = []
    for seed in range(4):
        later = [point for batch in search(experiment(10, 2, seed))[2:] for point in batch]
        shares.append(sum(point % 2 for point in later) / len(later))
    assert sum(shares) / len(shares) > 0.6


def test_points_without_a_result_are_not_asked_for_again() -> None:
    spec = experiment(samples=20, batch=20)
    chosen = next_points(spec, [Told(point, None) for point in range(0, 20, 2)])
    assert sorted(chosen) == list(range(1, 20, 2))


def test_a_search_asks_seldom_for_neighbours_of_what_was_stopped_early() -> None:
    """Stopped ones count as weak; failed ones as if they had never been."""

    def share_of_weak(stopped: bool) -> float:
        asked = []
        for seed in range(20):
            spec = experiment(samples=20, batch=1, seed=seed)
            results = [Told(19, (1.0, 0.1)), *(Told(p, None, stopped) for p in range(0, 12, 2))]
            asked += next_points(spec, results)
        return sum(point % 2 == 0 for point in asked) / len(asked)

    assert share_of_weak(stopped=True) < share_of_weak(stopped=False)


@pytest.mark.parametrize(
    "objectives", [{"coco/AP": "max"}, {"coco/AP": "max", "cost/gflops": "min"}]
)
def test_stopped_points_alone_do_not_break_a_search(objectives: dict[str, str]) -> None:
    content = experiment(samples=20, batch=4).model_dump(mode="json") | {"objectives": objectives}
    spec = ExperimentSpec.model_validate(content)
    results = [Told(point, None, stopped=True) for point in range(16)]
    assert sorted(next_points(spec, results)) == [16, 17, 18, 19]


def test_a_point_with_a_stopped_trial_is_told_without_values() -> None:
    """Also when another seed of it came to its end: the mean would be the lucky seeds'."""
    spec = experiment(seeds=[0, 1], early_stopping={"kind": "asha"})
    names = ("whole", "half", "stopped", "failed")
    epochs = spec.training.epochs
    until = {"whole": (epochs, epochs), "half": (epochs, 1), "stopped": (1, 1)}
    trials = [
        TrialRecord(
            f"{name}{seed}",
            name,
            seed,
            "SUCCEEDED" if name in until else "FAILED",
            curves={
                metric: [(epoch, 0.5 + seed) for epoch in range(1, until[name][seed] + 1)]
                for metric in spec.objectives
            }
            if name in until
            else {},
        )
        for name in names
        for seed in (0, 1)
    ]
    cells = tuple(CellRecord(name, {}, False, 0.1, 0.1) for name in names)
    record = ExperimentRecord(
        "search", "", dict(spec.objectives), cells, tuple(trials), spec.model_dump(mode="json")
    )
    assert told(spec, dict(enumerate(names)), record) == [
        Told(0, (1.0, 1.0)),
        Told(1, None, stopped=True),
        Told(2, None, stopped=True),
        Told(3, None),
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_a_point_whose_objective_is_no_real_value_is_told_without_values(value: float) -> None:
    """Not a number, or pycocotools' -1 for no box; the search goes on."""
    spec = experiment(samples=20, batch=18, seeds=[0])
    trials = [
        TrialRecord(
            name,
            name,
            0,
            "SUCCEEDED",
            curves={
                metric: [(1, ap if metric == "coco/AP" else 0.3)] for metric in spec.objectives
            },
        )
        for name, ap in (("real", 0.5), ("none", value))
    ]
    cells = tuple(CellRecord(name, {}, False, 0.1, 0.1) for name in ("real", "none"))
    record = ExperimentRecord("search", "", dict(spec.objectives), cells, tuple(trials), {})
    results = told(spec, {0: "real", 1: "none"}, record)
    assert results == [Told(0, (0.5, 0.3)), Told(1, None)]
    assert sorted(next_points(spec, results)) == list(range(2, 20))


def test_more_samples_than_points_are_refused_and_trials_are_counted_ahead() -> None:
    with pytest.raises(ValueError, match="got 21; there are 20"):
        experiment(samples=21)
    assert num_trials(experiment(samples=12)) == 24
    assert len(plan(experiment(samples=12, batch=3)).trials) == 6


def test_what_a_search_cannot_look_for_is_refused() -> None:
    content = experiment().model_dump(mode="json") | {
        "objectives": {"coco/AP": "max", "cost/latency_ms": "min"},
        "training": {"elastic": {"enabled": True}},
    }
    with pytest.raises(SpecError, match="cannot look for what is measured after it") as caught:
        validate_as(ExperimentSpec, content, lambda path: None)
    assert "an elastic training has several results" in str(caught.value)


class Scripted:
    """Gives each trial the results of its point; may be interrupted after some of them."""

    concurrent_trials = 1

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    def __init__(self, stop_after: int | None = None, failing: tuple[float, ...] = ()) -> None:
        self.done: list[tuple[float, str, int]] = []
        self._stop_after, self._failing = stop_after, failing

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def run(self, jobs: Sequence[TrialJob], listener: Listener) -> None:
        for job in jobs:
            if len(self.done) == self._stop_after:
                raise KeyboardInterrupt
            ratio = job.spec["model"]["token_selection"]["keep_ratio"]
            source = job.spec["model"]["value_source"]
            self.done.append((ratio, source, job.spec["seed"]))
            job.folder.mkdir(parents=True, exist_ok=True)
            listener.started(job.trial_id)
            if ratio in self._failing:
                listener.failed(job.trial_id, Failure("DataError", "cannot be read"))
                continue
            ap, cost = gives(_point({RATIO: ratio, LAYERS: source}))
            epochs = job.spec["training"]["epochs"]
            metrics = {"coco/AP": ap, "cost/gflops": cost, "epoch": float(epochs)}
            listener.epoch(job.trial_id, epochs, metrics)
            listener.succeeded(job.trial_id, [(epochs, metrics)])


@pytest.fixture
def make_lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], Lab]]:
    monkeypatch.setattr(lab_module.Lab, "_measure_latency", lambda *_: None)
    monkeypatch.setattr(lab_module.Lab, "report", lambda *_: None)
    monkeypatch.setattr(lab_module, "_load_ahead", lambda: None)
    stores: list[Store] = []

    def make(home: Path) -> Lab:
        home.mkdir(exist_ok=True)
        stores.append(Store(f"sqlite:///{home / 'lab.db'}"))
        return Lab(stores[-1], MemoryTracker(), home)

    yield make
    for store in stores:
        store.close()


def carry_out(lab: Lab, spec: ExperimentSpec, executor: Scripted) -> list[tuple[float, str, int]]:
    lab.sweep(spec, plan(spec), executor, PlainProgress(Console(quiet=True)))
    return executor.done


def test_a_search_goes_on_where_it_was_interrupted(
    make_lab: Callable[[Path], Lab], tmp_path: Path
) -> None:
    spec = experiment(samples=8, batch=3)
    whole = carry_out(make_lab(tmp_path / "whole"), spec, Scripted())
    assert len(whole) == 16
    lab = make_lab(tmp_path / "parts")
    parts: list[tuple[float, str, int]] = []
    for stop_after in (4, 5, None):
        executor = Scripted(stop_after)
        try:
            carry_out(lab, spec, executor)
        except KeyboardInterrupt:
            pass
        else:
            assert stop_after is None
        parts += executor.done
        # As a service does when the same experiment is submitted again.
        lab.store.record(spec, plan(spec), tmp_path / "parts" / "search")
    assert parts == whole
    assert carry_out(lab, spec, Scripted()) == []


def test_a_failed_point_does_not_end_a_search(
    make_lab: Callable[[Path], Lab], tmp_path: Path
) -> None:
    spec = experiment(samples=20, batch=5)
    done = carry_out(make_lab(tmp_path), spec, Scripted(failing=(0.5, 0.6)))
    # Nor is it tried again with every batch.
    assert len(done) == len(set(done)) == 40
    record = make_lab(tmp_path).record("search")
    assert any("search (optuna)" in reason for reason in record.exploratory)
