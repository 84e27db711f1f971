"""A database and a part of a Redis that nothing else uses, on servers that may be somebody's.

Owns making and removing them. Must not know what is done there.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql
from redis import Redis
from sqlalchemy.engine import URL, make_url


@contextmanager
def database_of_its_own(url: str) -> Iterator[str]:
    """SQLAlchemy's URL of a new database on the server at `url`; dropped at the end."""
    server = make_url(url)
    name = f"idem_bench_{secrets.token_hex(4)}"
    with psycopg.connect(conninfo(server), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            yield server.set(database=name, drivername="postgresql+psycopg").render_as_string(
                hide_password=False
            )
        finally:
            drop = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
            connection.execute(drop)


def conninfo(url: str | URL) -> str:
    """SQLAlchemy's URL as psycopg takes it."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


@contextmanager
def keys_of_its_own(url: str) -> Iterator[str]:
    """A prefix for Redis keys; what begins with it is deleted at the end."""
    prefix = f"idem-bench-{secrets.token_hex(4)}:"
    try:
        yield prefix
    finally:
        with Redis.from_url(url) as redis:
            for key in redis.scan_iter(f"{prefix}*"):
                redis.delete(key)
