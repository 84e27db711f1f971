"""What the numbers were measured on, in general words.

Owns one line of text. Must not name the machine or its paths.
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import version

import psycopg
from redis import Redis

from bench.base import Servers
from bench.places import conninfo


def describe(servers: Servers) -> str:
    """Cores, versions and servers."""
    with psycopg.connect(conninfo(servers.database_url)) as connection:
        number = connection.info.server_version
        settings = [
            connection.execute(f"SHOW {name}").fetchone()
            for name in ("fsync", "synchronous_commit")
        ]
    durable = all(setting and setting[0] == "on" for setting in settings)
    with Redis.from_url(servers.broker_url) as redis:
        info = redis.info("server")
    broker = f"Valkey {info['valkey_version']}" if "valkey_version" in info else "Redis"
    if broker == "Redis":
        broker += f" {info['redis_version']}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    packages = ", ".join(
        f"{title} {version(name)}"
        for title, name in (
            ("Celery", "celery"),
            ("kombu", "kombu"),
            ("SQLAlchemy", "sqlalchemy"),
            ("psycopg", "psycopg"),
        )
    )
    return (
        f"{cores} cores ({platform.machine()}, {platform.system()}), "
        f"Python {platform.python_version()}, {packages}; "
        f"PostgreSQL {number // 10000}.{number % 10000} "
        f"({'commits reach the disk' if durable else 'commits do not wait for the disk'}) "
        f"and {broker} on the same machine."
    )
