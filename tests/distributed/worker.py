"""One of several workers, as a process: trains what a file says, and writes what it got.

Arguments: rank, number of workers, file through which they meet, job file, file of the result.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import distributed

from focus_lab.specs.experiment import TrialSpec
from focus_lab.training.fit import fit
from focus_lab.training.reporter import MemoryReporter, Metrics
from focus_lab.training.workers import ProcessGroup


class DyingReporter(MemoryReporter):
    """Ends the process after an epoch, without a word to anyone."""

    def __init__(self, last: int | None) -> None:
        super().__init__()
        self._last = last

    def report(self, epoch: int, metrics: Metrics) -> None:
        super().report(epoch, metrics)
        if epoch == self._last:
            sys.exit(9)


def main() -> None:
    rank, size = int(sys.argv[1]), int(sys.argv[2])
    job = json.loads(Path(sys.argv[4]).read_text())
    distributed.init_process_group("gloo", f"file://{sys.argv[3]}", rank=rank, world_size=size)
    torch.manual_seed(rank)  # whoever relied on it would differ
    spec = TrialSpec.model_validate(job["spec"])
    reporter = DyingReporter(job.get("dies_after"))
    result = fit(spec, reporter, Path(job["folder"]), ProcessGroup())
    Path(sys.argv[5]).write_text(json.dumps({"history": result.history, "told": reporter.epochs}))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
