"""The store's tables: life cycle only; numbers and files live in MLflow and in folders.

Their names tell them apart from MLflow's, which may live in the same database.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, DateTime, ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

VERSION_TABLE = "focus_lab_version"
"""Where Alembic keeps the version of the other tables."""


class Base(DeclarativeBase):
    """Base of all tables."""


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
