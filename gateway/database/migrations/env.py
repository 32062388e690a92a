"""Runs migrations on the connection it is handed; opens none itself. Alembic executes this file."""

from alembic import context
from sqlalchemy import Connection

from gateway.database.types import Tables

connection: Connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Tables.metadata,
    version_table=context.config.attributes["version_table"],
    render_as_batch=connection.dialect.name == "sqlite",
)
with context.begin_transaction():
    context.run_migrations()
