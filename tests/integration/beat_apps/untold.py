"""The same app for a beat that does not import the tasks."""

from __future__ import annotations

from tests.integration.beat_apps.base import make_app

app = make_app()
