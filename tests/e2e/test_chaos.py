"""Kill -9 of anything at any moment: every sweep ends with the numbers of an undisturbed one.

`make chaos` runs 30 sweeps with two deaths each, `make test` one; any three from a multiple of
three have every victim once.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chaos
import postgresql
import pytest
import yaml

from focus_lab.lab.mlflow_tracker import TRIAL_TAG
from focus_lab.specs.compose import merge
from focus_lab.specs.experiment import ExperimentSpec
from focus_lab.specs.plan import plan
from focus_lab.training.fit import fit
from focus_lab.training.reporter import MemoryReporter

RUNS = int(os.environ.get("FOCUS_LAB_CHAOS_RUNS", "1"))
EPOCHS = 12
RATIO = "model.token_selection.keep_ratio"
RATIOS = (0.3, 1.0)
_SWEEP_SECONDS = 600.0
_DEATHS = 2

pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.timeout(300 + 300 * RUNS),
    pytest.mark.skipif(postgresql.why_not() is not None, reason=str(postgresql.why_not())),
]


@pytest.fixture(scope="module")
def lab() -> Iterator[chaos.Place]:
    with chaos.place() as started:
        yield started


@pytest.fixture
def content(tiny_content: dict[str, Any]) -> dict[str, Any]:
    return merge(
        tiny_content,
        {
            "data": {"image_size": [64, 64], "num_train": 24},
            "training": {"epochs": EPOCHS},
            "compute": {"max_failures": 6},
            "sweep": {"axes": {RATIO: list(RATIOS)}},
        },
    )


def victims(number: int) -> list[str]:
    """Two for a run; any three runs that follow each other from a multiple of 3 have all six."""
    deck = random.Random(number // 3).sample(chaos.VICTIMS, len(chaos.VICTIMS))
    first = _DEATHS * (number % 3)
    return deck[first : first + _DEATHS]


def undisturbed(content: dict[str, Any], folder: Path) -> dict[str, list[dict[str, float]]]:
    """Cell -> metrics of every epoch."""
    spec = ExperimentSpec.model_validate(content)
    return {
        trial.cell: [m for _, m in fit(trial.spec, MemoryReporter(), folder / trial.cell).history]
        for trial in plan(spec).trials
    }


def say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def test_every_sweep_ends_as_if_nothing_had_happened(
    lab: chaos.Place,
    content: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from mlflow import MlflowClient

    expected = undisturbed(merge(content, {"name": "alone"}), tmp_path)
    client = MlflowClient(lab.tracking)
    recoveries: dict[str, list[float]] = {}
    for number in range(RUNS):
        workers = 2 if number % 3 == 2 else 1
        spec = merge(content, {"name": f"chaos-{number}", "compute": {"workers": workers}})
        file = tmp_path / f"chaos-{number}.yaml"
        file.write_text(yaml.safe_dump(spec))
        deaths = carry_out(lab, file, number)
        for death in deaths:
            recoveries.setdefault(death.victim, []).append(death.recovery)
        with capsys.disabled():
            told = ", ".join(
                f"{d.victim} at {d.after:.0f} s (went on after {d.recovery:.0f} s)" for d in deaths
            )
            say(f"  run {number}, {workers} workers a trial: {told or 'it was faster'}")
        check(lab, client, spec["name"], file.with_suffix(".json"), expected, exact=workers == 1)
    with capsys.disabled():
        for victim, seconds in sorted(recoveries.items()):
            middle = sorted(seconds)[len(seconds) // 2]
            say(
                f"  {victim}: {len(seconds)} deaths, went on after {middle:.0f} s (median), "
                f"{max(seconds):.0f} s at most"
            )


def carry_out(lab: chaos.Place, file: Path, number: int) -> list[chaos.Kill]:
    """One sweep with its deaths, to its end."""
    sweep = chaos.Sweep(lab, file)
    try:
        return disturb(lab, sweep, number)
    finally:
        sweep.end()


def disturb(lab: chaos.Place, sweep: chaos.Sweep, number: int) -> list[chaos.Kill]:
    """Kill what is to be killed, and wait for the end."""
    rng = random.Random(1000 + number)
    began = time.monotonic()
    deaths: list[chaos.Kill] = []
    for victim in victims(number):
        # Some before the first step, most in the middle.
        wait = rng.uniform(0.0, 15.0)
        until = time.monotonic() + wait
        while time.monotonic() < until and sweep.process.poll() is None:
            time.sleep(0.05)
        if sweep.process.poll() is not None:
            break
        death = chaos.Kill(victim, time.monotonic() - began)
        killed = time.monotonic()
        if not chaos.strike(lab, sweep, victim, rng):
            break
        before = chaos.goes_on(sweep.said())
        chaos.wait_until(
            lambda before=before: (  # type: ignore[misc]
                chaos.goes_on(sweep.said()) > before or sweep.process.poll() is not None
            ),
            f"it goes on after the death of the {victim}:\n{sweep.said()}",
            _SWEEP_SECONDS,
        )
        death.recovery = time.monotonic() - killed
        deaths.append(death)
    assert sweep.process.wait(_SWEEP_SECONDS) == 0, sweep.said()
    assert "Traceback" not in sweep.said(), sweep.said()
    return deaths


def check(
    lab: chaos.Place,
    client: Any,
    name: str,
    result: Path,
    expected: dict[str, list[dict[str, float]]],
    *,
    exact: bool,
) -> None:
    """Every trial succeeded once, with every epoch once and its numbers; nobody trains any more."""
    trials = json.loads(result.read_text())["trials"]
    assert [trial["status"] for trial in trials] == ["SUCCEEDED"] * len(RATIOS), trials
    found = client.get_experiment_by_name(name)
    runs = client.search_runs([found.experiment_id])
    of_trials = [run for run in runs if TRIAL_TAG in run.data.tags]
    assert len(of_trials) == len(trials), "a trial has two runs"
    assert len(runs) == len(trials) + 1, "there is one summary"
    for trial in trials:
        epochs = expected[trial["cell"]]
        for metric in ("loss/total", "coco/AP"):
            points = client.get_metric_history(trial["mlflow_run_id"], metric)
            assert sorted(point.step for point in points) == list(range(1, EPOCHS + 1)), metric
            values = [point.value for point in sorted(points, key=lambda point: point.step)]
            wanted = [metrics[metric] for metrics in epochs]
            # Two workers add in another order; 120 steps let that grow.
            assert values == (wanted if exact else pytest.approx(wanted, rel=0.05, abs=0.05)), name
    chaos.wait_until(
        lambda: not lab.training(chaos.TRAIN_WORKER, "TrainController"),
        "nobody trains any more",
        60,
    )
