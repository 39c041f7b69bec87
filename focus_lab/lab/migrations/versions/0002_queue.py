"""Queue, attempts, events, leads, tokens."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "focus_lab_queue",
        sa.Column(
            "experiment_id",
            sa.String(32),
            sa.ForeignKey("focus_lab_experiments.id"),
            primary_key=True,
        ),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("user", sa.String(64), nullable=False),
        sa.Column("project", sa.String(64), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("losses", sa.Integer(), nullable=False),
        sa.Column("trials", sa.Integer(), nullable=False),
        sa.Column("gang_cpus", sa.Float(), nullable=False),
        sa.Column("gang_gpus", sa.Float(), nullable=False),
        sa.Column("worker_cpus", sa.Float(), nullable=False),
        sa.Column("worker_gpus", sa.Float(), nullable=False),
        sa.Column("auto_gpus", sa.Float(), nullable=False),
        sa.Column("submitted_at", moment, nullable=False),
        sa.Column("queued_at", moment, nullable=False),
        sa.Column("started_at", moment),
        sa.Column("ended_at", moment),
        sa.Column("message", sa.Text()),
    )
    op.create_index("ix_queue_state", "focus_lab_queue", ["state"])
    op.create_index("ix_queue_name", "focus_lab_queue", ["name"])
    op.create_index("ix_queue_user", "focus_lab_queue", ["user", "state"])
    op.create_index("ix_queue_project", "focus_lab_queue", ["project", "state"])
    op.create_index("ix_queue_submitted", "focus_lab_queue", ["submitted_at", "experiment_id"])
    op.create_table(
        "focus_lab_attempts",
        sa.Column(
            "experiment_id",
            sa.String(32),
            sa.ForeignKey("focus_lab_experiments.id"),
            primary_key=True,
        ),
        sa.Column("number", sa.Integer(), primary_key=True),
        sa.Column("user", sa.String(64), nullable=False),
        sa.Column("project", sa.String(64), nullable=False),
        sa.Column("cpus", sa.Float(), nullable=False),
        sa.Column("gpus", sa.Float(), nullable=False),
        sa.Column("trials", sa.Integer(), nullable=False),
        sa.Column("done_before", sa.Integer(), nullable=False),
        sa.Column("admitted_at", moment, nullable=False),
        sa.Column("began_at", moment),
        sa.Column("ended_at", moment),
        sa.Column("outcome", sa.String(16)),
    )
    op.create_index("ix_attempts_ended", "focus_lab_attempts", ["ended_at"])
    op.create_table(
        "focus_lab_events",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            primary_key=True,
            autoincrement=True,
        ),
        sa.Column("transaction", sa.BigInteger(), nullable=False),
        sa.Column("experiment_id", sa.String(32)),
        sa.Column("at", moment, nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("actor", sa.String(64), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        # Numbers of deleted rows must not come again: readers go on from the last one they saw.
        sqlite_autoincrement=True,
    )
    op.create_index("ix_events_order", "focus_lab_events", ["transaction", "id"])
    op.create_index(
        "ix_events_experiment", "focus_lab_events", ["experiment_id", "transaction", "id"]
    )
    op.create_table(
        "focus_lab_leads",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("owner", sa.String(255)),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("expires_at", moment, nullable=False),
        sa.Column("told", sa.JSON(), nullable=False),
    )
    op.create_table(
        "focus_lab_tokens",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("user", sa.String(64), nullable=False),
        sa.Column("project", sa.String(64), nullable=False),
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("note", sa.String(200), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("expires_at", moment),
        sa.Column("used_at", moment),
        sa.Column("revoked_at", moment),
    )
    op.create_table(
        "focus_lab_idempotency",
        sa.Column("user", sa.String(64), primary_key=True),
        sa.Column("key", sa.String(128), primary_key=True),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("experiment_id", sa.String(32), nullable=False),
        sa.Column("created_at", moment, nullable=False),
    )


def downgrade() -> None:
    """Take back."""
    for name in ("idempotency", "tokens", "leads", "events", "attempts", "queue"):
        op.drop_table(f"focus_lab_{name}")
