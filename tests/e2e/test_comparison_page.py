"""`focus-lab ui`: MLflow's page of an experiment, as it is provisioned, in a real browser."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import browser as browsers
import pytest
from chaos import free_port

from focus_lab.lab.lab import open_lab
from focus_lab.lab.states import TrialState
from focus_lab.lab.ui import page_url
from focus_lab.specs.experiment import ExperimentSpec
from focus_lab.specs.plan import plan

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browsers.chromium() is None, reason="there is no Chromium"),
]
RATIO = "model.token_selection.keep_ratio"


@pytest.fixture
def home(tmp_path: Path, tiny_experiment: Callable[..., ExperimentSpec]) -> Path:
    """A lab with two experiments of three seeds: one varies ratios alone, one more than that."""
    sweeps: dict[str, dict[str, Any]] = {
        "ratios": {"axes": {RATIO: [0.25, 0.5, 1.0]}},
        "parts": {"cells": {"without": {"model.dual_attention.enabled": False}}},
    }
    for name, sweep in sweeps.items():
        spec = tiny_experiment(name, sweep=sweep | {"seeds": [0, 1, 2]})
        with open_lab(tmp_path, None, None) as lab:
            experiment = lab.store.record(spec, plan(spec), tmp_path / name)
            tracking_id = lab.tracker.ensure_experiment(experiment)
            lab.store.set_tracking_id(experiment.id, tracking_id)
            for number, trial in enumerate(lab.store.trials(experiment.id)):
                run = lab.tracker.ensure_run(tracking_id, trial)
                lab.tracker.start_run(run)
                for epoch in (1, 2):
                    ap = 0.1 * epoch + 0.01 * number
                    metrics = {"coco/AP": ap, "cost/gflops": 2.0 + number, "loss/total": 3.0}
                    lab.tracker.log_epoch(run, epoch, metrics)
                lab.tracker.end_run(run, TrialState.SUCCEEDED)
    return tmp_path


@pytest.fixture
def base(home: Path) -> Iterator[str]:
    """Where the command has started MLflow's server."""
    command = [sys.executable, "-c", "from focus_lab.cli import main; main()"]
    options = ["ui", "ratios", "--out", str(home), "--port", str(free_port())]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        said = next((line for line in server.stdout if line.startswith("http")), "")
        yield said.split("/#")[0]
        server.terminate()


def test_seeds_are_grouped_and_ap_is_drawn_against_cost(
    home: Path, base: str, tmp_path: Path
) -> None:
    expected = {"ratios": ["0.25", "0.5", "1.0"], "parts": ["baseline", "without"]}

    async def whole() -> None:
        async with browsers.started() as browser:
            for name, groups in expected.items():
                tab = await browser.tab()
                await tab.look(1440, 1000)
                await tab.open(page_url(name, home, None, None, base))
                for group in groups:
                    await tab.until(f"document.body.innerText.includes('Group: {group}\\n3')")
                # The first chart has a point a group, not a point a trial.
                chart = "document.querySelector('.js-plotly-plot')"
                await tab.until(f"{chart} && {chart}.textContent.includes('cost/gflops')")
                points = f"{chart}.querySelectorAll('.scatterlayer .point').length"
                await tab.until(f"{points} === {len(groups)}")
                await tab.picture(tmp_path / f"{name}.png")

    asyncio.run(whole())
