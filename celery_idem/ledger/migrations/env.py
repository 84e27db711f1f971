"""Alembic's entry into the scripts: runs them on the engine that the caller gives."""

from __future__ import annotations

from alembic import context
from sqlalchemy import inspect, text

from celery_idem.ledger.migrations import VERSION_TABLE
from celery_idem.ledger.schema import metadata


def run() -> None:
    engine = context.config.attributes["engine"]
    schema = context.config.attributes["schema"]
    # The engine is in AUTOCOMMIT; a script must be whole or absent where the database can do so.
    level = "SERIALIZABLE" if engine.dialect.name == "sqlite" else "READ COMMITTED"
    with engine.connect().execution_options(isolation_level=level) as connection:
        # 'IF NOT EXISTS' asks for the right to create schemas even where the schema is there.
        if schema and not inspect(connection).has_schema(schema):
            quoted = engine.dialect.identifier_preparer.quote_schema(schema)
            connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {quoted}"))
        context.configure(
            connection=connection,
            target_metadata=metadata,
            version_table=VERSION_TABLE,
            version_table_schema=schema,
        )
        with context.begin_transaction():
            context.run_migrations()
        connection.commit()


run()
