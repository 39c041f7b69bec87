"""What a worker does with a job: train it, and leave its progress where the driver can see it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable

from focus_lab.lab.executor import TrialJob
from focus_lab.lab.progress import PROGRESS
from focus_lab.lab.trial_log import TrialLog, trial_log
from focus_lab.specs.experiment import TrialSpec
from focus_lab.training.fit import fit
from focus_lab.training.folder import SPOOL, storage_url
from focus_lab.training.storage import Storage
from focus_lab.training.whole_file import whole_file
from focus_lab.training.workers import ALONE, Workers

OnEpoch = Callable[[int, dict[str, float]], None]
History = list[tuple[int, dict[str, float]]]


class WorkerReporter:
    """Passes epochs on, and writes steps into the trial's folder.

    Args:
        job: the job.
        on_epoch: called as (epoch, metrics) for every epoch trained here.
        workers: all workers of the trial; the first one's steps are written.
        log: of this worker.
        should_stop: whether the machine is about to be taken back.
    """

    def __init__(
        self,
        job: TrialJob,
        on_epoch: OnEpoch,
        workers: Workers,
        log: TrialLog,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._path, self._log = job.folder / PROGRESS, log
        self._on_epoch, self._writes = on_epoch, workers.first
        self.should_stop = should_stop

    def report(self, epoch: int, metrics: dict[str, float]) -> None:
        """Pass the epoch on."""
        shown = ("loss/total", "coco/AP", "coco/AP50", "tokens/foreground_recall")
        numbers = "  ".join(f"{name} {metrics[name]:.4g}" for name in shown if name in metrics)
        self._log.line(f"epoch {epoch}  {numbers}")
        self._on_epoch(epoch, metrics)

    def progress(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """Write it for the live table, if the disk lets it; whole or not at all."""
        self._log.line(f"epoch {epoch}  step {step}/{steps}  loss {loss:.4g}")
        if not self._writes:
            return
        content = {"epoch": epoch, "step": step, "steps": steps, "loss": loss, "at": time.time()}
        with contextlib.suppress(OSError), whole_file(self._path) as partial:
            partial.write_text(json.dumps(content))


def carry_out(
    job: TrialJob,
    on_epoch: OnEpoch,
    workers: Workers = ALONE,
    parts: int = 1,
    should_stop: Callable[[], bool] = lambda: False,
) -> History:
    """Train a job to its end; returns (epoch, metrics) of every epoch.

    Args:
        job: the job.
        on_epoch: called as (epoch, metrics) for every epoch trained here.
        workers: all workers of the trial.
        parts: into how many smaller ones each micro-batch of the spec is divided.
        should_stop: whether the machine is about to be taken back; asked by all workers together.
    """
    spec = TrialSpec.model_validate(job.spec)
    with trial_log(job.folder, workers.rank, job.name) as log:
        reporter = WorkerReporter(job, on_epoch, workers, log, should_stop)
        url = storage_url(job.spec, job.folder)
        if url is None or not workers.first:
            return fit(spec, reporter, job.folder, workers, parts).history
        with Storage(url, job.folder / SPOOL, goes_on=workers.goes_on) as storage:
            return fit(spec, reporter, job.folder, workers, parts, storage).history
