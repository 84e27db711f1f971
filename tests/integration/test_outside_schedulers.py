"""Three processes of somebody else's scheduler with a job of two seconds: one execution a slot."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

import pytest

from celery_idem import Ledger, RunKey, RunState
from celery_idem.clock import UTC
from tests.integration.outside_apps.periodic import SCHEDULERS, SECONDS
from tests.integration.outside_stage import Program, Watch, several
from tests.processes import wait_for

#: Seconds: more than a slot, a lease and the start of a process take on a busy machine.
PATIENCE = 60.0


_IN_ITS_BODY = re.compile(r"in the body of (\d+)")


def _in_its_body(programs: list[Program], hold: Path) -> tuple[Program, int]:
    """The first process that executes a slot, held there; and the number of that slot."""
    hold.touch()

    def found() -> tuple[Program, int] | None:
        for program in programs:
            body = _IN_ITS_BODY.search(program.log)
            if body is not None:
                return program, int(body.group(1))
        return None

    first = wait_for(found, PATIENCE, "a process executes a slot")
    assert first is not None
    return first


@pytest.mark.sample("schedule", "cron-coalesce")
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_each_slot_is_executed_once(postgres_url: str, tmp_path: Path, scheduler: str) -> None:
    """One of the processes is killed in its body, and is started again."""
    watch = Watch(postgres_url)
    with several(postgres_url, scheduler, tmp_path) as programs:
        wait_for(lambda: len(watch.effects()) >= 2, PATIENCE, "two slots were executed")
        victim, killed = _in_its_body(programs, tmp_path / "hold")
        victim.kill()
        (tmp_path / "hold").unlink()
        assert watch.effects()[killed] == 0
        wait_for(lambda: watch.effects()[killed], PATIENCE, "another process has executed it")
        victim.start()
        victim.ready()
        before = watch.called()
        wait_for(lambda: len(watch.called() - before) >= 3, PATIENCE, "slots go on")
        # Each ends what it has begun.
        assert [program.stop() for program in programs] == [0, 0, 0]
    executed = watch.effects()
    assert set(executed.values()) == {1}
    assert watch.called() - set(executed) == set()
    assert watch.calls() > len(executed)
    _was_taken_over(postgres_url, killed)


def test_a_process_that_stands_still_writes_nothing_late(postgres_url: str, tmp_path: Path) -> None:
    """For longer than its lease, in its body: another one executes the slot meanwhile."""
    watch = Watch(postgres_url)
    with several(postgres_url, "schedule", tmp_path) as programs:
        victim, stopped = _in_its_body(programs, tmp_path / "hold")
        victim.pause()
        (tmp_path / "hold").unlink()
        wait_for(lambda: watch.effects()[stopped], PATIENCE, "another process has executed it")
        victim.resume()
        wait_for(lambda: "is no longer owned" in victim.log, PATIENCE, "it learns that it is late")
        assert [program.stop() for program in programs] == [0, 0, 0]
    assert set(watch.effects().values()) == {1}
    _was_taken_over(postgres_url, stopped)


def _was_taken_over(url: str, number: int) -> None:
    ledger = Ledger.from_url(url)
    slot = datetime.fromtimestamp(number * SECONDS, UTC)
    row = ledger.read(RunKey.for_slot("once", "job", slot))
    assert row is not None and row.state is RunState.SUCCEEDED and row.attempts >= 2
    ledger.close()


@pytest.mark.sample("schedule")
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_without_us_each_process_executes_it(
    postgres_url: str, tmp_path: Path, scheduler: str
) -> None:
    watch = Watch(postgres_url)
    with several(postgres_url, scheduler, tmp_path, "--plain") as programs:
        wait_for(lambda: 3 in watch.effects().values(), PATIENCE, "a slot was executed thrice")
        assert [program.stop() for program in programs] == [0, 0, 0]
    assert watch.effects().total() == watch.calls()
