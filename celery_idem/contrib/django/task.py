"""The base class of idempotent tasks in a Django project.

Owns nothing but their union. Must not know how a task is claimed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.contrib.django.task import DjangoTask

from celery_idem.task import IdempotentTask

if TYPE_CHECKING:
    BaseTask = DjangoTask[Any, Any]
else:
    BaseTask = DjangoTask


class DjangoIdempotentTask(IdempotentTask, BaseTask):
    """An `IdempotentTask` with ``delay_on_commit`` and ``apply_async_on_commit``.

    These are of Celery's own base class in Django projects: they publish once the transaction in
    which they are called has been committed.
    """

    abstract = True
