"""Entries with everything that an entry may have beside its schedule."""

from __future__ import annotations

import copy
import os
from typing import Any

from celery import signals
from celery.beat import BeatLazyFunc
from kombu import Exchange, Queue

from tests.integration.beat_apps.base import add_tasks, make_app


def drawn() -> str:
    """Another text each time, in each process."""
    return f"{os.getpid()}-{os.urandom(4).hex()}"


side = Queue("side", Exchange("side"), routing_key="beside")
schedule: dict[str, Any] = {
    "lazy": {
        "task": "beats.note",
        "schedule": 1.0,
        "args": (BeatLazyFunc(drawn),),
        "kwargs": {"also": BeatLazyFunc(drawn)},
    },
    "aside": {
        "task": "beats.note",
        "schedule": 1.0,
        "options": {"queue": "side", "priority": 3, "headers": {"nested": {"deep": [1]}}},
    },
    "short": {"task": "beats.note", "schedule": 1.0, "options": {"queue": "shut", "expires": 2}},
}
before = copy.deepcopy([entry.get("options") for entry in schedule.values()])

app = make_app(
    beat_schedule=schedule, task_queues=[Queue("celery"), side, Queue("shut")], task_ignore_result=0
)
add_tasks(app)


@signals.after_task_publish.connect
def unchanged(**_: Any) -> None:
    """In the beat: what it sends is made of copies. An error here is in the beat's log."""
    assert before == [entry.get("options") for entry in schedule.values()]
