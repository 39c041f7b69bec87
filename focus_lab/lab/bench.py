"""What the lab itself costs: trials under the lab against the same trainings called directly."""

from __future__ import annotations

import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from focus_lab.errors import TrialError
from focus_lab.lab.executor import TrialJob
from focus_lab.specs.plan import Plan


def bench_lab(
    file: Path, settings: list[str], plan: Plan, rounds: int, on_round: Callable[[str], None]
) -> dict[str, Any]:
    """Run a plan directly and under the lab, in turn.

    Directly means `fit` in plain processes, as many side by side as the lab would run. Its time is
    counted from the first call to the last return, imports excluded; the lab's is that of the whole
    command, from nothing to the report.

    Args:
        file: the experiment, for the command.
        settings: its overrides.
        plan: its plan.
        rounds: how often each is run.
        on_round: told what is being run.

    Returns:
        The rows of `bench --json`, times in milliseconds; `overhead_ms` is the difference.
    """
    cores = os.cpu_count() or 1
    side_by_side = max(1, int(cores / plan.trials[0].spec.compute.cpus_per_worker))
    training = plan.trials[0].spec.training
    rows = []
    for number in range(rounds):
        on_round(f"round {number + 1} of {rounds}: directly, {side_by_side} side by side")
        direct = _directly(plan, side_by_side)
        on_round(f"round {number + 1} of {rounds}: under the lab")
        lab = _under_the_lab(file, settings)
        rows.append(
            {
                "case": f"{len(plan.trials)} trials of {training.epochs} epochs",
                "dtype": training.precision,
                "direction": "train",
                "against": "the same trainings called directly",
                "ours_ms": 1000 * lab,
                "against_ms": 1000 * direct,
                "ratio": direct / lab,
                "overhead_ms": 1000 * (lab - direct),
            }
        )
    return {
        "bench": "lab",
        "device": platform.processor() or platform.machine(),
        "threads": plan.trials[0].spec.compute.threads,
        "versions": {name: version(name) for name in ("torch", "ray", "mlflow")},
        "rows": rows,
    }


def _directly(plan: Plan, side_by_side: int) -> float:
    folder = Path(tempfile.mkdtemp(prefix="focus-lab-bench-"))
    jobs = [
        TrialJob(str(n), str(n), trial.spec.model_dump(mode="json"), folder / str(n))
        for n, trial in enumerate(plan.trials)
    ]
    # Started anew and not forked: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(side_by_side, mp_context=context) as pool:
            spans = list(pool.map(_span, jobs))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return max(end for _, end in spans) - min(start for start, _ in spans)


def _span(job: TrialJob) -> tuple[float, float]:
    from focus_lab.lab.worker import carry_out

    job.folder.mkdir(parents=True, exist_ok=True)
    start = time.time()
    carry_out(job, lambda epoch, metrics: None)
    return start, time.time()


def _under_the_lab(file: Path, settings: list[str]) -> float:
    home = Path(tempfile.mkdtemp(prefix="focus-lab-bench-"))
    command = [sys.executable, "-c", "from focus_lab.cli import main; main()", "sweep", str(file)]
    command += [word for setting in settings for word in ("--set", setting)]
    # The user's own stores must not be written to, nor hold the experiment already.
    kept = ("FOCUS_LAB_STORE", "FOCUS_LAB_HOME", "MLFLOW_TRACKING_URI")
    environment = {name: value for name, value in os.environ.items() if name not in kept}
    # A file and not a pipe: Ray's last processes hold a pipe for seconds after the command's end.
    log = home / "stderr.txt"
    start = time.perf_counter()
    try:
        with log.open("w") as talk:
            done = subprocess.run(
                [*command, "--out", str(home)],
                stdout=subprocess.DEVNULL,
                stderr=talk,
                env=environment,
            )
        if done.returncode:
            raise TrialError(f"bench lab: the sweep failed, got {log.read_text().strip()[-500:]}")
        return time.perf_counter() - start
    finally:
        shutil.rmtree(home, ignore_errors=True)
