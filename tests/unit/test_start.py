"""What a worker checks before it starts, and what others need not load."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.worker import WorkController

from celery_idem import IdempotentTask, ImproperlyConfigured
from celery_idem.steps import IdempotentWorker

POSTGRES = {"idem_database_url": "postgresql://u@127.0.0.1:1/x"}


def make_app(**settings: Any) -> Celery:
    app = Celery("start", broker="memory://", set_as_current=False)
    app.conf.update(settings)
    return app


def nothing() -> None:
    """The body of a task that is never called."""


@pytest.fixture(autouse=True)
def joins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker made here tells its process that results must not be waited for."""
    monkeypatch.setattr("celery._state._task_join_will_block", False)


def start(app: Celery) -> IdempotentWorker:
    return IdempotentWorker(SimpleNamespace(app=app))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"idem_database_url": "oracle://u@h/d"}, "^idem_database_url = "),
        ({"idem_database_url": "sqlite:////no/such/folder/x"}, "^idem_database_url = "),
        (
            {
                "idem_database_url": "postgresql://u@h/d",
                "idem_database_engine_options": {"pol_size": 1},
            },
            "^idem_database_engine_options = ",
        ),
        (
            {"idem_database_url": "sqlite:///x.sqlite3", "idem_database_schema": "jobs"},
            "^idem_database_schema = ",
        ),
        ({"idem_leese": 5}, "did you mean 'idem_lease'"),
    ],
    ids=["url", "folder", "engine", "schema", "unknown"],
)
def test_settings_that_can_never_work_end_a_start(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=said):
        start(make_app(**settings))


def test_a_database_that_does_not_answer_does_not_keep_a_worker_from_starting() -> None:
    """Nothing is connected."""
    start(make_app(idem_database_url="postgresql://u@127.0.0.1:1/x"))


@pytest.mark.parametrize(
    ("broker", "options", "lease", "refused"),
    [
        ("redis://127.0.0.1:1/0", {"visibility_timeout": 70}, 60, True),
        ("redis://127.0.0.1:1/0", {"visibility_timeout": 71}, 60, False),
        ("redis://127.0.0.1:1/0", {}, 3000, False),
        ("redis://127.0.0.1:1/0", {}, 3200, True),
        ("sentinel://127.0.0.1:1/0", {}, 3200, True),
        ("amqp://127.0.0.1:1//", {}, 3200, False),
        ("memory://", {"visibility_timeout": 10}, 60, False),
    ],
)
def test_a_message_must_not_come_again_before_a_lease_ends(
    broker: str, options: dict[str, Any], lease: float, refused: bool
) -> None:
    app = make_app(
        broker_url=broker, broker_transport_options=options, idem_lease=lease, **POSTGRES
    )
    if not refused:
        start(app)
        return
    with pytest.raises(ImproperlyConfigured, match=r"^idem_lease = .*visibility_timeout"):
        start(app)


def test_what_is_switched_off_is_not_looked_at() -> None:
    start(make_app(idem_enabled=False, idem_database_url="oracle://u@h/d"))


def test_a_worker_with_an_idempotent_task_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no other."""
    # Tasks that are shared among apps, as other tests have made some, come at the end of each.
    monkeypatch.setattr("celery._state._on_app_finalizers", set())
    app = make_app(idem_database_url="oracle://u@h/d")
    app.task(name="plain", shared=False)(nothing)
    app.finalize()
    assert IdempotentWorker not in app.steps["worker"]
    app.task(base=IdempotentTask, name="bill", shared=False, lazy=False)(nothing)
    assert IdempotentWorker in app.steps["worker"]
    with pytest.raises(ImproperlyConfigured, match=r"^idem_database_url = "):
        WorkController(app=app, pool_cls="solo")


def test_a_worker_looks_for_dead_pool_processes() -> None:
    """As Celery tells its steps of the event loop: only those that can be started and stopped."""
    app = make_app(**POSTGRES)
    app.task(base=IdempotentTask, name="bill", shared=False, lazy=False)(nothing)
    worker: Any = WorkController(app=app, pool_cls="solo")
    asked: list[tuple[float, Any]] = []
    looks = lambda: None  # noqa: E731
    worker.pool = SimpleNamespace(maintain_pool=looks, register_with_event_loop=lambda _: None)
    hub = SimpleNamespace(call_repeatedly=lambda *call: asked.append(call))
    steps = [step for step in worker.steps if isinstance(step, IdempotentWorker)]
    worker.steps[:] = steps
    worker.register_with_event_loop(hub)
    assert asked == [(1.0, looks)]


PUBLISH = """
import sys
from celery import Celery
from celery_idem import IdempotentTask
app = Celery("start", broker="memory://")
app.conf.idem_database_url = "postgresql://u@h/d"

@app.task(base=IdempotentTask, name="bill")
def bill(number):
    pass

bill.delay(1)
print(*sys.modules)
"""


def test_a_process_that_only_publishes_loads_no_database() -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", PUBLISH], check=True, capture_output=True, text=True
    ).stdout.split()
    assert "celery_idem.task" in loaded
    assert {"sqlalchemy", "alembic", "psycopg"} & set(loaded) == set()


def test_dead_pool_processes_are_looked_for_every_second() -> None:
    """Celery would look every five."""
    looks: list[tuple[float, Any]] = []
    hub = SimpleNamespace(call_repeatedly=lambda *call: looks.append(call))
    pool = SimpleNamespace(maintain_pool=nothing)
    step = start(make_app(**POSTGRES))
    step.register_with_event_loop(SimpleNamespace(pool=pool), hub)
    assert looks == [(1.0, nothing)]
