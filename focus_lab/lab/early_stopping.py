"""Early stopping: asynchronous successive halving, decided by the epochs that trials report.

Li et al., "A System for Massively Parallel Hyperparameter Tuning" (2020), in the variant that stops
trials and never pauses them. The lab decides and not Tune: Tune counts reports, which start anew
when a sweep is continued, and knows nothing of trials that an earlier call has finished.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from focus_lab.specs.experiment import EarlyStopping, SuccessiveHalving


class Rungs:
    """What trials had reached after r, r x eta, r x eta^2 … epochs, and who goes on from there.

    Args:
        spec: metric, direction, r (`grace_epochs`) and eta (`reduction`).
    """

    def __init__(self, spec: SuccessiveHalving) -> None:
        self._spec = spec
        self._reached: dict[int, dict[str, float]] = {}

    def tell(self, trial_id: str, epoch: int, metrics: Mapping[str, float], epochs: int) -> bool:
        """An epoch of a trial has ended; returns whether the trial should end with it.

        A trial goes on if it is among the best 1 / eta of all that have come to its rung so far,
        at least among the best one: the first to come goes on. Told again, an epoch changes
        nothing.

        Args:
            trial_id: the trial.
            epoch: from 1.
            metrics: of the epoch; when it was not evaluated, the next one that is counts.
            epochs: how many the trial is to have; nothing is stopped at the last one.
        """
        rung, value = self._newest_rung(epoch), metrics.get(self._spec.metric)
        if value is None or rung is None or epoch >= epochs:
            return False
        reached = self._reached.setdefault(rung, {})
        if trial_id in reached:
            return False
        value = value if self._spec.direction == "max" else -value
        reached[trial_id] = value
        go_on = max(1, len(reached) // self._spec.reduction)
        return sum(other > value for other in reached.values()) >= go_on

    def _newest_rung(self, epoch: int) -> int | None:
        rung = self._spec.grace_epochs
        if epoch < rung:
            return None
        while rung * self._spec.reduction <= epoch:
            rung *= self._spec.reduction
        return rung


def rungs_of(spec: Mapping[str, Any]) -> Rungs | None:
    """The rungs of a stored experiment; None when its trials run to their end."""
    stored = spec.get("sweep", {}).get("early_stopping", {"kind": "none"})
    stopping: EarlyStopping = TypeAdapter(EarlyStopping).validate_python(stored)
    return Rungs(stopping) if isinstance(stopping, SuccessiveHalving) else None
