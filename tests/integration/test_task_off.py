"""idem_enabled = False: the same app on plain Celery."""

from __future__ import annotations

from celery_idem.run import RunState
from tests.integration.conftest import NewStage


def test_switched_off_a_worker_is_plain_celery(new_stage: NewStage) -> None:
    """Each copy runs, retries work, and nothing touches the ledger: it need not even be usable."""
    stage = new_stage()
    worker = stage.worker(
        "watched",
        *("-c", "2"),
        settings={"idem_enabled": False, "idem_database_url": "oracle://nobody@localhost/none"},
    )
    task_id = stage.send("note", "each time", copies=3)
    stage.wait_for_effect(task_id, "note", 3)
    stage.wait_for_fact(task_id, "task_success", 3)
    again = stage.send("autoretry", 2)
    stage.wait_for_fact(again, "task_success")
    assert stage.effects(again) == ["try"] * 3
    in_time = stage.send("note", "in time", expires=600)
    assert stage.get(in_time) == "in time"
    failing = stage.send("fails", copies=2)
    stage.wait_for_fact(failing, "task_failure", 2)
    # STARTED is stored by Celery itself.
    started = stage.send("started", "off")
    stage.wait_for_effect(started, "started")
    assert stage.result(started).state == "STARTED"
    # A stamp from a beat, and a broken one, are headers like others.
    stamped = stage.send("note", headers={"idem_run_key": 5})
    assert stage.get(stamped) == ""
    stage.open("off")
    stage.wait_for_fact(started, "task_failure")
    assert worker.stop() == 0
    assert stage.sql("SELECT to_regclass('celery_idem_runs')::text") == [(None,)]
    # Switched on again, the next message is claimed.
    with stage.new_worker("watched", "-c", "1"):
        task_id = stage.send("note", copies=2)
        stage.wait_for_duplicates("note", task_id)
        assert stage.wait_final("note", task_id).state is RunState.SUCCEEDED
