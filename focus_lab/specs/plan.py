"""From an experiment to its trials: pure and ordered. cells x seeds, each with a fingerprint."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from focus_lab.errors import SpecError
from focus_lab.specs.compose import override
from focus_lab.specs.experiment import (
    ExperimentSpec,
    GridSearch,
    OptunaSearch,
    TrialSpec,
    trial_fingerprint,
)
from focus_lab.specs.explain import Locate, short, validate_as

BASELINE = "baseline"
ELASTIC = "elastic"
"""Name of a cell that stands for a whole axis over the keep ratio."""
MOST_TRIALS = 10_000
"""Of an experiment."""
KEEP_RATIO = "model.token_selection.keep_ratio"
"""Path of the number that experiments are about."""

_TRIAL_PARTS = ("model", "data", "training")
_READ = "training.elastic.evaluate_at"
_SHOWN = 100


@dataclass(frozen=True)
class Cell:
    """One point of the design: the base with one combination of overrides."""

    name: str
    overrides: dict[str, Any]
    spec: TrialSpec
    """The effective spec, with seed 0."""
    is_baseline: bool


@dataclass(frozen=True)
class PlannedTrial:
    """One cell with one seed."""

    cell: str
    overrides: dict[str, Any]
    spec: TrialSpec
    content: dict[str, Any]
    """The spec as JSON data; trials of a cell share its parts."""
    fingerprint: str
    """Identity of the trial: hash of all that can change its numbers."""

    @property
    def seed(self) -> int:
        """The seed of the trial."""
        return self.spec.seed


@dataclass(frozen=True)
class Plan:
    """What an experiment would run."""

    cells: tuple[Cell, ...]
    trials: tuple[PlannedTrial, ...]

    @property
    def baseline(self) -> Cell | None:
        """The cell that others are compared with, if the design has one."""
        return next((cell for cell in self.cells if cell.is_baseline), None)

    def check_names(self, names: tuple[str, ...]) -> None:
        """See that cells exist.

        Raises:
            SpecError: some do not.
        """
        known = [cell.name for cell in self.cells]
        problems = [
            f"--only: no such cell, got {name!r}; cells are {', '.join(known)}"
            for name in names
            if name not in known
        ]
        if problems:
            raise SpecError(*problems)

    def keep(self, names: tuple[str, ...]) -> Plan:
        """The plan of some cells; of all when `names` is empty.

        Raises:
            SpecError: a cell does not exist.
        """
        if not names:
            return self
        self.check_names(names)
        cells = tuple(cell for cell in self.cells if cell.name in names)
        return Plan(cells, tuple(trial for trial in self.trials if trial.cell in names))


def num_trials(spec: ExperimentSpec) -> int:
    """How many trials the design asks for, equal ones counted twice; without expanding it."""
    sweep, (axes, read) = spec.sweep, trained_axes(spec)
    points = len(sweep.cells) + (1 if (sweep.cells or not sweep.axes) and not read else 0)
    if sweep.axes:
        size = math.prod(len(values) for values in axes.values())
        search = sweep.search
        points += size if isinstance(search, GridSearch) else min(search.samples, size)
    return points * len(sweep.seeds)


def trials_in_all(spec: ExperimentSpec, plan: Plan) -> int:
    """How many trials an experiment ends with: a search's plan has its first batch only."""
    searched = isinstance(spec.sweep.search, OptunaSearch)
    return max(num_trials(spec), len(plan.trials)) if searched else len(plan.trials)


def readings(cell: str, ratios: Sequence[float]) -> dict[str, float]:
    """Name -> keep ratio of what is read from a cell that was trained for several ratios."""
    return {f"{cell}@{ratio}": ratio for ratio in ratios}


def plan(
    spec: ExperimentSpec,
    locate: Locate = lambda path: None,
    points: Sequence[int] | None = None,
) -> Plan:
    """Expand the design of `spec` in the order in which it is written, seeds innermost last.

    All cells run with their first seed before any runs with the second, so that an interrupted
    experiment has compared something.

    Args:
        spec: the experiment.
        locate: path -> "file:line" for error messages.
        points: numbers of the combinations of the axes that a search has chosen so far; None for
            those that it begins with.

    Raises:
        SpecError: an override does not validate, two cells are equal, or a name is unknown.
    """
    if (wanted := num_trials(spec)) > MOST_TRIALS:
        raise SpecError(
            f"sweep: has too many trials, got {short(wanted)}; at most {MOST_TRIALS} are allowed: "
            "take fewer values, or search: {kind: random, samples: …}"
        )
    whole = spec.base.model_dump(mode="json")
    base = {name: part for name, part in whole.items() if name != "seed"}
    base_print = trial_fingerprint(whole)
    base_ratio = spec.model.token_selection.keep_ratio
    problems: list[str] = []
    cells: list[Cell] = []
    names_by_print: dict[str, str] = {}
    contents: dict[str, tuple[dict[str, Any], str]] = {}
    for name, overrides, origin in _points(spec, points):
        where = locate(origin)
        prefix = f"{where}: " if where else ""
        try:
            effective = _effective(base, overrides)
        except SpecError as error:
            # The name of a cell of many axes is long, and stands in each sentence.
            shown = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…"
            problems += [f"{prefix}cell {shown}: {problem}" for problem in error.problems]
            continue
        content = effective.model_dump(mode="json")
        mark = trial_fingerprint(content)
        if names_by_print.get(mark) == BASELINE and origin == ("sweep", "axes"):
            # A point of the grid that equals the base stands for the implied baseline.
            cells = [cell for cell in cells if cell.name != BASELINE]
        elif twin := names_by_print.get(mark):
            problems.append(
                f"{prefix}cell {name}: equals {twin}, got {overrides}; "
                "change something that can change a number, or remove it"
            )
            continue
        if name in (cell.name for cell in cells):
            problems.append(
                f"{prefix}cell {name}: two cells have this name, got {overrides}; "
                "rename one, or write the axis as named cells"
            )
            continue
        names_by_print[mark] = name
        contents[name] = content, mark
        if _READ in overrides and base_ratio in overrides[_READ]:
            # What was read from it at the base's ratio is the base.
            others = {path: v for path, v in overrides.items() if path not in (KEEP_RATIO, _READ)}
            mark = _effective(base, others).fingerprint
        cells.append(Cell(name, overrides, effective, mark == base_print))
    baseline = spec.sweep.baseline
    by_name = {name: cell.name for cell in cells for name in _names(cell)}
    if baseline is not None and baseline not in by_name and not problems:
        where = locate(("sweep", "baseline"))
        prefix = f"{where}: " if where else ""
        names = ", ".join(by_name)
        problems.append(
            f"{prefix}sweep.baseline: no such cell, got {baseline!r}; cells are {names}"
        )
    if problems:
        raise SpecError(*problems)
    if baseline is not None:
        cells = [replace(cell, is_baseline=cell.name == by_name[baseline]) for cell in cells]
    trials = tuple(
        _trial(cell, seed, *contents[cell.name]) for seed in spec.sweep.seeds for cell in cells
    )
    return Plan(tuple(cells), trials)


def _trial(cell: Cell, seed: int, of_cell: dict[str, Any], mark: str) -> PlannedTrial:
    # From the cell's: to turn the spec of each trial into JSON takes ten times as long.
    if seed == cell.spec.seed:
        return PlannedTrial(cell.name, cell.overrides, cell.spec, of_cell, mark)
    content = of_cell | {"seed": seed}
    spec = cell.spec.model_copy(update={"seed": seed})
    return PlannedTrial(cell.name, cell.overrides, spec, content, trial_fingerprint(content))


def _points(
    spec: ExperimentSpec, chosen: Sequence[int] | None
) -> Iterator[tuple[str, dict[str, Any], tuple[str, ...]]]:
    """(name, overrides, path in the spec) of every cell."""
    sweep, (axes, read) = spec.sweep, trained_axes(spec)
    # What is read from an elastic cell stands for the base.
    if (sweep.cells or not sweep.axes) and not read:
        yield BASELINE, {}, ("sweep", "cells")
    for name, overrides in sweep.cells.items():
        yield name, overrides, ("sweep", "cells", name)
    if sweep.axes:
        labels = _shortest_ends(list(axes), ".")
        # Folders and files of this machine, or of a service's: their ends say which.
        places = {path: _shortest_ends(_places(values), "/") for path, values in axes.items()}
        combinations: Iterable[tuple[Any, ...]] = itertools.product(*axes.values())
        search = sweep.search
        if not isinstance(search, GridSearch):
            size = math.prod(len(values) for values in axes.values())
            wanted = min(size, search.samples)
            if isinstance(search, OptunaSearch):
                wanted = min(wanted, search.batch)
            if chosen is None:
                chosen = random.Random(search.seed).sample(range(size), wanted)
            combinations = [combination(axes, number) for number in chosen]
        for values in combinations:
            overrides = dict(zip(axes, values, strict=True))
            name = ",".join(
                f"{labels[path]}={places[path].get(str(value)) or _label(value)}"
                for path, value in overrides.items()
            )
            yield name or ELASTIC, overrides | read, ("sweep", "axes")


def trained_axes(spec: ExperimentSpec) -> tuple[dict[str, tuple[Any, ...]], dict[str, Any]]:
    """Axes whose points are trained one by one, and what all of these points are given.

    An elastic training answers for every keep ratio: an axis over it is read from each training.
    """
    axes = dict(spec.sweep.axes)
    ratios = axes.get(KEEP_RATIO, ())
    numbers = [r for r in ratios if isinstance(r, int | float) and not isinstance(r, bool)]
    if not spec.training.elastic.enabled or not ratios or len(numbers) < len(ratios):
        return axes, {}
    del axes[KEEP_RATIO]
    return axes, {KEEP_RATIO: max(numbers), _READ: [float(ratio) for ratio in numbers]}


def _names(cell: Cell) -> list[str]:
    """Names that a cell has in the report."""
    elastic = cell.spec.training.elastic
    return list(readings(cell.name, elastic.evaluate_at)) or [cell.name]


def combination(axes: Mapping[str, Sequence[Any]], number: int) -> tuple[Any, ...]:
    """The point of a grid with this number, the last axis turning fastest."""
    values: list[Any] = []
    for choices in reversed(list(axes.values())):
        number, place = divmod(number, len(choices))
        values.append(choices[place])
    return tuple(reversed(values))


def _shortest_ends(paths: list[str], separator: str) -> dict[str, str]:
    """Path -> its end; as many parts of all as tell them apart."""
    ends = {path: path for path in paths}
    for length in range(1, max((len(path.split(separator)) for path in paths), default=0) + 1):
        ends = {path: separator.join(path.split(separator)[-length:]) for path in paths}
        if len(set(ends.values())) == len(paths):
            break
    return ends


def _places(values: Sequence[Any]) -> list[str]:
    return [value for value in values if isinstance(value, str) and "/" in value]


def _label(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(
            str(inner) if key == "kind" else f"{key}={_label(inner)}"
            for key, inner in value.items()
        )
    if isinstance(value, list | tuple):
        return "[" + " ".join(_label(item) for item in value) + "]"
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _effective(base: dict[str, Any], overrides: dict[str, Any]) -> TrialSpec:
    content = base
    problems = []
    # Kinds first: a changed kind replaces its mapping, other overrides then fill the new one.
    for path in sorted(overrides, key=lambda path: (not path.endswith(".kind"), path.count("."))):
        if path.split(".")[0] not in _TRIAL_PARTS:
            problems.append(
                f"{path}: cannot be overridden; allowed are paths below {', '.join(_TRIAL_PARTS)}"
            )
            continue
        try:
            content = override(content, path, overrides[path])
        except SpecError as error:
            problems += error.problems
    if not problems:
        return validate_as(TrialSpec, content, lambda path: None)
    raise SpecError(*problems)
