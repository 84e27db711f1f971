"""An app whose beats and workers have the same tasks; the schedule is the test's."""

from __future__ import annotations

from tests.integration.beat_apps.base import add_tasks, make_app

app = make_app()
add_tasks(app)
