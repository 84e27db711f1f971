"""Django's database as the place of the ledger.

Owns the URL that follows from ``DATABASES``, and the making of the tables by ``manage.py migrate``.
Must not know what the tables are.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any

from celery import current_app
from django.db import connections

from celery_idem.config import Settings
from celery_idem.errors import ImproperlyConfigured
from celery_idem.ledger import migrations
from celery_idem.ledger.database import Database
from celery_idem.ledger.url import is_in_memory, make, same_database

#: Names in ``OPTIONS`` that mean the same to the drivers of the ledger.
_OPTIONS: dict[str, tuple[str, ...]] = {
    "postgresql": (
        *("application_name", "channel_binding", "connect_timeout", "gssencmode", "options"),
        *("passfile", "service", "sslcert", "sslcrl", "sslkey", "sslmode", "sslpassword"),
        *("sslrootcert", "target_session_attrs"),
    ),
    "mysql": ("connect_timeout", "read_default_file", "read_default_group", "unix_socket"),
    "sqlite": (),
}
#: Where a socket is named in place of a host.
_SOCKETS = {"postgresql": "host", "mysql": "unix_socket"}


def loaded_app() -> Any:
    """The project's Celery app; where none is loaded, one without settings that Celery makes."""
    return current_app._get_current_object()  # type: ignore[attr-defined]


def default_url() -> str:
    """SQLAlchemy's URL of ``DATABASES["default"]``: in Django's tests, of the test database.

    Raises:
        ImproperlyConfigured: the ledger cannot be there.
    """
    return url_of(connections["default"])


def url_of(connection: Any) -> str:
    """SQLAlchemy's URL of the database of a connection of Django.

    Raises:
        ImproperlyConfigured: the ledger cannot be there.
    """
    given = connection.settings_dict
    backend = connection.vendor
    if backend not in _OPTIONS:
        raise ImproperlyConfigured(
            f"DATABASES[{connection.alias!r}]['ENGINE']",
            given.get("ENGINE"),
            "the ledger can be in PostgreSQL, MariaDB, MySQL and SQLite: set "
            "CELERY_IDEM_DATABASE_URL to one of these",
        )
    if backend == "sqlite":
        return make(backend, database=str(given["NAME"]))
    query = _query(backend, given.get("OPTIONS") or {})
    host = str(given.get("HOST") or "")
    if host.startswith("/"):
        query[_SOCKETS[backend]] = host
        host = ""
    return make(
        backend,
        username=given.get("USER"),
        password=given.get("PASSWORD"),
        host=host,
        port=given.get("PORT"),
        database=given.get("NAME"),
        query=query,
    )


def _query(backend: str, options: Mapping[str, Any]) -> dict[str, str]:
    query = {name: str(options[name]) for name in _OPTIONS[backend] if options.get(name)}
    if backend == "mysql":
        files = options.get("ssl")
        if isinstance(files, Mapping):
            query |= {
                f"ssl_{name}": str(files[name]) for name in ("ca", "cert", "key") if name in files
            }
    return query


def upgrade(connection: Any) -> None:
    """Bring the ledger's tables to the version of this release, if they belong to `connection`.

    Not where ``CELERY_IDEM_DATABASE_URL`` names another database than this one, nor in an SQLite
    database in memory, where no ledger can be.

    Raises:
        ImproperlyConfigured: the settings cannot be used.
        LedgerError: the tables could not be made.
    """
    settings = Settings.read(loaded_app())
    here = url_of(connection)
    if is_in_memory(here) or not same_database(here, settings.database_url):
        return
    options, schema = settings.database_engine_options, settings.database_schema
    with closing(Database(settings.database_url, options, schema)) as database:
        migrations.upgrade(database)
