"""The policy of the queue: whose turn it is, and how much anybody may have. An administrator's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field

from focus_lab.errors import SpecError
from focus_lab.lab.queue.registry import Registry
from focus_lab.specs.base import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Ratio,
    Spec,
)
from focus_lab.specs.explain import validate_as


class Quota(Spec):
    """What a user, or a project, may have; null is as much as there is."""

    queued: NonNegativeInt | None = None
    """Experiments that wait or run."""
    running: PositiveInt | None = None
    """Experiments that run."""
    gpu_hours: NonNegativeFloat | None = None
    """GPU-hours within the window; what runs may go on, what needs no GPU may start."""


class Quotas(Spec):
    """Quotas by name; whoever is not named has the default."""

    default_user: Quota = Quota(queued=1000)
    """Of users who are not named."""
    default_project: Quota = Quota()
    """Of projects that are not named."""
    users: dict[str, Quota] = Field(default={})
    """By user."""
    projects: dict[str, Quota] = Field(default={})
    """By project."""

    def of_user(self, name: str) -> Quota:
        """A user's."""
        return self.users.get(name, self.default_user)

    def of_project(self, name: str) -> Quota:
        """A project's."""
        return self.projects.get(name, self.default_project)


class FixedCapacity(Spec):
    """What may be used at most, whatever the cluster has."""

    cpus: PositiveFloat
    """Cores."""
    gpus: NonNegativeFloat = 0.0
    """GPUs."""


class Policy(Spec):
    """Order, fairness and limits of the queue."""

    ageing_per_hour: PositiveFloat = 1.0
    """How much priority an hour of waiting is worth: with any positive value nobody starves."""
    share_weight: NonNegativeFloat = 10.0
    """How much priority is taken from whoever has used, or now holds, all of the cluster."""
    window_days: PositiveFloat = 30.0
    """For how long usage is remembered."""
    reserve_after_minutes: NonNegativeFloat = 10.0
    """For whoever has waited so long for room, room is kept: others pass only with the rest."""
    largest_share: Ratio = 0.5
    """Share of the cluster that one experiment may take while others wait (at least one trial)."""
    most_priority: NonNegativeInt = 100
    """That submitters may give; administrators may give more."""
    max_losses: NonNegativeInt = 5
    """How often in a row a driver may be lost without progress before the experiment fails."""
    capacity: FixedCapacity | None = None
    """Instead of what the cluster says it has: for clusters that grow on demand."""
    quotas: Quotas = Quotas()
    """Limits by user and project."""
    most_trials: PositiveInt = 1000
    """Of one experiment."""
    registry: Registry = Registry()
    """Data sets, weights and storages by name."""
    keep_days: Annotated[float, Field(gt=0)] | None = None
    """Checkpoints of experiments that ended longer ago are removed; null keeps them. Numbers,
    reports and the best weights stay."""


def load_policy(path: Path | None) -> Policy:
    """The policy in a YAML file; the default one without a file.

    Raises:
        SpecError: it does not validate, or cannot be read.
    """
    if path is None:
        return Policy()
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(
            f"{path}: cannot be read, got {' '.join(str(error).split())}; write YAML as in "
            "service/policy.example.yaml"
        ) from error
    return validate_as(Policy, content, lambda dotted: str(path))
