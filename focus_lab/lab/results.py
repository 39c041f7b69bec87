"""From store and tracker to the records that analysis works on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from focus_lab.analysis.records import CellRecord, ExperimentRecord, TrialRecord
from focus_lab.lab.driver import trial_folder
from focus_lab.lab.states import TrialState
from focus_lab.lab.store import Experiment, Store, Trial
from focus_lab.lab.tracking import Curves, MissingRunError, Tracker
from focus_lab.specs.model import TokenSelection
from focus_lab.training.folder import MANIFEST, SAMPLES


def collect(experiment: Experiment, store: Store, tracker: Tracker) -> ExperimentRecord:
    """Everything that a report of the experiment needs, as it stands now."""
    trials = store.trials(experiment.id)
    manifest = _manifest(experiment, trials)
    records = []
    for trial in trials:
        curves: Curves = {}
        message = trial.message
        if trial.tracking_run_id:
            try:
                curves = tracker.curves(trial.tracking_run_id)
            except MissingRunError as error:
                message = message or str(error)
        samples = trial_folder(experiment, trial) / SAMPLES
        records.append(
            TrialRecord(
                id=trial.id,
                cell=trial.cell,
                seed=trial.seed,
                state=trial.state.value,
                message=message,
                curves=curves,
                samples=samples if (samples / "samples.json").is_file() else None,
            )
        )
    return ExperimentRecord(
        name=experiment.name,
        description=str(experiment.spec.get("description", "")),
        objectives=dict(experiment.spec.get("objectives", {})),
        cells=_cells(experiment, trials),
        trials=tuple(records),
        spec=experiment.spec,
        facts=_facts(manifest),
        foreground_share=manifest.get("foreground_share"),
    )


def _cells(experiment: Experiment, trials: list[Trial]) -> tuple[CellRecord, ...]:
    baseline = experiment.spec.get("sweep", {}).get("baseline")
    base = {part: experiment.spec[part] for part in ("model", "data", "training")}
    cells: dict[str, CellRecord] = {}
    for trial in trials:
        if trial.cell in cells:
            continue
        selection = TokenSelection.model_validate(trial.spec["model"]["token_selection"])
        same = all(trial.spec[part] == base[part] for part in base)
        cells[trial.cell] = CellRecord(
            name=trial.cell,
            overrides=trial.overrides,
            is_baseline=trial.cell == baseline if baseline else same,
            keep_ratio=selection.keep_ratio,
            mean_keep_ratio=selection.mean_keep_ratio,
        )
    return tuple(cells.values())


def _manifest(experiment: Experiment, trials: list[Trial]) -> dict[str, Any]:
    """Manifest of the first trial that is done."""
    for trial in trials:
        path: Path = trial_folder(experiment, trial) / MANIFEST
        if trial.state is TrialState.SUCCEEDED and path.is_file():
            content: dict[str, Any] = json.loads(path.read_text())
            return content
    return {}


def _facts(manifest: dict[str, Any]) -> dict[str, Any]:
    if not manifest:
        return {}
    environment, data = manifest["environment"], manifest["data"]
    git = environment.get("git")
    facts = {
        "machine": f"{environment['processor']}, {environment['cpu_count']} cores",
        "GPU": environment["gpu"] or "none",
        "deformable attention": manifest["ops_implementation"],
        "versions": ", ".join(f"{k} {v}" for k, v in environment["versions"].items()),
        "training images": data["train"]["images"],
        "validation images": data["val"]["images"],
        "data digest (val)": data["val"]["digest"][:16],
    }
    if git:
        facts["code"] = git["commit"][:12] + (" with uncommitted changes" if git["dirty"] else "")
    return facts
