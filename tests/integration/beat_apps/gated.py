"""An app whose bodies wait at a gate before their effect.

Owns: a task that tells by a file that it has begun, and waits for another. Must not know: the test.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from celery_idem import IdempotentTask, current_run
from tests.integration.beat_apps.base import GATE, effect, make_app

app = make_app()


@app.task(name="beats.note", base=IdempotentTask)
def note() -> int:
    """Its effect comes after the gate was opened."""
    run = current_run()
    assert run.slot is not None
    gate = Path(os.environ[GATE])
    gate.with_suffix(f".{os.getpid()}").write_text(run.key.text)
    while not gate.exists():
        time.sleep(0.02)
    effect(run.entry, run.slot.isoformat(), {"fence": run.fence})
    return run.fence
