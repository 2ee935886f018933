"""Runs the migrations on the connection, and in the transaction, that rblstore.catalog.schema_history hands over."""

from __future__ import annotations

from alembic import context

from rblstore.catalog.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite alters a table by copying it
)
with context.begin_transaction():
    context.run_migrations()
