"""Everything that people who run a beat use."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from celery.result import AsyncResult
from sqlalchemy.engine import make_url

from celery_idem import RunState
from tests.integration.beat_stage import PATIENCE, BeatStage
from tests.processes import Beat, wait_for
from tests.services import Broker

NOTE = {"task": "beats.note", "schedule": 1.0}


@pytest.fixture
def stage(tmp_path: Path, redis_url: str, postgres_url: str) -> Iterator[BeatStage]:
    """A Redis, a PostgreSQL."""
    with BeatStage(tmp_path, Broker("redis", redis_url), postgres_url) as made:
        yield made


def end(beat: Beat) -> None:
    """A beat ends by itself when it is asked to, and well."""
    beat.terminate()
    wait_for(lambda: not beat.running, PATIENCE, "the end of a beat")
    assert beat.returncode == 0, beat.tail()


def test_a_beat_with_all_its_options(stage: BeatStage, tmp_path: Path) -> None:
    stage.schedule = {"e": {**NOTE, "args": [1], "kwargs": {"two": 2}}}
    secret = make_url(stage.database).set(password="geheim")
    stage.settings["idem_database_url"] = secret.render_as_string(hide_password=False)
    stage.settings["result_backend"] = stage.broker.url
    stage.app.conf.update(result_backend=stage.broker.url)
    stage.settings["task_ignore_result"] = False
    # Not the scheduler of the settings, but the one of the command; it does not know the task.
    stage.settings["beat_scheduler"] = "celery.beat:PersistentScheduler"
    options = ("-S", "idem", "-s", "no/such/file", "--max-interval", "2", "--pidfile", "beat.pid")
    worker = stage.worker("-P", "solo")
    beat = stage.beat(*options, module="untold")
    stage.wait_for_executions(3)
    # More slots than are sure to have come yet: the worker had to start.
    assert int((tmp_path / "beat.pid").read_text()) == beat.pid
    assert beat.log.count("no/such/file") == beat.log.count("is ignored") == 1
    assert not (tmp_path / "no").exists()
    assert "ledger -> postgresql+psycopg://postgres:***@" in beat.log
    assert "maxinterval -> 2.00 seconds" in beat.log
    assert "geheim" not in beat.log
    end(beat)
    assert not (tmp_path / "beat.pid").exists()
    stage.wait_until_quiet()
    assert set(stage.executions().values()) == {1}
    run = stage.runs("e")[0]
    result: AsyncResult[str] = AsyncResult(str(run.task_id), app=stage.app)
    assert result.get(timeout=PATIENCE) == str(worker.pid)
    assert run.task_id == run.key.task_id == stage.effects()[0].task_id
    assert '"args": [1], "kwargs": {"two": 2}' in stage.effects()[0].detail


def test_settings_do_what_options_do(stage: BeatStage) -> None:
    stage.schedule = {"e": NOTE}
    stage.settings["beat_schedule_filename"] = "another/file"
    stage.settings["beat_max_loop_interval"] = 3
    beat = stage.beat()
    wait_for(lambda: "Sending due task e (beats.note)" in beat.log, PATIENCE, "a slot")
    assert beat.log.count("another/file") == beat.log.count("is ignored") == 1
    assert "maxinterval -> 3.00 seconds" in beat.log
    end(beat)
    assert "Traceback" not in beat.log


def test_a_beat_inside_a_worker_and_entries_that_are_added(stage: BeatStage) -> None:
    workers = stage.workers(2, "-B", "-c", "1", "-s", "somewhere", module="periodic")
    stage.wait_for_executions(6)
    details = {row.detail for row in stage.effects()}
    assert details == {
        '{"args": ["configured"], "kwargs": {}}',
        '{"args": ["finalized"], "kwargs": {"more": 1}}',
    }
    assert all(worker.log.count("somewhere is ignored") == 1 for worker in workers)
    for worker in workers:
        worker.terminate()
    wait_for(lambda: not any(w.running for w in workers), PATIENCE, "the end of the workers")
    executions = stage.executions()
    assert set(executions.values()) == {1}
    slots = sorted({slot for _, slot in executions})
    assert {after - before for before, after in pairwise(slots)} == {timedelta(seconds=1)}
    assert "Traceback" not in stage.logs


def test_entries_with_options_of_their_own(stage: BeatStage) -> None:
    stage.workers(1, "-P", "solo", "-Q", "celery,side", module="options")
    scheduler = {"beat_scheduler": "tests.integration.beat_apps.special:Hasty"}
    beats = stage.beats(3, module="options", settings=scheduler)
    stage.wait_for_executions(3, "lazy")
    stage.wait_for_executions(3, "aside")
    # Nobody consumes from that queue: the messages expire.
    wait_for(
        lambda: stage.states("short")[RunState.SKIPPED] >= 2,
        PATIENCE,
        lambda: f"two skipped: {stage.states('short')}",
    )
    for beat in beats:
        end(beat)
    skipped = [run for run in stage.runs("short") if run.state is RunState.SKIPPED]
    assert all(run.deadline == run.key.slot + timedelta(seconds=2) for run in skipped)
    assert {run.error for run in skipped} == {"it was not started before its deadline"}
    assert stage.effects("short") == []
    assert set(stage.executions().values()) == {1}
    # What was executed is what the ledger has kept, and not what another beat has drawn.
    kept = {run.task_id: run.message for run in stage.runs("lazy")}
    for row in stage.effects("lazy"):
        drawn = row.detail.split('"')[3]
        assert drawn in str(kept[row.task_id])
    assert "Traceback" not in stage.logs


def test_beats_of_one_folder_share_no_pid_file(stage: BeatStage, tmp_path: Path) -> None:
    """None of them writes one that was not asked for; a second beat with the same one ends."""
    stage.schedule = {"e": NOTE}
    stage.beats(2)
    assert not list(tmp_path.glob("*.pid"))
    (first,) = stage.beats(1, "--pidfile", "beat.pid")
    second = stage.beat("--pidfile", "beat.pid")
    wait_for(lambda: not second.running, PATIENCE, "the end of the second beat")
    assert second.returncode
    assert first.running
    assert int((tmp_path / "beat.pid").read_text()) == first.pid
