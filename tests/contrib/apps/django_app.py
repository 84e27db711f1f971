"""The Celery app of the small Django project.

Owns: a task that writes by Django's connection, and ends its run with it.
Must not know: what is tested.
"""

from __future__ import annotations

from celery import Celery
from django.db import connection

from celery_idem.contrib.django import DjangoIdempotentTask, idempotent_atomic

app = Celery("shop")
app.config_from_object("django.conf:settings", namespace="CELERY")


def orders() -> list[str]:
    """The rows that executions have left."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT name FROM orders ORDER BY name")
        return [name for (name,) in cursor.fetchall()]


def insert(name: str) -> None:
    """One row more; no unique constraint."""
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO orders (name) VALUES (%s)", [name])


@app.task(name="shop.order", base=DjangoIdempotentTask)
def order(name: str) -> str:
    """Writes and ends in one COMMIT."""
    with idempotent_atomic():
        insert(name)
    return name


@app.task(name="shop.overtaken", base=DjangoIdempotentTask)
def overtaken(name: str) -> None:
    """Somebody takes the run over in the midst of it."""
    with connection.cursor() as cursor:
        cursor.execute("UPDATE celery_idem_runs SET fence = fence + 1")
    with idempotent_atomic():
        insert(name)
