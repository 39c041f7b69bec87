"""A store, with an experiment in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import postgresql as servers
import pytest

from focus_lab.lab.store import Experiment, Store
from focus_lab.specs.experiment import ExperimentSpec
from focus_lab.specs.plan import plan

RATIO = "model.token_selection.keep_ratio"


@pytest.fixture
def database() -> str:
    """Which kind of database the store is in; test files may offer several."""
    return "sqlite"


@pytest.fixture
def store_url(database: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """URL of an empty database."""
    if database == "postgresql":
        schemas: servers.Schemas = request.getfixturevalue("postgresql")
        return schemas.new()
    return f"sqlite:///{tmp_path / 'lab.db'}"


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    opened = Store(store_url)
    yield opened
    opened.close()


@pytest.fixture
def record(
    store: Store, tmp_path: Path, tiny_experiment: Callable[..., ExperimentSpec]
) -> Callable[..., Experiment]:
    """Records a tiny experiment of the given keep ratios and seeds."""

    def make(*ratios: float, seeds: tuple[int, ...] = (0,), name: str = "tiny") -> Experiment:
        spec = tiny_experiment(
            name,
            training={"epochs": 3},
            sweep={"axes": {RATIO: list(ratios)}, "seeds": list(seeds)},
        )
        return store.record(spec, plan(spec), tmp_path / name)

    return make


@pytest.fixture(scope="session")
def mlflow_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one MLflow store for the whole test run: making one takes seconds."""
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture
def manifest() -> dict[str, Any]:
    """What a trial says of its code and data."""
    return {
        "spec": {"data": {"kind": "shapes"}},
        "ops_implementation": "reference",
        "data": {
            split: {"digest": digit * 64, "images": 8, "classes": ["a", "b"]}
            for split, digit in (("train", "1"), ("val", "2"))
        },
        "environment": {"git": {"commit": "c0ffee", "branch": "main", "dirty": True}},
    }
