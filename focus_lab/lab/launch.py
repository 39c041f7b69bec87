"""Start what a sweep needs side by side: Ray, MLflow and torch each take seconds."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from focus_lab.errors import StoreError
from focus_lab.lab.driver import trial_folder
from focus_lab.lab.executor import Executor
from focus_lab.lab.lab import Lab, open_lab, store_path, store_url
from focus_lab.lab.states import TrialState
from focus_lab.lab.store import Store
from focus_lab.specs.experiment import ExperimentSpec
from focus_lab.specs.plan import Plan
from focus_lab.training.folder import check_same_inputs

if TYPE_CHECKING:
    from focus_lab.data.dataset import DetectionDataset


@contextlib.contextmanager
def launch(
    spec: ExperimentSpec,
    plan: Plan,
    home: Path,
    store: str | None = None,
    tracking: str | None = None,
    *,
    executor: Executor,
) -> Iterator[Lab]:
    """A lab, once data and weights of every cell are known to be usable.

    The executor is started if anything is left to carry out.

    Args:
        spec: the experiment.
        plan: its plan.
        home: the lab's folder.
        store: URL of the store; None for SQLite in `home`.
        tracking: MLflow tracking URI; None for a store in `home`.
        executor: will carry out the trials; stopped in the end.

    Raises:
        UserError: data, weights, folder, store or tracker cannot be used; nothing was recorded.
    """
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        checked = pool.submit(check_inputs, plan)
        # One after the other: Alembic, which MLflow uses as well, is not safe among threads.
        done = _done(spec, home, store)
        opened = pool.submit(_open, checked, stack, home, store, tracking)
        # Whoever starts it: a search may have more to carry out than its plan begins with.
        stack.callback(executor.stop)
        if any(trial.fingerprint not in done for trial in plan.trials):
            # Ray wants the main thread, for its signal handlers.
            executor.start()
        digests = checked.result()
        for trial in plan.trials:
            if folder := done.get(trial.fingerprint):
                check_same_inputs(folder, digests.get(trial.cell, {}))
        yield opened.result()


def _done(spec: ExperimentSpec, home: Path, store: str | None) -> dict[str, Path]:
    """Fingerprint -> folder of the trials that have succeeded: Ray need not start for a report."""
    if store is None and not store_path(home).exists():
        return {}
    opened = Store(store or store_url(home))
    try:
        experiment = opened.experiment(spec.name)
        trials = opened.trials(experiment.id, planned_only=False)
    except StoreError:
        return {}
    finally:
        opened.close()
    return {
        trial.fingerprint: trial_folder(experiment, trial)
        for trial in trials
        if trial.state is TrialState.SUCCEEDED
    }


def _open(
    checked: Future[dict[str, dict[str, str]]],
    stack: contextlib.ExitStack,
    home: Path,
    store: str | None,
    tracking: str | None,
) -> Lab:
    """Load MLflow meanwhile, but leave no file behind when an input turns out wrong."""
    importlib.import_module("focus_lab.lab.mlflow_tracker")
    checked.result()
    return stack.enter_context(open_lab(home, store, tracking))


def check_inputs(plan: Plan) -> dict[str, dict[str, str]]:
    """Open every data set, form its batches, and build every backbone of a plan once.

    Returns:
        Cell -> digests of its data and weights, as `check_same_inputs` compares them; cells that
        read no files and fill their batches are left out: nothing can be wrong with them.

    Raises:
        UserError: something cannot be used.
    """
    cells = [c for c in plan.cells if c.spec.reads_files or not c.spec.fills_a_batch]
    if not cells:
        return {}
    # Here and not above: it imports torch, which takes seconds, in a thread of its own.
    from focus_lab.data.dataset import build_datasets
    from focus_lab.data.loader import build_train_loader
    from focus_lab.training.detector import build_start
    from focus_lab.training.manifest import input_digests

    opened: dict[str, tuple[DetectionDataset, DetectionDataset]] = {}
    built: set[str] = set()
    digests: dict[tuple[str, str], dict[str, str]] = {}
    by_cell: dict[str, dict[str, str]] = {}
    for cell in cells:
        spec = cell.spec
        data = spec.data.model_dump_json()
        if data not in opened:
            opened[data] = build_datasets(spec.data)
        train_set, val_set = opened[data]
        build_train_loader(train_set, spec.data, batch_size=spec.training.batch_size, seed=0)
        start = spec.training.start_from
        # What starts from a whole detector must fit as a whole.
        part = spec.model if start else spec.model.backbone
        weights = f"{start} {part.model_dump_json()}"
        if weights not in built:
            build_start(spec, len(train_set.class_names))
            built.add(weights)
        if (data, weights) not in digests:
            digests[data, weights] = input_digests(spec, train_set, val_set)
        by_cell[cell.name] = digests[data, weights]
    return by_cell
