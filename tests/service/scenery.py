"""A service as it looks after some days of use: experiments in every state, trials with curves.

Everything is played through the queue and the tracker, as drivers and dispatchers do it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np
import sqlalchemy as sa
from PIL import Image

from focus_lab.lab.driver import trial_folder
from focus_lab.lab.queue.dispatcher import Dispatcher
from focus_lab.lab.queue.entry import Entry
from focus_lab.lab.queue.jobs import JobStatus, MemoryJobs
from focus_lab.lab.queue.submission import Submitter
from focus_lab.lab.states import TrialState
from focus_lab.lab.store import Trial
from focus_lab.lab.tables import AttemptRow, QueueRow
from focus_lab.lab.trial_log import LOGS
from focus_lab.specs.experiment import ExperimentSpec
from focus_lab.specs.plan import plan
from service.routes.contents import REPORTS
from service.state import State

RATIO = "model.token_selection.keep_ratio"
RATIOS = (0.1, 0.2, 0.3, 0.5, 1.0)


@dataclass
class Scenery:
    """Plays a life.

    Args:
        state: of the service.
        jobs: of the cluster that is played.
        dispatcher: goes round when told.
        content: a spec without its name.
    """

    state: State
    jobs: MemoryJobs
    dispatcher: Dispatcher
    content: Callable[..., dict[str, Any]]
    entries: dict[str, Entry] = field(default_factory=dict)

    def submit(
        self, name: str, user: str = "ann", project: str = "fish", priority: int = 0, **parts: Any
    ) -> Entry:
        """Queue an experiment."""
        spec = ExperimentSpec.model_validate(self.content(name, **parts))
        entry, _ = self.state.queue.submit(
            spec, plan(spec), self.state.home / name, Submitter(user, project), priority=priority
        )
        self.entries[name] = entry
        return entry

    def start(self, name: str) -> Entry:
        """Its turn has come, and its driver begins."""
        self.dispatcher.round()
        entry = self.state.queue.entry(name)
        self.jobs.jobs[entry.job_id].status = JobStatus.RUNNING
        self.state.attempts.begin(entry.id, entry.attempt)
        return entry

    def train(
        self, name: str, trial: Trial, epochs: int, end: TrialState | None = None, message: str = ""
    ) -> None:
        """A trial trains for some epochs, and may end."""
        store, tracker = self.state.queue.store, self.state.tracker
        entry = self.state.queue.entry(name)
        store.set_tracking_id(entry.id, "7")
        run = tracker.ensure_run("7", trial)
        trial = store.set_tracking_run(trial, run)
        trial = store.move(trial, TrialState.RUNNING)
        ratio = trial.spec["model"]["token_selection"]["keep_ratio"]
        self._tell(entry, trial, TrialState.RUNNING, 0)
        for epoch in range(1, epochs + 1):
            ap, loss = self._numbers(ratio, trial.seed, epoch)
            ap *= 4.4 / (4 + 0.1 * trial.spec["training"]["batch_size"])
            tracker.log_epoch(
                run, epoch, {"coco/AP": ap, "loss/total": loss, "coco/AP50": ap * 1.4}
            )
            self._tell(entry, trial, TrialState.RUNNING, epoch, loss, ap)
        if end is not None:
            tracker.log_final(
                run,
                {
                    "cost/gflops": 0.12 + 0.05 * ratio, "cost/encoder_gflops": 0.02 + 0.05 * ratio,
                    "cost/latency_ms": 10 + 2 * ratio, "cost/params": 183_402.0,
                    "tokens/kept_share": 0.9 * ratio, "tokens/foreground_recall": 1 - 0.3**ratio,
                },
            )  # fmt: skip
            trial = store.move(
                trial, end, failure="out-of-memory" if message else None, message=message or None
            )
            self._tell(entry, trial, end, epochs, message=message or None)

    def end(self, name: str, outcome: str, message: str | None = None) -> None:
        """Its driver says how it went, and ends."""
        entry = self.state.queue.entry(name)
        self.state.attempts.report(entry.id, entry.attempt, outcome, message)
        self.jobs.jobs[entry.job_id].status = JobStatus.ENDED
        self.dispatcher.round()

    def trials(self, name: str) -> list[Trial]:
        """The trials of an experiment."""
        return self.state.queue.store.trials(self.entries[name].id)

    def age(self, name: str, hours: float) -> None:
        """Let it have happened some hours ago."""
        back = timedelta(hours=hours)
        with self.state.queue.store.database.session() as session:
            row = session.get_one(QueueRow, self.entries[name].id)
            for column in ("submitted_at", "queued_at", "started_at", "ended_at"):
                at = getattr(row, column)
                setattr(row, column, at - back if at is not None else None)
            session.execute(
                sa.update(AttemptRow)
                .where(AttemptRow.experiment_id == row.experiment_id)
                .values(admitted_at=row.submitted_at)
            )

    def write_files(self, name: str) -> None:
        """A report, a log and pictures."""
        stored = self.state.queue.store.experiment(self.entries[name].id)
        for form, file in REPORTS.items():
            path = stored.folder / "report" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            title = f"<!doctype html><title>Report of {name}</title>"
            path.write_text(title if form == "html" else "{}")
        random = np.random.default_rng(0)
        for trial in self.trials(name):
            folder = trial_folder(stored, trial)
            (folder / LOGS).mkdir(parents=True)
            lines = "".join(f"2026-01-01T00:00:{s:02d}Z step {s} loss 9.1\n" for s in range(40))
            (folder / LOGS / "rank-0.log").write_text(lines)
            (folder / "samples").mkdir()
            pixels = np.full((96, 128, 3), 150, np.uint8)
            pixels[30:60, 40:90] = (190, 80, 60)
            Image.fromarray(pixels).save(folder / "samples" / "1.jpg")
            ratio = trial.spec["model"]["token_selection"]["keep_ratio"]
            rows, columns = np.mgrid[0:12, 0:16]
            far = np.hypot(rows - 5.5, columns - 8) + random.normal(0, 1, (12, 16))
            depth = np.where(far < np.quantile(far, ratio), 2, 0)
            image = {
                "image_id": "1", "file": "1.jpg", "original_size": [96, 128],
                "input_size": [96, 128], "padded_size": [96, 128],
                "truth": {"boxes_xyxy": [[40, 30, 90, 60]], "labels": [0]},
                "detections": {"boxes_xyxy": [[41, 29, 91, 61]], "labels": [0], "scores": [0.8]},
                "level_shapes": [[12, 16]], "strides": [8], "kept_depth": depth.ravel().tolist(),
            }  # fmt: skip
            content = {"class_names": ["crab"], "num_encoder_layers": 2, "images": [image]}
            (folder / "samples" / "samples.json").write_text(json.dumps(content))

    @staticmethod
    def _numbers(ratio: float, seed: int, epoch: int) -> tuple[float, float]:
        rise = 1 - math.exp(-epoch / 4)
        ap = (0.30 + 0.14 * ratio**0.5 + 0.01 * math.sin(7 * seed + epoch)) * rise
        return ap, 14 - 6 * rise - ratio + 0.3 * math.sin(3 * seed + 2 * epoch)

    def _tell(
        self,
        entry: Entry,
        trial: Trial,
        state: TrialState,
        epoch: int,
        loss: float | None = None,
        ap: float | None = None,
        message: str | None = None,
    ) -> None:
        self.state.attempts.tell(
            entry.id,
            "trial",
            {
                "trial": trial.name, "state": state.value, "epoch": epoch, "epochs": 12,
                "loss": loss, "ap": ap, "message": message,
            },
        )  # fmt: skip


def build(scenery: Scenery) -> Scenery:
    """Experiments in every state."""
    sweep = {"axes": {RATIO: list(RATIOS)}, "seeds": [0, 1]}
    gpu = {"device": "cuda", "cpus_per_worker": 2}
    epochs = {"training": scenery.content()["training"] | {"epochs": 12}}

    def finish(name: str, hours: float, **parts: Any) -> None:
        scenery.submit(name, **parts)
        scenery.start(name)
        for trial in scenery.trials(name):
            scenery.train(name, trial, 12, TrialState.SUCCEEDED)
        scenery.end(name, "succeeded")
        scenery.age(name, hours)

    text = "How many foreground tokens does the encoder need on shoals?"
    finish("keep-ratio", 30, sweep=sweep, description=text, compute=gpu, **epochs)
    scenery.write_files("keep-ratio")
    score = {"axes": {RATIO: [0.1, 0.3]}, "seeds": [0, 1]}
    finish(
        "keep-ratio-long", 52, user="bob", project="reef", sweep=score, compute=gpu,
        training=epochs["training"] | {"batch_size": 8},
    )  # fmt: skip
    scenery.submit("reef-512", "cleo", "reef", sweep=score, compute=gpu, **epochs)
    scenery.start("reef-512")
    first, second, *_ = scenery.trials("reef-512")
    scenery.train("reef-512", first, 12, TrialState.SUCCEEDED)
    out = "worker 0 ran out of GPU memory at batch 14; lower training.batch_size"
    scenery.train("reef-512", second, 3, TrialState.FAILED, out)
    scenery.end("reef-512", "failed", f"1 of 4 trials failed: {out}")
    scenery.age("reef-512", 5)
    scenery.submit("first-try", "cleo", "reef", sweep=score, **epochs)
    scenery.state.queue.act("first-try", "cancel", "cleo")  # type: ignore[arg-type]
    scenery.age("first-try", 80)
    scenery.submit("night-run", "bob", "reef", sweep=score, **epochs)
    scenery.state.queue.act("night-run", "pause", "bob")  # type: ignore[arg-type]
    scenery.age("night-run", 9)
    scenery.submit(
        "scoring", priority=5, sweep=sweep, compute=gpu, **epochs,
        description="Which part of the score matters: modulation, categories, or neither?",
    )  # fmt: skip
    scenery.start("scoring")
    done, also, running, *_ = scenery.trials("scoring")
    scenery.train("scoring", done, 12, TrialState.SUCCEEDED)
    scenery.train("scoring", also, 12, TrialState.SUCCEEDED)
    scenery.train("scoring", running, 5)
    scenery.age("scoring", 1.2)
    scenery.submit("ablation", "bob", "reef", sweep=score, compute=gpu, **epochs)
    scenery.dispatcher.round()
    for number in range(8):
        user, project = (("ann", "fish"), ("bob", "reef"), ("cleo", "reef"))[number % 3]
        scenery.submit(
            f"cascade-{number}", user, project, 10 - number, sweep=score, compute=gpu, **epochs
        )
    scenery.submit(
        "huge", "bob", "reef", sweep=score, **epochs,
        compute={"device": "cuda", "workers": 4, "cpus_per_worker": 30},
    )  # fmt: skip
    scenery.dispatcher.round()
    return scenery
