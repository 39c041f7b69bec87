"""Alembic's entry: runs migrations on the connection that the store hands over."""

from __future__ import annotations

from alembic import context

from focus_lab.lab.tables import VERSION_TABLE, Base

connection = context.config.attributes["connection"]
# SQLite cannot alter tables in place; batch mode rebuilds them.
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
