"""Load a spec from YAML: compose, override, validate once, all mistakes together."""

from __future__ import annotations

from pathlib import Path

from focus_lab.specs.compose import read, with_overrides
from focus_lab.specs.experiment import ExperimentSpec
from focus_lab.specs.explain import validate_as
from focus_lab.specs.plan import Plan, plan


def load_experiment(path: Path, settings: list[str] | None = None) -> tuple[ExperimentSpec, Plan]:
    """Read, compose and validate an experiment, and plan it.

    Args:
        path: YAML file.
        settings: `path=value` overrides of the base.

    Raises:
        SpecError: anything in it is wrong; all mistakes at once.
    """
    document = with_overrides(read(path), settings or [])
    spec = validate_as(ExperimentSpec, document.content, document.locate)
    return spec, plan(spec, document.locate)
