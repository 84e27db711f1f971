"""An app that is configured as in a Django project: CELERY_... in a module of settings.

Owns: nothing else. Must not know: which test uses it.
"""

from __future__ import annotations

import json
import os

from celery import Celery

from celery_idem import IdempotentTask
from celery_idem.config import Settings
from tests.integration.apps import base

app = Celery("tests")
app.config_from_object(
    {
        f"CELERY_{name.upper()}": value
        for name, value in json.loads(os.environ[base.SETTINGS]).items()
    },
    namespace="CELERY",
)


@app.task(base=IdempotentTask, name="tests.lease")
def lease() -> float:
    """The setting as the worker reads it."""
    base.effect("lease")
    return Settings.of(app).lease
