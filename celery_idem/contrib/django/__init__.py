"""An app for Django projects: add ``"celery_idem.contrib.django"`` to ``INSTALLED_APPS``.

Owns the names that a project imports from here. What the app does by itself is in `apps`.
"""

from __future__ import annotations

from celery_idem.contrib.django.atomic import idempotent_atomic
from celery_idem.contrib.django.task import DjangoIdempotentTask

__all__ = ["DjangoIdempotentTask", "idempotent_atomic"]
