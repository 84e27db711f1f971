"""The parent's verdicts where there is no pool process: greenlets that are killed in mid-body."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery.exceptions import TaskRevokedError, TimeLimitExceeded

from celery_idem.run import RunState
from tests.integration.stage import Stage
from tests.processes import Worker


@pytest.fixture(scope="module")
def worker(stage: Stage) -> Iterator[Worker]:
    worker = stage.worker("watched", "-P", "gevent", "-c", "4")
    yield worker
    worker.kill()


def test_a_hard_time_limit_ends_the_run(stage: Stage, worker: Worker) -> None:
    task_id = stage.send("hangs")
    with pytest.raises(TimeLimitExceeded):
        stage.get(task_id)
    row = stage.wait_final("hangs", task_id)
    assert row.state is RunState.FAILED
    assert row.error == "the hard time limit of 1 seconds was exceeded"


def test_a_terminated_task_ends_as_failed(stage: Stage, worker: Worker) -> None:
    task_id = stage.start_gated()
    stage.result(task_id).revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        stage.get(task_id)
    row = stage.wait_final("gated", task_id)
    assert (row.state, row.error) == (RunState.FAILED, "it was revoked and terminated")
    assert stage.effects(task_id) == ["started"]
