"""The bench of training steps: what is booked where, and that production code is what runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from focus_lab.errors import UserError
from focus_lab.specs.experiment import TrialSpec
from focus_lab.training import bench, laps
from focus_lab.training.laps import PHASES, Laps, medians

MakeTrial = Callable[..., TrialSpec]
CPU = torch.device("cpu")


class FakeClock:
    """Every look at it is a second after the last."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(laps.time, "perf_counter", self)

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def test_time_is_booked_to_the_phase_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeClock(monkeypatch)
    watch = Laps(CPU)
    watch.running = True
    watch.begin_step()
    for phase in ("data", "forward", "forward", "backward"):
        watch.lap(phase)
    watch.end_step()
    assert watch.steps == [
        dict.fromkeys(PHASES, 0.0) | {"data": 1.0, "forward": 2.0, "backward": 1.0, "rest": 1.0}
    ]


def test_a_stopwatch_at_rest_books_nothing() -> None:
    watch = Laps(CPU)
    watch.begin_step()
    watch.lap("data")
    watch.end_step()
    assert watch.steps == []


def test_a_timed_call_gives_what_it_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    class Owner:
        def call(self, number: int, *, factor: int) -> int:
            return number * factor

    FakeClock(monkeypatch)
    owner, watch = Owner(), Laps(CPU)
    watch.running = True
    watch.around(owner, "call", "data", "forward")
    assert owner.call(2, factor=3) == 6
    watch.end_step()
    assert watch.steps[0]["data"] == watch.steps[0]["forward"] == 1.0


def test_the_median_step_is_that_of_the_whole_steps() -> None:
    zeros = dict.fromkeys(PHASES, 0.0)
    steps = [zeros | {"data": a, "forward": b} for a, b in ((1.0, 5.0), (2.0, 2.0), (9.0, 1.0))]
    found = medians(steps)
    assert (found["data"], found["forward"], found["step"]) == (2.0, 2.0, 6.0)


def test_a_bench_has_a_row_for_every_phase_of_both_settings(
    tiny_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_trial(training={"accumulation": 2, "batch_size": 4}, data={"num_train": 8})
    told: list[str] = []
    losses: dict[bool, list[float]] = {}
    original = bench._Contender._train

    def watched(self: bench._Contender, steps: int) -> float:
        seconds = original(self, steps)
        channels_last = self.loop.model.memory_format == torch.channels_last
        weight = next(self.loop.model.parameters())
        losses.setdefault(channels_last, []).append(float(weight.detach().sum()))
        return seconds

    monkeypatch.setattr(bench._Contender, "_train", watched)
    result = bench.bench_train(spec, steps=2, rounds=2, on_round=told.append)
    assert [row["direction"] for row in result["rows"]] == ["step", *PHASES]
    step, *phases = result["rows"]
    assert step["ratio"] == pytest.approx(step["against_ms"] / step["ours_ms"])
    assert all(row["ours_ms"] >= 0 and row["against_ms"] >= 0 for row in phases)
    assert {row["direction"] for row in phases if not row["ours_ms"]} <= {"transfer", "rest"}
    assert result["operators"]["plain PyTorch"] == "reference"
    assert 0 <= result["idle_share"]["ours"] <= 1
    assert result["images_per_second"]["ours"] > 0
    assert set(result["peak_memory_mib"].values()) == {None}  # a CPU's is that of both
    evaluation = result["evaluation"]
    # Two steps of four images, of the validation images that there are.
    assert evaluation["images"] == min(8, spec.data.num_val)
    assert evaluation["ratio"] == pytest.approx(evaluation["against_ms"] / evaluation["ours_ms"])
    assert len(told) == 4
    # Both settings train the same model on the same batches.
    assert losses[True] == pytest.approx(losses[False], rel=1e-3)
    assert losses[True][0] != losses[True][-1]


@pytest.mark.parametrize("argument", ["steps", "rounds"])
def test_a_bench_of_nothing_is_refused(tiny_trial: MakeTrial, argument: str) -> None:
    with pytest.raises(UserError, match=f"--{argument}: must be at least 1, got 0"):
        bench.bench_train(tiny_trial(), **{argument: 0})
