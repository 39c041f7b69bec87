"""Start what a sweep needs side by side: Ray, MLflow and torch each take seconds."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from focus_lab.errors import StoreError
from focus_lab.lab.executor import Executor, InProcessExecutor
from focus_lab.lab.lab import Lab, open_lab, store_path, store_url
from focus_lab.lab.states import TrialState
from focus_lab.lab.store import Store
from focus_lab.lab.tune_executor import TuneExecutor
from focus_lab.specs.experiment import ExperimentSpec
from focus_lab.specs.plan import Plan

if TYPE_CHECKING:
    from focus_lab.data.dataset import DetectionDataset


@contextlib.contextmanager
def launch(
    spec: ExperimentSpec,
    plan: Plan,
    home: Path,
    store: str | None = None,
    tracking: str | None = None,
    executor: str = "ray",
) -> Iterator[tuple[Lab, Executor]]:
    """A lab and a started executor, once data and weights of every cell are known to be usable.

    Args:
        spec: the experiment.
        plan: its plan.
        home: the lab's folder.
        store: URL of the store; None for SQLite in `home`.
        tracking: MLflow tracking URI; None for a store in `home`.
        executor: `ray` or `in-process`.

    Raises:
        UserError: data, weights, folder, store or tracker cannot be used; nothing was recorded.
    """
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        checked = pool.submit(check_inputs, plan)
        opened = pool.submit(_open, checked, stack, home, store, tracking)
        started: Executor = InProcessExecutor()
        if executor == "ray" and _has_work(spec, plan, home, store):
            tune = TuneExecutor(spec.compute)
            # Ray wants the main thread, for its signal handlers.
            stack.callback(tune.stop)
            tune.start()
            started = tune
        checked.result()
        yield opened.result(), started


def _has_work(spec: ExperimentSpec, plan: Plan, home: Path, store: str | None) -> bool:
    """Whether any trial of the plan has yet to succeed: Ray need not start for a report."""
    if store is None and not store_path(home).exists():
        return True
    opened = Store(store or store_url(home))
    try:
        trials = opened.trials(opened.experiment(spec.name).id, planned_only=False)
    except StoreError:
        return True
    finally:
        opened.close()
    done = {trial.fingerprint for trial in trials if trial.state is TrialState.SUCCEEDED}
    return any(trial.fingerprint not in done for trial in plan.trials)


def _open(
    checked: Future[None],
    stack: contextlib.ExitStack,
    home: Path,
    store: str | None,
    tracking: str | None,
) -> Lab:
    """Load MLflow meanwhile, but leave no file behind when an input turns out wrong."""
    importlib.import_module("focus_lab.lab.mlflow_tracker")
    checked.result()
    return stack.enter_context(open_lab(home, store, tracking))


def check_inputs(plan: Plan) -> None:
    """Open every data set, form its batches, and build every backbone of a plan once.

    Raises:
        UserError: something cannot be used.
    """
    # Here and not above: it imports torch, which takes seconds, in a thread of its own.
    from focus_lab.data.loader import build_train_loader
    from focus_lab.training.estimate import check_model, open_data

    train_sets: dict[str, DetectionDataset] = {}
    seen: set[str] = set()
    for cell in plan.cells:
        data = cell.spec.data.model_dump_json()
        if data not in train_sets:
            train_sets[data] = open_data(cell.spec.data)[0]
        train_set, batch_size = train_sets[data], cell.spec.training.batch_size
        build_train_loader(train_set, cell.spec.data, batch_size=batch_size, seed=0)
        backbone = cell.spec.model.backbone.model_dump_json()
        if backbone not in seen:
            check_model(cell.spec.model, len(train_set.class_names))
            seen.add(backbone)
