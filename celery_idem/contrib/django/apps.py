"""The app's configuration, as Django finds it.

Owns what happens when Django starts. Must not do anything that needs a database.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.apps import AppConfig
from django.core.checks import register

from celery_idem.config import use_database

if TYPE_CHECKING:
    _AppConfig = Any
else:
    _AppConfig = AppConfig


class IdemConfig(_AppConfig):  # type: ignore[misc]
    """celery_idem in a Django project."""

    name = "celery_idem.contrib.django"
    label = "celery_idem"
    verbose_name = "celery_idem"

    def ready(self) -> None:
        from celery_idem.contrib.django.checks import check_settings
        from celery_idem.contrib.django.database import default_url

        use_database(default_url)
        register(check_settings)
