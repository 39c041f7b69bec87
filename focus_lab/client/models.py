"""What the service says: pydantic models that both sides use. Moments are UTC."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

State = Literal[
    "QUEUED", "STARTING", "RUNNING", "PAUSING", "PAUSED", "CANCELLING", "CANCELLED", "SUCCEEDED",
    "FAILED",
]  # fmt: skip
NAME = r"[a-z0-9][a-z0-9-]{0,62}"
"""Pattern of an experiment's id or name."""
TERMINAL: frozenset[str] = frozenset({"CANCELLED", "SUCCEEDED", "FAILED"})
"""States in which nothing more happens by itself."""


class Answer(BaseModel):
    """Base: immutable; keys of a newer service are passed over."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Wait(Answer):
    """Where an experiment stands in the queue, and why it waits."""

    position: int
    """From 1; 0 until the queue was looked through for the first time."""
    reason: str
    """A code that stays: next, room, order, too-large, user-running, …"""
    text: str
    """The reason in a sentence."""


class Experiment(Answer):
    """A submitted experiment."""

    id: str
    name: str
    description: str
    user: str
    project: str
    state: State
    priority: int
    version: int
    """Rises with every change; in quotes an If-Match."""
    attempt: int
    """How often it was admitted."""
    trials: int
    submitted_at: datetime
    queued_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    message: str | None
    """Why it failed, in a sentence."""
    wait: Wait | None
    """Set while it is QUEUED."""

    @property
    def is_terminal(self) -> bool:
        """Whether nothing more happens to it by itself."""
        return self.state in TERMINAL


class ListedExperiment(Experiment):
    """A submitted experiment, and how far it is."""

    trial_states: dict[str, int]
    """State -> number of trials of the plan."""


class ExperimentDetail(ListedExperiment):
    """A submitted experiment with all that is known of it."""

    spec: dict[str, Any]
    """The composed, validated spec."""
    cpus: float
    """Cores that one trial takes."""
    gpus: float
    """GPUs that one trial takes."""
    comparison_url: str | None
    """The experiment's page in MLflow, where there is one."""
    report_ready: bool
    """Whether there is a report."""


class ExperimentPage(Answer):
    """Some experiments, newest first."""

    items: list[ListedExperiment]
    next_cursor: str | None
    """Send it as `cursor` for the next page; null on the last one."""


class TrialProgress(Answer):
    """Where a running trial is."""

    epoch: int
    step: int
    steps: int
    loss: float | None
    at: float
    """When this was written, in seconds since 1970."""


class Trial(Answer):
    """One cell with one seed."""

    id: str
    name: str
    cell: str
    seed: int
    overrides: dict[str, Any]
    state: Literal["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED"]
    attempts: int
    epochs: int
    """To train."""
    progress: TrialProgress | None
    failure: str | None
    message: str | None
    started_at: datetime | None
    ended_at: datetime | None
    mlflow_run_id: str | None


class TrialList(Answer):
    """The trials of an experiment's plan, in its order."""

    items: list[Trial]


# Declared as an array of two numbers: few generators of clients understand an array's places.
_Point = Annotated[
    tuple[int, float],
    WithJsonSchema(
        {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
    ),
]


class CurveList(Answer):
    """Metrics over epochs."""

    items: dict[str, dict[str, list[_Point]]]
    """Trial id -> metric -> (epoch, value)."""


class PlannedCell(Answer):
    """A cell that would run."""

    name: str
    baseline: bool
    overrides: dict[str, Any]
    keep_ratio: float
    mean_keep_ratio: float
    """Over the encoder's layers: the paper's number."""
    trials: int
    cost: dict[str, float] | None
    """Parameters and GFLOPs, where they were asked for."""


class Plan(Answer):
    """What a spec would run."""

    name: str
    trials: int
    """To begin with."""
    trials_in_all: int
    """More where a search chooses further ones by the results of the first."""
    cells: list[PlannedCell]


class Event(Answer):
    """Something that happened; the data of a server-sent event."""

    experiment_id: str | None
    at: datetime
    kind: str
    actor: str
    data: dict[str, Any]


class Artifact(Answer):
    """A file of an experiment."""

    path: str
    size: int
    """In bytes."""
    media_type: str


class ArtifactList(Answer):
    """The files that may be fetched."""

    items: list[Artifact]
    more: bool = False
    """There are more than are listed; they may be fetched by their paths."""


class LogFile(Answer):
    """A log: the driver's, or one worker's of a trial."""

    trial: str | None
    """Name of the trial; null for the driver."""
    rank: int | None
    size: int


class LogList(Answer):
    """The logs of an experiment."""

    items: list[LogFile]


class BulkOutcome(Answer):
    """What came of one of several."""

    id: str
    state: State | None
    problem: str | None
    """Why it was not done."""


class BulkAnswer(Answer):
    """What came of each."""

    items: list[BulkOutcome]


class Check(Answer):
    """One thing that must work."""

    ok: bool
    text: str


class Health(Answer):
    """Whether the service can do its work."""

    status: Literal["ok", "degraded", "unready"]
    checks: dict[str, Check]


class Machine(Answer):
    """What the cluster has, as the dispatcher saw it last."""

    nodes: int
    cpus: float
    gpus: float
    held_cpus: float
    held_gpus: float


class System(Answer):
    """Cluster, dispatcher, queue."""

    version: str
    dispatcher: str | None
    """Who leads; null when nobody does."""
    draining: bool
    cluster: Machine | None
    """Null while the cluster does not answer."""
    cluster_message: str | None
    counts: dict[str, int]
    """State -> number of experiments."""
    gpu_hours: dict[str, float]
    """User -> within the window."""
    window_days: float


class Identity(Answer):
    """Who a request comes from."""

    user: str
    project: str
    scope: Literal["read", "submit", "admin"]


class Problem(Answer):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    """Stays the same over versions."""
    errors: list[str] = Field(default=[])
    """Every mistake of a spec, one sentence each."""
    request_id: str | None = None


class Submission(Answer):
    """How a submission went."""

    experiment: Experiment
    created: bool
    """False when the same spec waits, runs or has succeeded already."""


class PriorityChange(BaseModel):
    """The body of PATCH /experiments/{id}."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    priority: int = Field(ge=-100, le=100)
    """The higher, the earlier."""


class BulkCancel(BaseModel):
    """The body of POST /experiments/cancel."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    ids: list[Annotated[str, Field(pattern=f"^{NAME}$")]] = Field(min_length=1, max_length=500)
    """Ids or names."""
