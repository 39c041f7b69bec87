"""From store and tracker to the records that analysis works on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from focus_lab.analysis.records import CellRecord, ExperimentRecord, TrialRecord
from focus_lab.lab.driver import trial_folder
from focus_lab.lab.states import TrialState
from focus_lab.lab.store import Experiment, Store, Trial
from focus_lab.lab.tracking import Curves, MissingRunError, Tracker
from focus_lab.specs.compose import override
from focus_lab.specs.metrics import reading
from focus_lab.specs.model import TokenSelection
from focus_lab.specs.plan import KEEP_RATIO, readings
from focus_lab.training.folder import MANIFEST, SAMPLES

LATENCY = "latency.json"
"""A file of the experiment's folder: what the newest measurement found, by fingerprint."""

_ELASTIC = "training.elastic."
_LATENCY = "cost/latency_"
_READ = ("coco/", "cost/", "tokens/")
"""What is evaluated at each keep ratio; all else is of the training."""


def collect(experiment: Experiment, store: Store, tracker: Tracker) -> ExperimentRecord:
    """Everything that a report of the experiment needs, as it stands now."""
    trials = store.trials(experiment.id)
    manifest = _manifest(experiment, trials)
    measured = latencies(experiment.folder)
    records = []
    for trial in trials:
        curves: Curves = {}
        message = trial.message
        if trial.tracking_run_id:
            try:
                curves = tracker.curves(trial.tracking_run_id)
            except MissingRunError as error:
                message = message or str(error)
        if measured and trial.fingerprint not in measured:
            # Of an earlier measurement; they compare only within one.
            curves = {n: points for n, points in curves.items() if not n.startswith(_LATENCY)}
        record = TrialRecord(
            id=trial.id,
            cell=trial.cell,
            seed=trial.seed,
            state=trial.state.value,
            message=message,
            curves=curves,
            samples=_samples(trial_folder(experiment, trial) / SAMPLES),
        )
        records += _readings(record, trial)
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


def _readings(record: TrialRecord, trial: Trial) -> list[TrialRecord]:
    """What stands for a trial in the report: itself, or each keep ratio that it was read at."""
    ratios = _ratios_read(trial.spec)
    trained = trial.spec["model"]["token_selection"]["keep_ratio"]
    found = []
    for name, ratio in readings(trial.cell, ratios).items():
        prefix = reading(ratio)
        if ratio == trained:
            curves = {n: points for n, points in record.curves.items() if not n.startswith("at_")}
            found.append(replace(record, cell=name, curves=curves))
            continue
        # Training is that of all readings; latency is that of the trained ratio alone.
        curves = {
            n: points for n, points in record.curves.items() if not n.startswith(("at_", *_READ))
        } | {
            n.removeprefix(prefix): points
            for n, points in record.curves.items()
            if n.startswith(prefix)
        }
        samples = record.samples and _samples(record.samples / prefix)
        found.append(replace(record, cell=name, curves=curves, samples=samples))
    return found or [record]


def last_values(
    record: ExperimentRecord, trials: Mapping[str, Trial]
) -> dict[str, dict[str, float]]:
    """Id of a trial -> its metrics at the last epoch, under the tracker's names.

    Those of an elastic training's reading at another keep ratio than the trained one begin with
    `at_RATIO/`.
    """
    ratios = {cell.name: cell.keep_ratio for cell in record.cells}
    found: dict[str, dict[str, float]] = {}
    for one in record.trials:
        trained = trials[one.id].spec["model"]["token_selection"]["keep_ratio"]
        prefix = "" if ratios[one.cell] == trained else reading(ratios[one.cell])
        found.setdefault(one.id, {}).update(
            (prefix + name if name.startswith(_READ) else name, points[-1][1])
            for name, points in one.curves.items()
        )
    return found


def latencies(folder: Path) -> dict[str, dict[str, float]]:
    """Fingerprint -> latency of the trials of an experiment's newest measurement."""
    try:
        content: dict[str, dict[str, float]] = json.loads((folder / LATENCY).read_text())
    except (OSError, ValueError):
        return {}
    return content


def _samples(folder: Path) -> Path | None:
    return folder if (folder / "samples.json").is_file() else None


def _ratios_read(spec: dict[str, Any]) -> list[float]:
    ratios: list[float] = spec["training"].get("elastic", {}).get("evaluate_at", [])
    return ratios


def _cells(experiment: Experiment, trials: list[Trial]) -> tuple[CellRecord, ...]:
    baseline = experiment.spec.get("sweep", {}).get("baseline")
    base = {part: experiment.spec[part] for part in ("model", "data", "training")}
    cells: dict[str, CellRecord] = {}
    designed: dict[str, dict[str, Any]] = {}
    for trial in trials:
        for name, spec, overrides in _designed(trial):
            designed[name] = spec
            selection = TokenSelection.model_validate(spec["model"]["token_selection"])
            same = all(spec[part] == base[part] for part in base)
            cells[name] = CellRecord(
                name=name,
                overrides=overrides,
                is_baseline=name == baseline if baseline else same,
                keep_ratio=selection.keep_ratio,
                mean_keep_ratio=selection.mean_keep_ratio,
                read_from=None if name == trial.cell else trial.cell,
            )
    return tuple(
        replace(cell, alone=_alone(designed[name], designed)) if cell.read_from else cell
        for name, cell in cells.items()
    )


def _alone(spec: dict[str, Any], designed: dict[str, dict[str, Any]]) -> str | None:
    """The cell whose training differs from an elastic one in having a single keep ratio."""
    wanted = _but_elastic(spec)
    for name, other in designed.items():
        elastic = other["training"].get("elastic", {}).get("enabled", False)
        if not elastic and _but_elastic(other) == wanted:
            return name
    return None


def _but_elastic(spec: dict[str, Any]) -> dict[str, Any]:
    training = {name: value for name, value in spec["training"].items() if name != "elastic"}
    return {"model": spec["model"], "data": spec["data"], "training": training}


def _designed(trial: Trial) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(name, spec, overrides) of the cells of the design that a trial answers for."""
    ratios = _ratios_read(trial.spec)
    if not ratios:
        yield trial.cell, trial.spec, trial.overrides
    for name, ratio in readings(trial.cell, ratios).items():
        spec = override(trial.spec, KEEP_RATIO, ratio)
        elastic = {**spec["training"]["elastic"], "evaluate_at": []}
        spec = override(spec, "training.elastic", elastic)
        others = {path: v for path, v in trial.overrides.items() if not path.startswith(_ELASTIC)}
        yield name, spec, others | {KEEP_RATIO: ratio}


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
