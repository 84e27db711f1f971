"""A small Django project in processes of its own, and beats with its schedule.

Owns: its environment, its database as Django names it, scripts that run in it.
Must not know: what is tested.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url

from tests.contrib.apps import names
from tests.integration.beat_stage import PATIENCE, BeatStage
from tests.processes import Beat, python_path, wait_for

ENGINES = {
    "postgresql": "django.db.backends.postgresql",
    "mysql": "django.db.backends.mysql",
    "mariadb": "django.db.backends.mysql",
    "sqlite": "django.db.backends.sqlite3",
}


def django_database(url: str) -> dict[str, Any]:
    """``DATABASES["default"]`` for SQLAlchemy's URL."""
    parts = make_url(url)
    return {
        "ENGINE": ENGINES[parts.get_backend_name()],
        "NAME": parts.database or "",
        "USER": parts.username or "",
        "PASSWORD": parts.password or "",
        "HOST": parts.host or parts.query.get("host", ""),
        "PORT": parts.port or "",
    }


class Project:
    """A Django project.

    Args:
        directory: where its processes run.
        database: SQLAlchemy's URL of its database.
        settings: more of its settings.
    """

    def __init__(self, directory: Path, database: str, **settings: Any) -> None:
        self.directory = directory
        self.env = {
            "DJANGO_SETTINGS_MODULE": "tests.contrib.apps.django_settings",
            names.DATABASE: json.dumps(django_database(database)),
            names.MORE: json.dumps(settings),
            "PYTHONPATH": python_path(),
        }

    def start(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs ``python COMMAND`` to its end."""
        return subprocess.run(
            [sys.executable, "-W", "error::RuntimeWarning", *command],
            cwd=self.directory,
            env={**os.environ, **self.env},
            capture_output=True,
            text=True,
            check=False,
        )

    def run(self, script: str, *arguments: str) -> str:
        """Runs a script after ``django.setup()``; returns what it printed."""
        done = self.start("-c", f"import django; django.setup()\n{script}", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout


class ContribStage(BeatStage):
    """Beats with the schedulers of others."""

    apps = "tests.contrib.apps"

    def django_beats(
        self, number: int, project: Project, settings: Mapping[str, Any] | None = None
    ) -> list[Beat]:
        """Beats of a Django project."""
        return self.beats(number, settings=settings, env=project.env)


def all_publish(beats: Sequence[Beat], entry: str) -> None:
    """Waits until each beat has published an entry."""

    def silent() -> list[str]:
        return [b.name for b in beats if f"Sending due task {entry} " not in b.log]

    wait_for(lambda: not silent(), PATIENCE, lambda: f"{entry} is published by {silent()}")
