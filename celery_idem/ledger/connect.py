"""How connections to each database are made.

Owns the options of the engine and what is done once per connection. Must not know the statements.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError

from celery_idem.errors import ImproperlyConfigured
from celery_idem.ledger.forks import connecting
from celery_idem.ledger.schema import ASCII_ONLY

SETTING = "idem_database_engine_options"

#: Seconds to wait for a connection; the ledger would rather say that it is away.
CONNECT_TIMEOUT = 5

#: Seconds for which SQLite itself waits for another process that writes. Short: meanwhile no other
#: thread of this process may read, nor fork (`celery_idem.ledger.forks`). Tries follow each other.
BUSY_TIMEOUT = 0.5

#: A server that vanished (a failover, a cut network) sends nothing: give up within a minute rather
#: than after the two hours of TCP. PyMySQL's limit holds for one that stands still too.
#: Every character can be sent, whatever the encodings of the database and the environment are.
_CONNECT_ARGS: dict[str, dict[str, Any]] = {
    "sqlite3": {"timeout": BUSY_TIMEOUT},
    "pysqlite": {"timeout": BUSY_TIMEOUT},
    "psycopg": {
        "connect_timeout": CONNECT_TIMEOUT,
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": 60_000,
        "client_encoding": "UTF8",
    },
    "pymysql": {
        "connect_timeout": CONNECT_TIMEOUT,
        "read_timeout": 30,
        "write_timeout": 30,
        "charset": "utf8mb4",
    },
}


def make_engine(url: URL, options: Mapping[str, Any], schema: str | None, **more: Any) -> Engine:
    """An engine whose statements commit by themselves.

    Raises:
        ImproperlyConfigured: an option cannot be used.
    """
    if "isolation_level" in options:
        raise ImproperlyConfigured(
            f"{SETTING}['isolation_level']",
            options["isolation_level"],
            "the ledger runs single statements in AUTOCOMMIT: leave it out",
        )
    given = dict(options.get("connect_args", {}))
    arguments = {
        "isolation_level": "AUTOCOMMIT",
        # Nothing is left open by a statement in AUTOCOMMIT: a ROLLBACK at return would be a round
        # trip for nothing.
        "pool_reset_on_return": None,
        # As many connections as threads ask for; the pool only keeps some of them.
        "max_overflow": -1,
        # Keys and messages are not for logs.
        "hide_parameters": True,
        **options,
        "connect_args": _CONNECT_ARGS.get(url.get_driver_name(), {}) | given,
        **more,
    }
    if "poolclass" in more:
        for name in ("max_overflow", "pool_size", "pool_timeout"):
            arguments.pop(name, None)
    elif "poolclass" in options and "max_overflow" not in options:
        # Not every pool knows it.
        del arguments["max_overflow"]
    try:
        engine = create_engine(url, **arguments)
    except (TypeError, ArgumentError) as exc:
        # Names only: the values may hold a password.
        raise ImproperlyConfigured(
            SETTING, sorted(options), f"sqlalchemy.create_engine refused it: {exc}"
        ) from exc
    _listen(engine, given)
    return engine.execution_options(schema_translate_map={None: schema}) if schema else engine


def _listen(engine: Engine, given: Mapping[str, Any]) -> None:
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _sqlite_connected)
        return
    event.listen(engine, "do_connect", _connect)
    if engine.dialect.driver == "psycopg":
        event.listen(engine, "connect", partial(_note_encoding, engine.dialect))
        if "prepare_threshold" not in given:
            event.listen(engine, "connect", _avoid_prepared)


def _connect(dialect: Any, record: Any, cargs: Any, cparams: Any) -> Any:
    with connecting:
        return dialect.connect(*cargs, **cparams)


def _sqlite_connected(connection: Any, record: Any) -> None:
    cursor = connection.cursor()
    # Readers and the writer do not wait for each other; other processes may write.
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _note_encoding(dialect: Any, connection: Any, record: Any) -> None:
    # Others lack characters; SQL_ASCII takes what it is given.
    encoding = connection.info.parameter_status("server_encoding")
    setattr(dialect, ASCII_ONLY, encoding not in ("UTF8", "SQL_ASCII"))


def _avoid_prepared(connection: Any, record: Any) -> None:
    # Behind a pooler in transaction mode (PgBouncer before 1.22) a prepared statement's name may
    # stand for another client's statement: switch them off where the backend that libpq greeted
    # is not the one that answers.
    autocommit, connection.autocommit = connection.autocommit, True
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()", prepare=False)
        (backend,) = cursor.fetchone()
    connection.autocommit = autocommit
    if backend != connection.info.backend_pid:
        connection.prepare_threshold = None
