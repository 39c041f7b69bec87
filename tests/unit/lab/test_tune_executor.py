"""Starting Ray, and what a cluster has room for; no cluster is started."""

from __future__ import annotations

from typing import Any

import pytest

from focus_lab.errors import ClusterUnreachableError, FocusLabError, UserError
from focus_lab.lab.tune_executor import TuneExecutor
from focus_lab.specs.training import ComputeSpec

pytestmark = pytest.mark.slow  # importing Ray takes seconds


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


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes an executor of a cluster with these machines."""
    import ray

    def start(
        *machines: dict[str, float], address: str | None = "auto", **settings: Any
    ) -> TuneExecutor:
        total: dict[str, float] = {}
        for machine in machines:
            for name, size in machine.items():
                total[name] = total.get(name, 0.0) + size
        nodes = [{"Alive": True, "Resources": machine} for machine in machines]
        monkeypatch.setattr(ray, "init", lambda **_: None)
        monkeypatch.setattr(ray, "nodes", lambda: nodes)
        monkeypatch.setattr(ray, "cluster_resources", lambda: total)
        side_by_side = settings.pop("side_by_side", None)
        executor = TuneExecutor(ComputeSpec(**settings), address, side_by_side=side_by_side)
        executor.start()
        return executor

    return start


def test_who_asks_for_gpus_asks_ray_for_them_before_there_are_any(started: Any) -> None:
    assert started(device="cuda")._needs()["gpu"] == 1.0
    assert started(device="cuda", gpus_per_worker=0.5)._needs()["gpu"] == 0.5
    assert started(device="auto")._needs()["gpu"] == 0.0
    assert started({"GPU": 2.0, "CPU": 4.0}, device="auto")._needs()["gpu"] == 1.0
    assert started({"GPU": 2.0, "CPU": 4.0}, device="cpu")._needs()["gpu"] == 0.0
    with pytest.raises(UserError, match=r"gpus_per_worker: no machine has room .* Ray has 0 GPUs"):
        started({"CPU": 4.0}, device="cuda", address=None)._needs()


def test_room_is_counted_by_machine_and_on_a_growing_cluster_as_granted(started: Any) -> None:
    small, large = {"CPU": 3.0}, {"CPU": 8.0}
    assert started(small, large, cpus_per_worker=4)._room({"cpu": 4.0, "gpu": 0.0}) == 2
    assert started(small, small, cpus_per_worker=4)._room({"cpu": 4.0, "gpu": 0.0}) == 0
    assert started(large, workers=2, cpus_per_worker=2).concurrent_trials == 2
    # None is there yet: as many as whoever granted them will have room for.
    assert started(workers=2, side_by_side=3).concurrent_trials == 3
    assert started(workers=2).concurrent_trials == 1


def test_what_is_called_and_finds_no_room_is_not_waited_for_without_end(
    started: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    executor = started(placement_timeout_s=60, stall_timeout_s=40)
    asked: list[float | None] = []

    class Remote:
        def remote(self, *_: object) -> str:
            return "answer"

    def get(answer: str, timeout: float | None = None) -> None:
        asked.append(timeout)
        raise ray.exceptions.GetTimeoutError("late")

    cancelled: list[str] = []
    monkeypatch.setattr(ray, "remote", lambda **_: lambda function: Remote())
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "cancel", lambda answer, force: cancelled.append(answer))
    with pytest.raises(FocusLabError, match=r"placement_timeout_s: .* no answer within 100 s"):
        executor.call(print)
    assert asked == [100.0]
    assert cancelled == ["answer"]
