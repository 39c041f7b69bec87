"""The store's tables: life cycle only; numbers and files live in MLflow and in folders.

Their names tell them apart from MLflow's, which may live in the same database.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, cast

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    ForeignKey,
    Index,
    Insert,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
    insert,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

VERSION_TABLE = "focus_lab_version"
"""Where Alembic keeps the version of the other tables."""


class Base(DeclarativeBase):
    """Base of all tables."""

    @classmethod
    def insert(cls) -> Insert:
        """Statement that inserts values: objects take longer than the database does."""
        return insert(cast("Table", cls.__table__))


class ExperimentRow(Base):
    """What a user submitted, and who carries it out."""

    __tablename__ = "focus_lab_experiments"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(63), unique=True)
    spec: Mapped[dict[str, Any]] = mapped_column(JSON)
    folder: Mapped[str] = mapped_column(Text)
    tracking_id: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    lease_owner: Mapped[str | None] = mapped_column(String(255))
    lease_expires_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class TrialRow(Base):
    """One cell with one seed, identified within its experiment by its fingerprint."""

    __tablename__ = "focus_lab_trials"
    __table_args__ = (
        UniqueConstraint("experiment_id", "fingerprint", name="uq_trials_experiment_fingerprint"),
        Index("ix_trials_experiment_state", "experiment_id", "state"),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    experiment_id: Mapped[str] = mapped_column(ForeignKey("focus_lab_experiments.id"))
    fingerprint: Mapped[str] = mapped_column(String(64))
    cell: Mapped[str] = mapped_column(Text)
    seed: Mapped[int]
    overrides: Mapped[dict[str, Any]] = mapped_column(JSON)
    spec: Mapped[dict[str, Any]] = mapped_column(JSON)
    position: Mapped[int]
    """Place in the plan."""
    planned: Mapped[bool]
    """Whether the newest plan of the experiment has it; older trials stay, but do not run."""
    state: Mapped[str] = mapped_column(String(16))
    version: Mapped[int]
    """Rises with every change; changes are compare-and-set on (state, version)."""
    attempts: Mapped[int]
    """How often it was started."""
    failure: Mapped[str | None] = mapped_column(String(64))
    """Class of the failure."""
    message: Mapped[str | None] = mapped_column(Text)
    """The failure in a sentence."""
    tracking_run_id: Mapped[str | None] = mapped_column(String(64))
    started_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    ended_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class QueueRow(Base):
    """An experiment that was submitted to the service: who wants it, and how it stands."""

    __tablename__ = "focus_lab_queue"
    __table_args__ = (
        Index("ix_queue_state", "state"),
        Index("ix_queue_name", "name"),
        Index("ix_queue_user", "user", "state"),
        Index("ix_queue_project", "project", "state"),
        Index("ix_queue_submitted", "submitted_at", "experiment_id"),
    )

    experiment_id: Mapped[str] = mapped_column(
        ForeignKey("focus_lab_experiments.id"), primary_key=True
    )
    name: Mapped[str] = mapped_column(String(63))
    description: Mapped[str] = mapped_column(Text)
    user: Mapped[str] = mapped_column(String(64))
    project: Mapped[str] = mapped_column(String(64))
    fingerprint: Mapped[str] = mapped_column(String(64))
    """Of the whole spec: the same submission twice is one experiment."""
    priority: Mapped[int]
    state: Mapped[str] = mapped_column(String(16))
    version: Mapped[int]
    """Rises with every change; changes are compare-and-set on it."""
    attempt: Mapped[int]
    """How often it was admitted; the fencing token of its newest attempt."""
    losses: Mapped[int]
    """Attempts in a row that ended without a word and without progress."""
    trials: Mapped[int]
    """Trials of its plan."""
    gang_cpus: Mapped[float]
    gang_gpus: Mapped[float]
    """What one trial needs at once."""
    worker_cpus: Mapped[float]
    worker_gpus: Mapped[float]
    """What one worker of it needs on one machine."""
    auto_gpus: Mapped[float]
    """GPUs that one trial takes wherever the cluster has any."""
    submitted_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    """For the first time; never changed, for pages of experiments go by it."""
    queued_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    """Since when it waits; kept when an attempt is lost."""
    started_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    ended_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    message: Mapped[str | None] = mapped_column(Text)
    """Why it failed, in a sentence."""


class AttemptRow(Base):
    """One admission of an experiment: what it was granted, and for how long.

    Occupancy is the sum over the rows that have not ended; nothing is counted elsewhere.
    """

    __tablename__ = "focus_lab_attempts"
    __table_args__ = (Index("ix_attempts_ended", "ended_at"),)

    experiment_id: Mapped[str] = mapped_column(
        ForeignKey("focus_lab_experiments.id"), primary_key=True
    )
    number: Mapped[int] = mapped_column(primary_key=True)
    user: Mapped[str] = mapped_column(String(64))
    project: Mapped[str] = mapped_column(String(64))
    cpus: Mapped[float]
    gpus: Mapped[float]
    trials: Mapped[int]
    """How many trials it may run side by side."""
    done_before: Mapped[int]
    """Trials that had succeeded when it was admitted."""
    admitted_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    began_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    ended_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    outcome: Mapped[str | None] = mapped_column(String(16))


class EventRow(Base):
    """What happened, and who did it: written with the change itself, never changed."""

    __tablename__ = "focus_lab_events"
    __table_args__ = (
        Index("ix_events_order", "transaction", "id"),
        Index("ix_events_experiment", "experiment_id", "transaction", "id"),
    )

    id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    )
    transaction: Mapped[int] = mapped_column(BigInteger)
    """PostgreSQL's number of the transaction; 0 in SQLite, where one writes at a time. Numbers of
    rows alone are no order to read by: a smaller one may be committed later."""
    experiment_id: Mapped[str | None] = mapped_column(String(32))
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    kind: Mapped[str] = mapped_column(String(32))
    actor: Mapped[str] = mapped_column(String(64))
    data: Mapped[dict[str, Any]] = mapped_column(JSON)


class LeadRow(Base):
    """Which of several processes leads at something."""

    __tablename__ = "focus_lab_leads"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    owner: Mapped[str | None] = mapped_column(String(255))
    fence: Mapped[int]
    """Rises with every new leader; what an older one still writes is refused."""
    expires_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    told: Mapped[dict[str, Any]] = mapped_column(JSON)
    """What the leader last said of itself."""


class TokenRow(Base):
    """A bearer token; its secret is stored as a hash only."""

    __tablename__ = "focus_lab_tokens"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64))
    user: Mapped[str] = mapped_column(String(64))
    project: Mapped[str] = mapped_column(String(64))
    scope: Mapped[str] = mapped_column(String(16))
    note: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    expires_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    used_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    revoked_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class IdempotencyRow(Base):
    """A submission's Idempotency-Key, and what it led to."""

    __tablename__ = "focus_lab_idempotency"

    user: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(String(128), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    """Of the request."""
    experiment_id: Mapped[str] = mapped_column(String(32))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
