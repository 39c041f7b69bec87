"""Promotion: the weights of a trial become a version of a registered model."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from focus_lab.errors import UserError
from focus_lab.lab.driver import trial_folder
from focus_lab.lab.lab import Lab
from focus_lab.lab.states import TrialState
from focus_lab.lab.store import Trial
from focus_lab.specs.compose import override
from focus_lab.specs.metrics import reading
from focus_lab.specs.plan import KEEP_RATIO, readings
from focus_lab.training import checkpoint as checkpoints
from focus_lab.training.folder import BEST, checkpoint_folder

FILE = "checkpoint.pt"
_AP = "coco/AP"


@dataclass(frozen=True)
class Promotion:
    """A version of a registered model, and which weights of its trial it has."""

    version: str
    epoch: int
    """The epoch that its weights are from: of those with a checkpoint the best one by AP."""
    ap: float | None
    """AP at that epoch; of a cell that is read at another ratio than the trained one only the last
    epoch was evaluated at it, so None at any other."""
    reported_epoch: int | None
    """The trial's last epoch, which the report shows; None when the tracker has no AP of it."""
    reported_ap: float | None
    """AP in the report."""

    @property
    def sentence(self) -> str:
        """Which weights were taken, and how they differ from those of the report."""
        ap = (
            "at which this keep ratio was not evaluated" if self.ap is None else f"AP {self.ap:.3f}"
        )
        if self.reported_epoch is None or self.reported_ap is None:
            return f"weights of epoch {self.epoch}, {ap}; the report has no AP of it"
        if self.epoch == self.reported_epoch:
            return f"weights of epoch {self.epoch}, the last one, as in the report: {ap}"
        return (
            f"weights of epoch {self.epoch}, the best one, {ap}; the report shows epoch "
            f"{self.reported_epoch}, AP {self.reported_ap:.3f}, because the best epoch was chosen "
            "by the validation images"
        )


def promote(lab: Lab, name: str, cell: str, seed: int | None, model: str, alias: str) -> Promotion:
    """Register the best weights of a trial and let an alias point to them.

    The version's tags say which epoch they are from, its AP, and what the report shows instead.

    Args:
        lab: has the experiment.
        name: of the experiment.
        cell: of the trial; `CELL@RATIO` for an elastic one at a keep ratio that it was read at.
        seed: of the trial; None takes the first one that was trained to its end. Not the best: that
            would take a seed's luck for the cell's merit.
        model: name of the registered model; made when missing.
        alias: name of the place that the version takes, for example `champion`.

    Raises:
        StoreError: there is no such experiment.
        UserError: there is no such trial, it was stopped early, or its weights are gone.
        TrackerError: the tracker does not take it.
    """
    experiment = lab.store.experiment(name)
    trials = lab.store.trials(experiment.id)
    names = {shown: trial.cell for trial in trials for shown in _names(trial)}
    if cell not in names:
        raise UserError(f"--cell: no such cell, got {cell!r}; cells are {', '.join(names)}")
    done = [t for t in trials if t.cell == names[cell] and t.state is TrialState.SUCCEEDED]
    # What was stopped early has succeeded as well, in being found weak.
    whole = {trial.seed for trial in lab.record(name).trials_of(cell)}
    chosen = next((t for t in done if t.seed in whole and seed in (None, t.seed)), None)
    if chosen is None or chosen.tracking_run_id is None:
        have = ", ".join(str(trial.seed) for trial in done if trial.seed in whole) or "none"
        wanted = "any" if seed is None else seed
        short = [trial for trial in done if seed in (None, trial.seed)]
        problem = "was trained to its end: it was stopped early" if short else "has succeeded"
        raise UserError(f"--seed: no trial of {cell} {problem}, got {wanted}; done are {have}")
    folder = checkpoint_folder(trial_folder(experiment, chosen))
    kept = [path for path in checkpoints.newest_and_best(folder) if path.name == BEST]
    path = kept[0] if kept else checkpoints.latest_path(folder)
    if path is None:
        raise UserError(
            f"{folder}: holds no checkpoint of {chosen.name}; they were removed, or are on another "
            "machine: copy them here"
        )
    saved = checkpoints.load(path)
    spec, metric = saved.spec, _AP
    if cell != chosen.cell:
        ratio = _names(chosen)[cell]
        if ratio is not None and ratio != spec["model"]["token_selection"]["keep_ratio"]:
            metric = reading(ratio) + _AP
        spec = override(spec, KEEP_RATIO, ratio)
        spec = override(spec, "training.elastic", {"enabled": False, "evaluate_at": []})
    run_id = chosen.tracking_run_id
    reported = lab.tracker.curves(run_id, (metric,)).get(metric)
    reported_epoch, reported_ap = reported[-1] if reported else (None, None)
    ap = dict(saved.history).get(saved.epoch, {}).get(metric)
    with tempfile.TemporaryDirectory(prefix="focus-lab-promote-") as scratch:
        # What only training needs is a good part of a checkpoint.
        weights = replace(saved, spec=spec, model=saved.ema or saved.model, ema=None, optimizer={})
        checkpoints.write(weights, Path(scratch) / FILE)
        tags = {
            "focus_lab.experiment": experiment.name,
            "focus_lab.cell": cell,
            "focus_lab.seed": str(chosen.seed),
            "focus_lab.fingerprint": chosen.fingerprint,
            "focus_lab.epoch": str(saved.epoch),
            "focus_lab.ap": _tag(ap),
            "focus_lab.reported_epoch": _tag(reported_epoch),
            "focus_lab.reported_ap": _tag(reported_ap),
        }
        version = lab.tracker.register_model(run_id, Path(scratch) / FILE, model, alias, tags)
    return Promotion(version, saved.epoch, ap, reported_epoch, reported_ap)


def _tag(value: float | None) -> str:
    return "not measured" if value is None else repr(value)


def _names(trial: Trial) -> dict[str, float | None]:
    """Names of a trial's cell in the report -> the keep ratio that each is read at."""
    ratios = trial.spec["training"].get("elastic", {}).get("evaluate_at", [])
    read: dict[str, float | None] = dict(readings(trial.cell, ratios))
    return read or {trial.cell: None}
