"""An app whose task has an option that is not possible.

Owns: nothing else. Must not know: which test uses it.
"""

from __future__ import annotations

from celery_idem import IdempotentTask
from tests.integration.apps.base import make_app

app = make_app()


@app.task(base=IdempotentTask, name="tests.careless", max_attempts=0)
def careless() -> None:
    """Never called."""
