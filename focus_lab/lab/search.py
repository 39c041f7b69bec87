"""Search: which points of the axes come next, from what the earlier ones gave.

Optuna's sampler is asked here and not by Tune, which sees trial ids only. Nothing is kept between
batches: the study is made anew from the results at hand, so a continued sweep asks for the points
that an uninterrupted one asks for.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from focus_lab.analysis.quantities import is_no_box
from focus_lab.analysis.records import ExperimentRecord
from focus_lab.lab.store import Trial
from focus_lab.specs.experiment import ExperimentSpec, OptunaSearch
from focus_lab.specs.plan import combination, trained_axes

_ASKS_A_POINT = 20
"""How often the sampler may propose a point that is known before one is drawn."""


@dataclass(frozen=True)
class Told:
    """A point of the axes that was run."""

    point: int
    """Its number in the grid, see `combination`."""
    values: tuple[float, ...] | None
    """A value an objective, in their order, means over seeds; None when it has no result."""
    stopped: bool = False
    """Whether a trial of it was stopped early: it has no values then."""


def points_of(spec: ExperimentSpec, trials: Sequence[Trial]) -> dict[int, str]:
    """Point -> cell of the stored trials that the axes still have, in the order of their plan."""
    axes, _ = trained_axes(spec)
    places = {path: [repr(value) for value in values] for path, values in axes.items()}
    found: dict[int, str] = {}
    # Of one seed, whose place in the plan is that of its cell.
    for trial in sorted(trials, key=lambda trial: trial.position):
        number = _number(trial.overrides, places)
        if trial.seed == spec.sweep.seeds[0] and number is not None:
            found.setdefault(number, trial.cell)
    return found


def told(spec: ExperimentSpec, points: dict[int, str], record: ExperimentRecord) -> list[Told]:
    """What the points gave, as far as it is known.

    One with a stopped trial has no values, even when other seeds of it came to their end: their
    mean would be that of the lucky ones. Nor has one where an objective of a trial is no number, or
    pycocotools' -1 for no box: Optuna refuses the first, and would learn from the second.
    """
    short = {trial.cell for trial in record.trials if record.stopped_before(trial) is not None}
    results = []
    for point, cell in points.items():
        if cell in short:
            results.append(Told(point, None, stopped=True))
            continue
        trials = record.trials_of(cell)
        columns = [[trial.final(name) for trial in trials] for name in spec.objectives]
        known = [
            [v for v in column if v is not None and math.isfinite(v) and not is_no_box(name, v)]
            for name, column in zip(spec.objectives, columns, strict=True)
        ]
        complete = bool(trials) and all(len(column) == len(trials) for column in known)
        values = tuple(sum(column) / len(column) for column in known) if complete else None
        results.append(Told(point, values))
    return results


def next_points(spec: ExperimentSpec, results: Sequence[Told]) -> list[int]:
    """The next batch of points, none of them known; empty when all samples are drawn.

    A pure function of the experiment and the results.

    Args:
        spec: the experiment; its search is Optuna's.
        results: of every point so far.
    """
    search = spec.sweep.search
    assert isinstance(search, OptunaSearch)
    axes, _ = trained_axes(spec)
    size = math.prod(len(values) for values in axes.values())
    count = min(search.batch, min(search.samples, size) - len(results))
    if count <= 0:
        return []
    # Here and not above: it takes a second to load.
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ranks = {path: _ranks(values) for path, values in axes.items()}
    distributions: dict[str, optuna.distributions.BaseDistribution] = {
        path: (
            optuna.distributions.IntDistribution(0, len(values) - 1)
            if ranks[path] is not None
            else optuna.distributions.CategoricalDistribution(range(len(values)))
        )
        for path, values in axes.items()
    }
    # A new seed a batch, or every batch would draw alike.
    seed = random.Random(f"{search.seed} {len(results)}").randrange(2**31)
    study = optuna.create_study(
        directions=["maximize" if d == "max" else "minimize" for d in spec.objectives.values()],
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=1),
    )
    for result in results:
        places = combination({path: range(len(axes[path])) for path in axes}, result.point)
        params = {
            path: order.index(place) if (order := ranks[path]) is not None else place
            for path, place in zip(axes, places, strict=True)
        }
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState[_state(result)],
                params=params,
                distributions=distributions,
                values=result.values,
            )
        )
    seen = {result.point for result in results}
    fallback = random.Random(seed)
    chosen: list[int] = []
    for _ in range(count):
        for _ in range(_ASKS_A_POINT):
            asked = study.ask(distributions)
            point = 0
            for path, values in axes.items():
                order, place = ranks[path], asked.params[path]
                point = point * len(values) + (place if order is None else order[place])
            if point not in seen:
                break
        while point in seen:
            point = fallback.randrange(size)
        seen.add(point)
        chosen.append(point)
    return chosen


def _state(result: Told) -> str:
    """What Optuna calls the state of a point.

    TPE forgets what has failed and would ask for the neighbours of weak points again. Pruned ones
    it ranks behind all complete ones, which is what early stopping has found out about them. It is
    told no value of theirs: that of a shorter training compares with none, and to order pruned
    trials by one Optuna asks for the study's only direction, which several objectives do not have.
    """
    if result.stopped:
        return "PRUNED"
    return "COMPLETE" if result.values else "FAIL"


def _ranks(values: Sequence[object]) -> list[int] | None:
    """Places of an axis by rising value: neighbours are alike. None unless all are numbers."""
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < len(values):
        return None
    return sorted(range(len(numbers)), key=numbers.__getitem__)


def _number(overrides: dict[str, object], places: dict[str, list[str]]) -> int | None:
    """The number of a point in the grid, not looked for among all: there may be very many.

    Args:
        overrides: of a trial.
        places: axis -> its values, as Python writes them.
    """
    if overrides.keys() != places.keys():
        return None
    number = 0
    for path, axis in places.items():
        value = repr(overrides[path])
        if value not in axis:
            return None
        number = number * len(axis) + axis.index(value)
    return number
