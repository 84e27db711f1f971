"""The shop's table: one row for each thing that was done.

Owns: the table, adding to it, and its sums. It has no unique constraint but its own number, so
nothing here could hide that a thing was done twice.
Must not know: Celery, and what celery_idem keeps.
"""

from __future__ import annotations

import os
from datetime import datetime, timezone
from functools import cache

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    func,
    select,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from example_project.settings import DATABASE_URL, NAME

metadata = MetaData()

effects = Table(
    "shop_effects",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("shop", String(64), nullable=False),
    Column("entry", String(64), nullable=False),
    # ISO 8601 in UTC, as text: the same on every database. None: it belonged to no slot.
    Column("slot", String(40)),
    Column("what", String(200), nullable=False),
    Column("amount", Integer, nullable=False),
    Column("reference", String(255)),
    Column("pid", Integer, nullable=False),
    Column("done_at", String(40), nullable=False),
)


def add(
    connection: Connection,
    entry: str,
    slot: datetime | None,
    what: str,
    amount: int,
    reference: str | None,
) -> None:
    """Record one effect, in the caller's transaction."""
    row = {
        "shop": NAME,
        "entry": entry,
        "slot": slot and slot.astimezone(timezone.utc).isoformat(),
        "what": what,
        "amount": amount,
        "reference": reference,
        "pid": os.getpid(),
        "done_at": datetime.now(timezone.utc).isoformat(),
    }
    connection.execute(effects.insert(), row)


def total(entry: str) -> int:
    """Return the sum of the amounts of an entry."""
    ours = (effects.c.shop == NAME) & (effects.c.entry == entry)
    query = select(func.sum(effects.c.amount)).where(ours)
    with engine().connect() as connection:
        return int(connection.scalar(query) or 0)


@cache
def engine() -> Engine:
    """Return this process's engine, and see to it that the table is there."""
    made = connect(DATABASE_URL)
    create(made)
    return made


def connect(url: str) -> Engine:
    """Return an engine without a pool: a pooled connection must not be inherited by a fork."""
    return create_engine(url, poolclass=NullPool)


def create(target: Engine) -> None:
    """Create the table. A shop in earnest has migrations for this."""
    try:
        metadata.create_all(target)
    except DBAPIError:
        # Another worker was creating it at the same moment; now it is there, or this fails too.
        metadata.create_all(target)
