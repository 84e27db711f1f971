"""A beat whose schedule is changed while it runs, from another thread."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

from celery import signals

from tests.integration.beat_apps.base import CHANGE, add_tasks, make_app

app = make_app()
add_tasks(app)


@signals.beat_init.connect
def begin(sender: Any, **_: Any) -> None:
    """When the beat starts."""
    threading.Thread(target=change, args=(sender.scheduler,), daemon=True).start()


def change(scheduler: Any) -> None:
    """One entry goes, one comes, one gets other arguments, one another interval."""
    while not Path(os.environ[CHANGE]).exists():
        time.sleep(0.05)
    del scheduler.schedule["goes"]
    entry = {"task": "beats.note", "schedule": 1.0, "args": ["after"]}
    scheduler.update_from_dict(
        {"comes": entry, "argues": entry, "hurries": {**entry, "schedule": 0.5}}
    )
