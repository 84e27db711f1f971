"""What ``manage.py check`` says.

Owns the findings and their ids. Nothing is connected. Must not know what a setting is for.
"""

from __future__ import annotations

from typing import Any

from django.core.checks import CheckMessage, Error, Warning

from celery_idem.config import PREFIX, Settings
from celery_idem.contrib.django.database import default_url, loaded_app
from celery_idem.errors import ImproperlyConfigured
from celery_idem.ledger.url import parse, same_database, shown
from celery_idem.member import make_ledger


def check_settings(app_configs: Any = None, **_: Any) -> list[CheckMessage]:
    """The settings can be used, and the ledger is where Django's transactions are."""
    app = loaded_app()
    try:
        settings = Settings.read(app)
        if settings.enabled:
            make_ledger(settings).close()
    except ImproperlyConfigured as exc:
        return [Error(str(exc), hint=_hint(app, exc.setting), id="celery_idem.E001")]
    found: list[CheckMessage] = []
    # Celery's own, made where nobody has made one.
    if app.main == "default":
        found.append(
            Warning(
                "No Celery app is loaded: its CELERY_IDEM_* settings were not looked at.",
                hint="Import it in the __init__.py of the project, as Celery's guide has it.",
                id="celery_idem.W002",
            )
        )
    if settings.enabled and not _is_in_default(settings.database_url):
        found.append(
            Warning(
                f"The ledger is in {shown(parse(settings.database_url))}, and not in "
                "DATABASES['default'].",
                hint="idempotent_atomic() needs both in one database: leave "
                "CELERY_IDEM_DATABASE_URL out. Else silence this.",
                id="celery_idem.W001",
            )
        )
    return found


def _hint(app: Any, setting: str) -> str | None:
    if not setting.startswith(PREFIX):
        return None
    namespace = f"{app.namespace}_" if app.namespace else ""
    return f"In Django's settings it is {namespace}{setting.upper()}."


def _is_in_default(url: str) -> bool:
    try:
        return same_database(default_url(), url)
    except ImproperlyConfigured:
        return False
