"""Apps whose critical sections are tested, and whether others get into one.

Owns making and closing these apps. Must not know any one test.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery

from celery_idem import critical_section
from celery_idem.errors import LockNotAcquired
from celery_idem.member import Member
from tests.contract.together import in_threads

NAME = "stock"


def make_app(database: str, redis: str | None = None, **settings: Any) -> Celery:
    """An app with its ledger in `database`."""
    app = Celery("shop", set_as_current=False)
    app.conf.update(idem_database_url=database, idem_redis_url=redis, **settings)
    return app


@contextmanager
def opened(database: str, redis: str | None = None, **settings: Any) -> Iterator[Celery]:
    """The same; closed at the end."""
    app = make_app(database, redis, **settings)
    try:
        yield app
    finally:
        Member.of(app).leases.close()
        Member.of(app).locks.close()
        app.close()


def section(app: Celery, names: Any = NAME, **options: Any) -> Any:
    return critical_section(names, app=app, **options)


def enters(app: Celery, names: Any = NAME, **options: Any) -> bool:
    """Whether another thread gets in."""

    def enter(_: int) -> bool:
        try:
            with section(app, names, **options):
                return True
        except LockNotAcquired:
            return False

    return in_threads(1, enter)[0]


def is_free(app: Celery, names: Any = NAME, **options: Any) -> bool:
    return enters(app, names, wait=30, **options)


def is_held(app: Celery, names: Any = NAME, **options: Any) -> bool:
    return not enters(app, names, **options)
