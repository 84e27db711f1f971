"""Version 0001 of the ledger's tables."""

from __future__ import annotations

from typing import Any

from django.db import migrations

from celery_idem.contrib.django.database import upgrade


def forwards(apps: Any, schema_editor: Any) -> None:
    """By a connection of its own: the scripts are not Django's."""
    upgrade(schema_editor.connection)


class Migration(migrations.Migration):  # type: ignore[misc]
    """Backwards, the tables stay: they know what was executed."""

    atomic = False
    initial = True
    dependencies: list[tuple[str, str]] = []  # noqa: RUF012 - as Django has it
    operations = [migrations.RunPython(forwards, migrations.RunPython.noop)]  # noqa: RUF012
