"""Where the ledger is: what a URL may be, and how it is shown to people.

Owns the checks of ``idem_database_url`` and the form in which it appears in messages, which never
holds a password. Must not know what is stored there.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from celery_idem.errors import ImproperlyConfigured

SETTING = "idem_database_url"

#: What some hosts call it.
_POSTGRES = "postgres"
#: The driver that is meant where a URL names none.
_DRIVERS = {"postgresql": "psycopg", "mysql": "pymysql", "mariadb": "pymysql"}
_EXTRAS = {"postgresql": "postgres", "mysql": "mysql", "mariadb": "mysql"}

#: The first release with RETURNING.
_SQLITE = (3, 35)


def parse(url: object) -> URL:
    """The URL with its driver.

    Raises:
        ImproperlyConfigured: it cannot be used; says why and what to do.
    """
    if not isinstance(url, str):
        raise ImproperlyConfigured(SETTING, type(url).__name__, "it must be a SQLAlchemy URL (str)")
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # Not chained: what SQLAlchemy says may hold the URL with its password.
        raise ImproperlyConfigured(
            SETTING,
            _without_secrets(url),
            "it must be a SQLAlchemy URL, for example postgresql://user:password@host/database",
        ) from None
    name, plus, driver = parsed.drivername.partition("+")
    if name == _POSTGRES:
        name = "postgresql"
        parsed = parsed.set(drivername=f"{name}{plus}{driver}")
    if name not in ("sqlite", *_DRIVERS):
        raise ImproperlyConfigured(
            SETTING, shown(parsed), "it must begin with postgresql, mysql, mariadb or sqlite"
        )
    if name in _DRIVERS and not plus:
        parsed = parsed.set(drivername=f"{name}+{_DRIVERS[name]}")
    _check_driver(parsed)
    if name == "sqlite":
        _check_file(parsed)
    return parsed


def make(
    backend: str,
    *,
    username: str | None = None,
    password: str | None = None,
    host: str | None = None,
    port: str | int | None = None,
    database: str | None = None,
    query: Mapping[str, str] | None = None,
) -> str:
    """A URL made of its parts; what is empty is left out."""
    url = URL.create(
        backend,
        username=username or None,
        password=password or None,
        host=host or None,
        port=int(port) if port else None,
        database=database or None,
        query=dict(query or {}),
    )
    return url.render_as_string(hide_password=False)


def is_in_memory(url: str) -> bool:
    """True for an SQLite database that is not in a file."""
    parsed = make_url(url)
    return parsed.get_backend_name() == "sqlite" and not _file(parsed)


def same_database(one: str, other: str) -> bool:
    """True if both URLs mean one database, as far as they tell: names of hosts are not resolved.

    Raises:
        ImproperlyConfigured: one of them cannot be used.
    """
    return _place(parse(one)) == _place(parse(other))


#: Ports that a URL need not name.
_PORTS = {"postgresql": 5432, "mysql": 3306}


def _place(url: URL) -> tuple[object, ...]:
    # One server, by two names.
    name = {"mariadb": "mysql"}.get(url.get_backend_name(), url.get_backend_name())
    if name == "sqlite":
        return name, Path(url.database or "").absolute().resolve()
    host = url.host or ""
    is_here = host in ("", "localhost", "127.0.0.1", "::1")
    return name, "" if is_here else host, url.port or _PORTS[name], url.database


def shown(url: URL) -> str:
    """The URL for people: no password, and no options, which may hold one."""
    return url.set(query={}).render_as_string(hide_password=True)


def _check_driver(url: URL) -> None:
    name = url.get_backend_name()
    try:
        dialect = url.get_dialect()
        dialect.import_dbapi()
    except NoSuchModuleError as exc:
        known = _DRIVERS.get(name)
        raise ImproperlyConfigured(
            SETTING,
            shown(url),
            f"unknown driver ({exc}): " + (f"use {name}+{known}://" if known else "use sqlite://"),
        ) from exc
    except ImportError as exc:
        raise ImproperlyConfigured(
            SETTING,
            shown(url),
            f"its driver cannot be imported ({exc}): {_way_out(url)}",
        ) from exc
    if dialect.is_async:
        raise ImproperlyConfigured(
            SETTING,
            shown(url),
            f"{url.get_driver_name()} is an asyncio driver, which the ledger cannot use: "
            f"use {name}://",
        )


def _way_out(url: URL) -> str:
    name = url.get_backend_name()
    if name not in _DRIVERS:
        return f"use {name}://"
    install = f"pip install 'celery-idem[{_EXTRAS[name]}]'"
    is_ours = url.get_driver_name() == _DRIVERS[name]
    return install if is_ours else f"use {name}://, for which {install}"


def _check_file(url: URL) -> None:
    if sqlite3.sqlite_version_info < _SQLITE:
        raise ImproperlyConfigured(
            SETTING,
            shown(url),
            f"SQLite {sqlite3.sqlite_version} is too old, 3.35 or newer is needed",
        )
    file = _file(url)
    if not file:
        raise ImproperlyConfigured(
            SETTING,
            shown(url),
            "a database in memory is seen by one connection only: name a file, "
            "for example sqlite:///celery-idem.sqlite3",
        )
    if not file.startswith("file:") and not Path(file).absolute().parent.is_dir():
        raise ImproperlyConfigured(
            SETTING, shown(url), f"there is no folder {Path(file).absolute().parent}: create it"
        )


def _file(url: URL) -> str | None:
    """The file of an SQLite database; None: it is in memory."""
    file = url.database
    if not file or ":memory:" in file or "mode=memory" in file:
        return None
    return None if url.query.get("mode") == "memory" else file


def _without_secrets(url: str) -> str:
    head, separator, tail = url.rpartition("@")
    return (f"***@{tail}" if separator and head else url).partition("?")[0]
