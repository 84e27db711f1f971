"""Entries that are added in the two moments at which projects add them."""

from __future__ import annotations

from typing import Any

from tests.integration.beat_apps.base import add_tasks, make_app

app = make_app()
add_tasks(app)


@app.on_after_configure.connect
def configured(sender: Any, **_: Any) -> None:
    """As soon as there is a configuration; tasks are known by name only."""
    sender.add_periodic_task(1.0, sender.signature("beats.note", ("configured",)), name="early")


@app.on_after_finalize.connect
def finalized(sender: Any, **_: Any) -> None:
    """When all tasks are known."""
    note = sender.tasks["beats.note"]
    sender.add_periodic_task(1.0, note.s("finalized", more=1), catchup="all", priority=5)
