"""A store in a temporary folder, with an experiment in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from focus_lab.lab.store import Experiment, Store
from focus_lab.specs.experiment import ExperimentSpec
from focus_lab.specs.plan import plan

RATIO = "model.token_selection.keep_ratio"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(f"sqlite:///{tmp_path / 'lab.db'}")
    yield opened
    opened.close()


@pytest.fixture
def record(
    store: Store, tmp_path: Path, tiny_experiment: Callable[..., ExperimentSpec]
) -> Callable[..., Experiment]:
    """Records a tiny experiment of the given keep ratios and seeds."""

    def make(*ratios: float, seeds: tuple[int, ...] = (0,), name: str = "tiny") -> Experiment:
        spec = tiny_experiment(name, sweep={"axes": {RATIO: list(ratios)}, "seeds": list(seeds)})
        return store.record(spec, plan(spec), tmp_path / name)

    return make
